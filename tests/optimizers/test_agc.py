import gc

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_tricks as kt
from keras_tricks.optimizers._unit_axes import unit_axes
from tests import reference, runs

L = keras.layers


def sgd(**options):
    return keras.optimizers.SGD(1.0, **options)


LAYOUTS = [
    (lambda: L.Dense(4), (3,), {"kernel": (0,), "bias": (0,)}),
    (lambda: L.Conv1D(4, 3), (8, 2), {"kernel": (0, 1)}),
    (lambda: L.Conv2D(4, 3), (8, 8, 2), {"kernel": (0, 1, 2)}),
    (lambda: L.Conv2D(4, 3, groups=2), (8, 8, 4), {"kernel": (0, 1, 2)}),
    (lambda: L.Conv3D(4, 3), (4, 4, 4, 2), {"kernel": (0, 1, 2, 3)}),
    (lambda: L.DepthwiseConv1D(3, depth_multiplier=2), (8, 3), {"kernel": (0,)}),
    (lambda: L.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 3), {"kernel": (0, 1)}),
    (lambda: L.SeparableConv1D(4, 3), (8, 2), {"depthwise_kernel": (0,), "pointwise_kernel": (0, 1)}),
    (lambda: L.SeparableConv2D(4, 3), (8, 8, 2), {"depthwise_kernel": (0, 1), "pointwise_kernel": (0, 1, 2)}),
    (lambda: L.Conv1DTranspose(4, 3), (8, 2), {"kernel": (0, 2)}),
    (lambda: L.Conv2DTranspose(4, 3), (8, 8, 2), {"kernel": (0, 1, 3)}),
    (lambda: L.Conv3DTranspose(4, 3), (4, 4, 4, 2), {"kernel": (0, 1, 2, 4)}),
    (lambda: L.Embedding(7, 3), (5,), {"embeddings": (1,)}),
    (lambda: L.Embedding(7, 3, lora_rank=2), (5,), {"lora_embeddings_a": (1,), "lora_embeddings_b": (0,)}),
    (lambda: L.ReversibleEmbedding(7, 3, tie_weights=False), (5,), {"embeddings": (1,), "reverse_embeddings": (0,)}),
    (lambda: L.EinsumDense("abc,cde->abde", (None, 4, 5)), (6, 3), {"kernel": (0,)}),
    (lambda: L.EinsumDense("...cd,cde->...e", (5,)), (3, 4), {"kernel": (0, 1)}),
    (lambda: L.LSTM(3), (4, 2), {"kernel": (0,), "recurrent_kernel": (0,), "bias": (0,)}),
    (lambda: L.GRU(3), (4, 2), {"bias": (0, 1)}),
    (lambda: kt.layers.WSConv2D(4, 3), (8, 8, 2), {"kernel": (0, 1, 2), "gain": (0,)}),
    (lambda: L.BatchNormalization(), (5,), {"gamma": (0,), "beta": (0,)}),
]


@pytest.mark.parametrize(("layer", "shape", "axes"), LAYOUTS, ids=lambda x: "")
def test_units_are_where_the_layer_has_them_whatever_its_name(layer, shape, axes):
    layer = layer()
    layer.name = "called_as_i_like"
    layer.build((None, *shape))
    found = dict(zip([v.name for v in layer.trainable_variables], unit_axes(layer.trainable_variables), strict=True))
    assert {name: found[name] for name in axes} == axes


def test_attention_projections_have_a_unit_for_each_feature_of_each_head():
    layer = L.MultiHeadAttention(2, 4, name="attention")
    layer.build((None, 5, 6), (None, 5, 6))
    found = {v.path: axes for v, axes in zip(layer.variables, unit_axes(layer.variables), strict=True)}
    assert found["attention/query/kernel"] == (0,)
    assert found["attention/attention_output/kernel"] == (0, 1)


def test_layers_that_cannot_be_seen_are_not_passed_over_without_a_word():
    layer = L.DepthwiseConv2D(3)
    layer.build((None, 8, 8, 2))
    gc.freeze()
    try:
        with pytest.warns(UserWarning, match=r"`gc.freeze\(\)` hides layers"):
            unit_axes(layer.trainable_variables)
    finally:
        gc.unfreeze()
    assert unit_axes(layer.trainable_variables)[0] == (0, 1)


def test_vectors_in_disguise_are_one_unit_and_variables_without_a_layer_follow_their_rank():
    shapes = [(), (3,), (1, 1, 1, 5), (1, 5), (4, 1), (3, 4), (2, 3, 4)]
    variables = [keras.Variable(np.zeros(shape)) for shape in shapes]
    assert unit_axes(variables) == [(), (0,), (0, 1, 2, 3), (0, 1), (0, 1), (0,), (0, 1)]


def test_one_step_equals_the_formula_unit_by_unit():
    layers = [make() for make, _, _ in LAYOUTS]
    for layer, (_, shape, _) in zip(layers, LAYOUTS, strict=True):
        layer.build((None, *shape))
    variables = [v for layer in layers for v in layer.trainable_variables]
    random = np.random.default_rng(0)
    before = [keras.ops.convert_to_numpy(v) for v in variables]
    gradients = [0.2 * random.normal(size=w.shape) * random.random(w.shape) ** 4 for w in before]
    optimizer = kt.AdaptiveGradientClipping(sgd(), 0.3)
    optimizer.apply([keras.ops.convert_to_tensor(g, "float32") for g in gradients], variables)
    for v, w, g, axes in zip(variables, before, gradients, unit_axes(variables), strict=True):
        expected = w - reference.unitwise_clipped(g, w, axes, 0.3)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(v), expected, rtol=2e-5, atol=2e-6, err_msg=v.path)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1000), st.floats(1e-3, 1.0), st.floats(1e-3, 1e3))
