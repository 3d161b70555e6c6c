import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_tricks as kt
from tests import reference, runs


@pytest.mark.parametrize("shape", runs.SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-7), ("float32", 2e-5)])
def test_several_steps_equal_the_paper(shape, dtype, rtol):
    w, gradients = runs.numbers(shape, dtype)
    got = runs.steps(
        kt.LAMB(0.1, weight_decay=0.02, exclude_from_weight_decay=[], exclude_from_layer_adaptation=[]), w, gradients
    )
    np.testing.assert_allclose(got, reference.lamb(w, gradients, 0.1, weight_decay=0.02), rtol=rtol, atol=rtol)


def test_vectors_and_scalars_are_neither_decayed_nor_adapted_by_default():
    w, gradients = runs.numbers((5,), "float64")
    got = runs.steps(kt.LAMB(0.1, weight_decay=0.5), w, gradients)
    np.testing.assert_allclose(got, reference.lamb(w, gradients, 0.1, adapt=False), rtol=1e-7)


@pytest.mark.parametrize(
    ("given_clip", "as_range"), [(0.3, (0, 0.3)), ((0.5, 0.8), (0.5, 0.8)), ((2.0, 3.0), (2.0, 3.0))]
)
def test_trust_ratio_is_clipped(given_clip, as_range):
    w, gradients = runs.numbers((3, 4), "float64")
    got = runs.steps(kt.LAMB(0.1, trust_ratio_clip=given_clip), w, gradients)
    np.testing.assert_allclose(got, reference.lamb(w, gradients, 0.1, clip=as_range), rtol=1e-7)


def test_without_bias_correction():
    w, gradients = runs.numbers((3, 4), "float64")
    got = runs.steps(kt.LAMB(0.1, bias_correction=False), w, gradients)
    np.testing.assert_allclose(got, reference.lamb(w, gradients, 0.1, bias_correction=False), rtol=1e-7)


def test_equals_keras_lamb_where_the_two_agree_by_design():
    w, gradients = runs.numbers((3, 4), "float32")
    ours = runs.steps(kt.LAMB(0.1, epsilon=1e-7), w, gradients)
    np.testing.assert_allclose(ours, runs.steps(keras.optimizers.Lamb(0.1), w, gradients), rtol=1e-4)


def test_decay_is_inside_the_ratio_which_keras_lamb_has_outside():
    w, g = np.array([[2.0]], "float32"), [np.array([[1.0]], "float32")]
    options = {"learning_rate": 0.1, "weight_decay": 0.5}
    assert runs.steps(kt.LAMB(**options), w, g) == pytest.approx(1.8, abs=1e-5)
    assert runs.steps(keras.optimizers.Lamb(**options), w, g) == pytest.approx(1.71, abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(0, 100))
def test_the_step_does_not_change_when_the_loss_is_scaled(scale, seed):
    w, gradients = runs.numbers((3, 4), "float64", seed=seed)
    plain = runs.steps(kt.LAMB(0.1, epsilon=0.0), w, gradients)
    np.testing.assert_allclose(runs.steps(kt.LAMB(0.1, epsilon=0.0), w, scale * gradients), plain, rtol=1e-6)


