"""What an optimizer keeps from build to save, load, copy and resume."""

import copy
import pathlib
import pickle
import warnings

import h5py
import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import runs

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
X, Y = np.random.default_rng(0).normal(size=(8, 3)).astype("float32"), np.ones((8, 2), "float32")


def compiled(optimizer):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,))
    x = keras.layers.Dense(4, activation="tanh", name="body")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(2, name="head")(x))
    model.compile(optimizer, "mse", jit_compile=False)
    return model


def go_on(*models):
    for model in models:
        model.fit(X, Y, batch_size=3, shuffle=False, verbose=0)


def state(model):
    variables = [*model.variables, *model.optimizer.variables]
    return [keras.ops.convert_to_numpy(v) for v in variables if "seed" not in v.path]


def assert_same_state(a, b):
    for x, y in zip(state(a), state(b), strict=True):
        np.testing.assert_array_equal(x, y)


CHAINS = {
    "a rule": lambda: kt.LAMB(0.05, use_ema=True),
    "Keras' rule in all wrappers": lambda: kt.LossScaleOptimizer(
        kt.GradientAccumulation(kt.Lookahead(kt.AdaptiveGradientClipping(keras.optimizers.Adam(0.05)), 2), 2)
    ),
    "our rule in wrappers": lambda: kt.Lookahead(kt.GradientAccumulation(kt.SM3(0.05), 2), 2),
    "Keras' rule in loss scaling": lambda: kt.LossScaleOptimizer(keras.optimizers.SGD(0.05, momentum=0.9)),
}


@pytest.mark.parametrize(
    "make", [c if name == "Keras' rule in all wrappers" else runs.slow(c) for name, c in CHAINS.items()], ids=CHAINS
)
class TestResume:
    def test_weights_alone_into_a_model_that_was_only_compiled(self, make, tmp_path):
        model, fresh = compiled(make()), compiled(make())
        go_on(model)
        model.save_weights(tmp_path / "m.weights.h5")
        fresh.load_weights(tmp_path / "m.weights.h5")
        fresh.save_weights(tmp_path / "again.weights.h5")  # nothing is lost before the build
        fresh = compiled(make())
        fresh.load_weights(tmp_path / "again.weights.h5")
        go_on(model, fresh)
        assert_same_state(model, fresh)

    def test_copies_go_on_as_the_original(self, make):
        model = compiled(make())
        go_on(model)
        copies = [copy.deepcopy(model.optimizer), pickle.loads(pickle.dumps(model.optimizer)), copy.deepcopy(model)]
        weights = model.get_weights()
        go_on(model)
        for other in copies:
            if not isinstance(other, keras.Model):
                other = copy.deepcopy(other)  # of one that is not built yet
                optimizer, other = other, compiled(other)
                other.set_weights(weights)
                assert optimizer is other.optimizer
            go_on(other)
            assert_same_state(model, other)

    def test_a_clone_begins_anew(self, make):
        optimizer = make()
        model = compiled(optimizer)
        go_on(model)
        clone = type(optimizer).from_config(optimizer.get_config())
        assert not clone.built
        go_on(compiled(clone))
        assert keras.saving.serialize_keras_object(clone) == keras.saving.serialize_keras_object(optimizer)

    def test_all_weights_can_be_set(self, make, tmp_path):
        model, other = compiled(make()), compiled(make())
        go_on(model, other)
        values = [np.full(v.shape, 3, v.dtype) for v in model.optimizer.variables]
        other.optimizer.set_weights(values)
        for v in other.optimizer.variables:
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(v), 3)
        with pytest.raises(ValueError, match=rf"expects {len(values)} arrays.*Received {len(values) - 1}"):
            other.optimizer.set_weights(values[:-1])
        with pytest.raises(ValueError, match="needs a built optimizer"):
            make().set_weights(values)


@pytest.mark.slow
def test_weights_alone_on_replicas(tmp_path):
    make = CHAINS["Keras' rule in all wrappers"]
    with runs.strategy_of(2).scope():
        model, fresh = compiled(make()), compiled(make())
    model.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    model.save_weights(tmp_path / "m.weights.h5")
    fresh.load_weights(tmp_path / "m.weights.h5")
    for m in (model, fresh):
        m.fit(X, Y, batch_size=4, shuffle=False, verbose=0)
    assert_same_state(model, fresh)


def test_a_file_of_weights_without_an_optimizer_is_told(tmp_path):
    model = compiled("sgd")
    keras.Model(model.input, model.output).save_weights(tmp_path / "m.weights.h5")
    with pytest.warns(UserWarning, match="The file holds no state of an optimizer"):
        compiled(kt.LAMB()).load_weights(tmp_path / "m.weights.h5")


@pytest.mark.slow
def test_an_optimizer_that_was_saved_before_it_was_built_loads_without_a_word(tmp_path):
    for make in CHAINS.values():
        model = compiled(make())
        model.save(tmp_path / "m.keras")
        loaded = keras.models.load_model(tmp_path / "m.keras")
        go_on(model, loaded)
        assert_same_state(model, loaded)