def test_clipped_norms_never_exceed_the_limit_and_small_gradients_pass(seed, clipping, size):
    w, (g,) = runs.numbers((6, 5), "float64", count=1, seed=seed)
    g = g * size
    got = w - runs.steps(kt.AdaptiveGradientClipping(sgd(), clipping), w, [g])
    limit = clipping * np.maximum(np.linalg.norm(w, axis=0), 1e-3)
    assert (np.linalg.norm(got, axis=0) <= limit * (1 + 1e-6)).all()
    small = np.linalg.norm(g, axis=0) <= limit
    np.testing.assert_allclose(got[:, small], g[:, small], rtol=1e-6)


@pytest.mark.parametrize("g", [0.0, np.nan, np.inf])
def test_zero_gradients_stay_zero_and_non_finite_ones_are_not_hidden(g):
    got = runs.steps(kt.AdaptiveGradientClipping(sgd()), np.ones((2, 3), "float32"), [np.full((2, 3), g, "float32")])
    assert (got == 1).all() if g == 0 else not np.isfinite(got).any()


def test_the_clip_rate_counts_units():
    w = np.ones((4, 5), "float32")
    g = np.zeros((4, 5), "float32")
    g[:, :2] = 10
    optimizer = kt.AdaptiveGradientClipping(sgd(), 0.1)
    runs.steps(optimizer, w, [g])
    assert float(optimizer.clip_rate) == pytest.approx(2 / 5)


def test_the_clip_rate_can_be_logged(replicas):
    def log(epoch, logs):
        logs["clip_rate"] = float(run_model[0].optimizer.clip_rate)

    run_model = []
    keep = keras.callbacks.LambdaCallback(on_epoch_end=log)
    keep.set_model = lambda model: run_model.append(model)
    make = lambda: kt.AdaptiveGradientClipping(keras.optimizers.SGD(0.1), 1e-4)  # noqa: E731
    run = runs.train(make, replicas=replicas, callbacks=[keep])
    assert run.model.history.history["clip_rate"] == [1.0, 1.0]


def test_exclusions_name_paths_layers_or_variables_and_survive_saving(tmp_path):
    model = keras.Sequential([keras.Input((3,)), L.Dense(4, name="body"), L.Dense(2, name="head")])
    for exclude in (["head/kernel"], [model.get_layer("head").kernel]):
        optimizer = kt.AdaptiveGradientClipping(sgd(), exclude=exclude)
        model.compile(optimizer, "mse")
        model.fit(np.ones((4, 3)), np.ones((4, 2)), verbose=0)
        assert optimizer.unit_axes == [(0,), (0,), None, (0,)]
        model.save(tmp_path / "m.keras")
        assert keras.models.load_model(tmp_path / "m.keras").optimizer.unit_axes == optimizer.unit_axes
    with pytest.raises(ValueError, match="`exclude`: 'haed' matches none"):
        kt.AdaptiveGradientClipping(sgd(), exclude=["haed"]).build(model.trainable_variables)


def test_it_clips_what_is_aggregated_and_accumulated():
    # The limit is so low that clipping each replica's or each batch's own gradient would change the result.
    clip = lambda optimizer: kt.AdaptiveGradientClipping(optimizer, 0.01)  # noqa: E731
    large = runs.train(lambda: clip(keras.optimizers.SGD(1.0)), batch=16, epochs=1)
    unclipped = runs.train(lambda: keras.optimizers.SGD(1.0), batch=16, epochs=1)
    assert max(np.abs(a - b).max() for a, b in zip(large.weights, unclipped.weights, strict=True)) > 0.05
    inside = runs.train(lambda: clip(kt.GradientAccumulation(keras.optimizers.SGD(1.0), 2)), replicas=2, epochs=1)
    outside = runs.train(lambda: kt.GradientAccumulation(clip(keras.optimizers.SGD(1.0)), 2), replicas=2, epochs=1)
    base = runs.train(lambda: clip(keras.optimizers.SGD(1.0, gradient_accumulation_steps=2)), replicas=2, epochs=1)
    for small in (inside, outside, base):
        runs.assert_same_weights(large, small, 2e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optimizer": "sgd"}, TypeError, "wraps a Keras optimizer"),
        ({"clipping": 0}, ValueError, "`clipping` must be greater than 0"),
        ({"clipping": "0.01"}, TypeError, "`clipping` must be a number"),
        ({"epsilon": 0}, ValueError, "`epsilon` must be greater than 0"),
        (
            {"clipnorm": 1.0},
            ValueError,
            r"`clipnorm` belongs to the wrapped optimizer: .*\(SGD\(\.\.\., clipnorm=1.0\)",
        ),
        ({"clip": 0.01}, TypeError, "AdaptiveGradientClipping has no argument `clip`"),
        ({"exclude": [1]}, TypeError, "`exclude` expects"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        kt.AdaptiveGradientClipping(**{"optimizer": sgd(), **arguments})