@pytest.mark.parametrize(("w", "g"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_zero_weights_and_zero_gradients_give_finite_steps(w, g):
    got = runs.steps(kt.LAMB(0.1), np.full((2, 3), w, "float32"), [np.full((2, 3), g, "float32")] * 3)
    assert np.isfinite(got).all()
    assert (got != w).all() == (g != 0)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_low_precision_variables_move_and_stay_finite(dtype):
    # Keras' own Lamb turns entries with zero gradient into NaN in bfloat16, and does not move (300, 300) in float16.
    variable = keras.Variable(np.ones((300, 300)), dtype=dtype)
    gradient = np.ones((300, 300), "float32")
    gradient[0] = 0
    optimizer = kt.LAMB(0.1)
    for _ in range(3):
        optimizer.apply([keras.ops.cast(gradient, dtype)], [variable])
    values = keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32"))
    assert np.isfinite(values).all()
    assert (values[1:] < 0.9).all()
    assert (values[0] == 1).all()
    assert {v.dtype for v in optimizer.first_moments + optimizer.second_moments} == {"float32"}


@pytest.mark.parametrize(
    ("options", "xla", "replicas"),
    [
        ({}, False, 1),
        runs.slow({"clipnorm": 0.5}, True, 1),
        runs.slow({"clipnorm": 0.5}, False, 2),
        ({"global_clipnorm": 0.5, "gradient_accumulation_steps": 2}, False, 1),
        ({"global_clipnorm": 0.5, "gradient_accumulation_steps": 2}, True, 2),
    ],
    ids=str,
)
def test_repeated_ids_of_an_embedding_count_as_their_sum(options, xla, replicas):
    ids = np.array([[1, 1, 2], [1, 0, 2], [3, 1, 1], [2, 2, 2]])

    def train(layer, x):
        keras.utils.set_random_seed(0)
        with runs.strategy_of(replicas).scope():
            model = keras.Sequential([keras.Input(x.shape[1:], dtype=x.dtype.name), layer, keras.layers.Flatten()])
            model.set_weights([np.random.default_rng(0).normal(size=(5, 4))])
            model.compile(kt.LAMB(0.1, **options), "mse", jit_compile=xla and replicas == 1)
            if xla and replicas > 1:
                kt.jit(model)
        model.fit(x, np.ones((4, 12)), batch_size=4, epochs=6, verbose=0, shuffle=False)
        return model.get_weights()[0]

    looked_up = train(keras.layers.Embedding(5, 4), ids)
    multiplied = train(keras.layers.Dense(4, use_bias=False), np.eye(5, dtype="float32")[ids])  # a dense gradient
    np.testing.assert_allclose(looked_up, multiplied, rtol=1e-4, atol=1e-5)


class TestExclusions:
    def model(self):
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(4, name="body"), keras.layers.Dense(2, name="head")], name="net"
        )
        return model, [v.path for v in model.trainable_variables]

    def built(self, model, **kwargs):
        optimizer = kt.LAMB(0.1, weight_decay=0.5, **kwargs)
        optimizer.build(model.trainable_variables)
        return optimizer

    def test_patterns_layers_and_variables_name_the_same_things(self):
        model, _ = self.model()
        head = model.get_layer("head")
        for exclude in (["head/"], "head", [head], [head.kernel, head.bias], head):
            optimizer = self.built(model, exclude_from_weight_decay=exclude)
            assert optimizer.without_decay == [False, False, True, True], exclude

    def test_the_two_lists_are_independent_and_an_empty_list_excludes_nothing(self):
        model, _ = self.model()
        optimizer = self.built(model, exclude_from_weight_decay=[], exclude_from_layer_adaptation=["body/kernel"])
        assert optimizer.without_decay == [False] * 4
        assert optimizer.adapted == [False, True, True, True]

    def test_keras_method_works_too(self):
        model, _ = self.model()
        optimizer = kt.LAMB(0.1, weight_decay=0.5)
        optimizer.exclude_from_weight_decay(var_names=["head/bias"])
        optimizer.build(model.trainable_variables)
        assert optimizer.without_decay == [False, False, False, True]
        with pytest.raises(ValueError, match="before the optimizer is built"):
            optimizer.exclude_from_weight_decay(var_names=["body"])

    def test_a_pattern_that_matches_nothing_is_an_error_that_lists_the_paths(self):
        model, paths = self.model()
        with pytest.raises(ValueError, match="'hed' matches none") as error:
            self.built(model, exclude_from_layer_adaptation=["hed"])
        assert all(path in str(error.value) for path in paths)

    def test_they_survive_saving_and_the_loss_of_the_models_name(self, tmp_path):
        model, _ = self.model()
        head = model.get_layer("head")
        model.compile(
            kt.LAMB(
                0.1, weight_decay=0.5, exclude_from_weight_decay=[head], exclude_from_layer_adaptation=[head.kernel]
            ),
            "mse",
        )
        model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
        model.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras").optimizer
        assert loaded.without_decay == model.optimizer.without_decay == [False, False, True, True]
        assert loaded.adapted == model.optimizer.adapted == [True, True, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"learning_rate": -1}, "`learning_rate` must be at least 0"),
        ({"learning_rate": float("inf")}, "learning_rate"),
        ({"beta_1": 1.0}, "less than 1"),
        ({"beta_2": -0.1}, "at least 0"),
        ({"epsilon": -1e-6}, "epsilon"),
        ({"weight_decay": -0.1}, "weight_decay"),
        ({"trust_ratio_clip": (2, 1)}, "low <= high"),
        ({"trust_ratio_clip": -1}, "low <= high"),
        ({"exclude_from_weight_decay": ["("]}, "invalid regular expression"),
        ({"gradient_accumulation_steps": 0}, "at least 1"),
        ({"clipnorm": 1.0, "clipvalue": 1.0}, "Only one of"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kt.LAMB(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta_1": "0.9"}, "`beta_1` must be a number"),
        ({"bias_correction": 1}, "must be True or False"),
        ({"gradient_accumulation_steps": 1.5}, "must be an integer"),
        ({"jit_compile": "yes"}, "`jit_compile` must be True or False"),
        ({"wieght_decay": 0.1}, "LAMB has no argument `wieght_decay`. Did you mean `weight_decay`?"),
        ({"beta3": 0.1}, "LAMB has no argument `beta3`. Beside its own"),
    ],
    ids=str,
)
def test_arguments_of_the_wrong_kind_are_refused(arguments, message):
    with pytest.raises(TypeError, match=message):
        kt.LAMB(**arguments)


def test_an_exclusion_of_the_wrong_kind_is_refused():
    with pytest.raises(TypeError, match="regular expressions on variable paths"):
        kt.LAMB(exclude_from_weight_decay=[3])


def test_whole_numbers_are_learning_rates_and_one_accumulation_step_is_none():
    optimizer = kt.LAMB(1, gradient_accumulation_steps=1)
    assert float(optimizer.learning_rate) == 1.0
    assert optimizer.gradient_accumulation_steps is None