class TestOtherKinds:
    """State that fits by its number, but is another optimizer's."""

    PAIRS = (
        (lambda: kt.Lookahead(keras.optimizers.Adam()), lambda: kt.GradientAccumulation(keras.optimizers.Adam(), 2)),
        (lambda: kt.LAMB(), lambda: kt.Yogi()),
    )

    @pytest.mark.parametrize("is_built", [False, True])
    @pytest.mark.parametrize(("saved", "other"), PAIRS)
    def test_both_are_named(self, saved, other, is_built, tmp_path):
        model, wrong = compiled(saved()), compiled(other())
        model.optimizer.build(model.trainable_variables)
        model.save_weights(tmp_path / "m.weights.h5")
        if is_built:
            wrong.optimizer.build(wrong.trainable_variables)
        names = type(model.optimizer).__name__, type(wrong.optimizer).__name__
        with pytest.raises(ValueError, match=r"that of the optimizer {}, and this one is {}".format(*names)):
            wrong.load_weights(tmp_path / "m.weights.h5")

    def test_the_message_says_how_to_begin_anew(self, tmp_path):
        model = compiled(kt.LAMB())
        go_on(model)
        model.save_weights(tmp_path / "m.weights.h5")
        anew = compiled(kt.Yogi())
        with pytest.warns(UserWarning, match="skip_mismatch=True"):
            anew.load_weights(tmp_path / "m.weights.h5", skip_mismatch=True)
        np.testing.assert_array_equal(anew.get_weights()[0], model.get_weights()[0])
        anew.optimizer.build(anew.trainable_variables)
        assert int(anew.optimizer.iterations) == 0

    @pytest.mark.parametrize("is_built", [False, True])
    @pytest.mark.parametrize("make", [kt.LAMB, lambda: kt.Lookahead(kt.LAMB())])
    def test_other_variables_begin_anew_with_a_warning(self, make, is_built, tmp_path):
        model, frozen = compiled(make()), compiled(make())
        go_on(model)
        model.save_weights(tmp_path / "m.weights.h5")
        frozen.layers[1].trainable = False
        frozen.compile(frozen.optimizer, "mse")

        def load_and_build():
            if is_built:
                frozen.optimizer.build(frozen.trainable_variables)
            frozen.load_weights(tmp_path / "m.weights.h5")
            frozen.optimizer.build(frozen.trainable_variables)

        with pytest.warns(UserWarning, match=r"does not fit the optimizer 'l.*It is not loaded"):
            load_and_build()
        assert int(frozen.optimizer.iterations) == 0
        go_on(frozen)


class TestNumbers:
    """What the user chose: the config says what acts."""

    def acting(self, optimizer):
        config = optimizer.get_config()
        config = config.get("optimizer", {"config": config})["config"]
        numbers = [float(optimizer.learning_rate), float(optimizer.beta_1)]
        assert numbers == pytest.approx([config["learning_rate"], config["beta_1"]], rel=1e-7)
        return numbers

    @pytest.mark.parametrize("wrap", [lambda o: o, lambda o: kt.Lookahead(o)])
    def test_those_given_at_resume_stay_and_those_of_the_file_are_told(self, wrap, tmp_path):
        model = compiled(wrap(kt.LAMB(0.5, beta_1=0.75)))
        go_on(model)
        model.save_weights(tmp_path / "m.weights.h5")
        fresh = compiled(wrap(kt.LAMB(0.25, beta_1=0.5)))
        fresh.load_weights(tmp_path / "m.weights.h5")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fresh.optimizer.build(fresh.trainable_variables)
        told = [str(w.message) for w in caught]
        assert any("`learning_rate` of the optimizer" in m and "was 0.5" in m and "stays 0.25" in m for m in told)
        assert any("`beta_1` of the optimizer" in m and "was 0.75" in m and "stays 0.5" in m for m in told)
        assert self.acting(fresh.optimizer) == [0.25, 0.5]
        assert int(fresh.optimizer.iterations) == 3

    def test_a_built_optimizer_takes_those_of_the_file_as_keras_does_with_the_rate(self, tmp_path):
        model = compiled(kt.LAMB(0.5, beta_1=0.75))
        go_on(model)
        model.optimizer.beta_1 = 0.875
        model.save_weights(tmp_path / "m.weights.h5")
        other = compiled(kt.LAMB(0.25, beta_1=0.5))
        go_on(other)
        other.load_weights(tmp_path / "m.weights.h5")
        assert self.acting(other.optimizer) == [0.5, 0.875]
        other.optimizer.set_weights([np.full(v.shape, 0.5) for v in other.optimizer.variables])
        assert self.acting(other.optimizer) == [0.5, 0.5]

    @pytest.mark.parametrize("whole", [True, False])
    def test_a_number_that_a_schedule_had_moved_is_back_after_loading(self, whole, tmp_path):
        model = compiled(kt.LARS(0.5, momentum=0.75))
        go_on(model)
        model.optimizer.momentum.assign(0.25)  # as CyclicLR does in the middle of a run
        if whole:
            model.save(tmp_path / "m.keras")
            loaded = keras.models.load_model(tmp_path / "m.keras")
        else:
            model.save_weights(tmp_path / "m.weights.h5")
            loaded = compiled(kt.LARS(0.5, momentum=0.75))
            loaded.load_weights(tmp_path / "m.weights.h5")
            loaded.optimizer.build(loaded.trainable_variables)
        assert float(loaded.optimizer.momentum) == loaded.optimizer.get_config()["momentum"] == 0.75


@pytest.mark.parametrize("name", ["wrappers.keras", "wrappers.weights.h5"])
def test_files_of_earlier_versions_load(name, tmp_path):
    def make():
        return kt.LossScaleOptimizer(kt.GradientAccumulation(kt.Lookahead(keras.optimizers.Adam(0.1)), 2))

    if name.endswith(".keras"):
        optimizer = keras.models.load_model(GOLDEN / name).optimizer
    else:
        model = compiled(make())
        model.load_weights(GOLDEN / name)
        optimizer = model.optimizer
        optimizer.build(model.trainable_variables)
    with h5py.File(GOLDEN / "wrappers.weights.h5") as file:
        saved = file["optimizer/vars"]
        values = [np.array(saved[str(index)]) for index in range(len(saved))]
    assert len(values) == len(optimizer.variables)
    assert sum(abs(v).sum() > 0 for v in values) >= 20  # it was saved after some steps
    for variable, value in zip(optimizer.variables, values, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)
