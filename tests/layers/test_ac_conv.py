import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.ops import convert_to_numpy as numpy_of

from keras_tricks.layers import ACConv2D, ExtendedBatchNormalization
from tests import reference, runs


def inputs(height=6, width=7, channels=4, seed=0):
    return np.random.default_rng(seed).normal(size=(3, height, width, channels)).astype("float32")


def randomized(layer, x, seed=1):
    """Builds the layer on `x`; random kernels, gammas, betas and moving statistics."""
    layer(x)
    random = np.random.default_rng(seed)
    layer.set_weights(
        [
            random.uniform(0.5, 2, size=w.shape) if "normalization" in w.path else random.normal(size=w.shape)
            for w in layer.weights
        ]
    )
    return layer


@st.composite
def geometries(draw):
    strides = draw(st.one_of(st.integers(1, 3), st.sampled_from([(1, 2), (2, 1), (3, 2)])))
    return {
        "kernel_size": draw(st.sampled_from([3, 5, (3, 5), (5, 3)])),
        "strides": strides,
        "dilation_rate": draw(st.sampled_from([1, 2])) if strides == 1 else 1,
        "padding": draw(st.sampled_from(["same", "valid"])),
        "groups": draw(st.sampled_from([1, 2])),
        "normalization": draw(st.sampled_from(["batch", "extended_batch"])),
        "use_bias": draw(st.booleans()),
    }


@settings(max_examples=30, deadline=None)
@given(geometries(), st.integers(5, 9), st.integers(5, 9))
def test_fused_it_computes_the_same_for_every_geometry(geometry, height, width):
    if geometry["padding"] == "valid" and geometry["dilation_rate"] == 2:
        height, width = height + 4, width + 4  # so that a window fits
    x = inputs(height, width)
    layer = randomized(ACConv2D(4, activation="tanh", **geometry), x)
    (fused,) = layer.fused()
    assert type(fused) is keras.layers.Conv2D
    assert fused.name == layer.name
    np.testing.assert_allclose(fused(x), layer(x), rtol=1e-3, atol=2e-5)


CASES = [
    {},
    {"padding": "same"},
    {"padding": "same", "strides": 2},
    {"padding": "same", "strides": (3, 2), "kernel_size": (3, 5)},
    {"strides": 2, "kernel_size": (5, 3)},
    {"padding": "same", "dilation_rate": 2},
    {"padding": "same", "strides": 2, "groups": 2},
    {"normalization": "extended_batch", "use_bias": False},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_training_sums_three_normalized_convolutions_around_the_same_middle(case):
    x = inputs()
    layer = randomized(ACConv2D(**{"filters": 4, "kernel_size": 3, **case}), x)
    kernels = [numpy_of(k).astype("float64") for k in (layer.kernel, layer.row_kernel, layer.column_kernel)]

    def normalize(normalization):
        def normalized(branch):
            variances = branch.var((0, 1, 2))
            variance = variances.mean() if layer.normalization == "extended_batch" else variances
            beta = numpy_of(normalization.beta) if layer.use_bias else 0
            return numpy_of(normalization.gamma) * (branch - branch.mean((0, 1, 2))) / np.sqrt(variance + 1e-3) + beta

        return normalized

    expected = reference.asymmetric_convolution(
        x,
        kernels,
        [normalize(n) for n in (layer.square_normalization, layer.row_normalization, layer.column_normalization)],
        layer.strides,
        layer.padding,
        layer.dilation_rate[0],
        layer.groups,
    )
    y = layer(x, training=True)
    assert layer.compute_output_shape(x.shape) == tuple(y.shape)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)


def test_channels_first_is_the_same_block():
    # Not 4 filters: Keras 3.15 adds the bias of a channels-first Conv2D along a last axis of that length.
    x = inputs()
    last = randomized(ACConv2D(5, 3, strides=2, padding="same"), x)
    first = ACConv2D(5, 3, strides=2, padding="same", data_format="channels_first")
    first.build((None, 4, 6, 7))
    first.set_weights(last.get_weights())
    flipped = np.moveaxis(x, -1, 1)
    np.testing.assert_allclose(np.moveaxis(np.array(first(flipped)), 1, -1), last(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(first.fused()[0](flipped), first(flipped), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_sizes_unknown_when_it_is_traced_are_no_different(compiled):
    layer = ACConv2D(4, 5, strides=2, padding="same")
    layer.build((None, None, None, 4))
    randomized(layer, inputs(8, 8))
    step = tf.function(lambda x: layer(x), jit_compile=compiled, input_signature=[tf.TensorSpec((None, None, None, 4))])
    for height, width in ((6, 7), (9, 5)):
        x = inputs(height, width)
        np.testing.assert_allclose(step(x), layer.fused()[0](x), rtol=1e-3, atol=2e-5)


def test_kernel_and_bias_are_fused_in_float64_from_what_training_left():
    run = runs.train(lambda: keras.optimizers.SGD(0.1, momentum=0.9), network=small_network, epochs=3)
    layer, (x, _) = run.model.layers[0], runs.images()
    kernel, bias = layer.fused_kernel_and_bias()
    assert kernel.dtype == bias.dtype == "float64"
    (fused,) = layer.fused()
    np.testing.assert_allclose(fused.kernel, kernel, rtol=1e-6)
    np.testing.assert_allclose(fused(x), layer(x), rtol=1e-4, atol=1e-5)
    assert np.abs(numpy_of(layer.row_normalization.moving_mean)).max() > 1e-3


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_fused_in_mixed_precision_it_keeps_the_policy_and_float32_weights(policy):
    x = inputs()
    layer = randomized(ACConv2D(4, 3, dtype=policy), x)
    exact = ACConv2D(4, 3)
    exact.build(x.shape)
    exact.set_weights(layer.get_weights())
    (fused,) = layer.fused()
    assert fused.dtype_policy.name == policy
    assert fused.kernel.dtype == layer.row_kernel.dtype == "float32"
    for half in (fused(x), layer(x)):
        assert half.dtype == fused.compute_dtype
        size = np.abs(np.array(exact(x))).max()
        np.testing.assert_allclose(
            keras.ops.cast(half, "float32") / size, exact(x) / size, atol=2e-2 if policy == "mixed_bfloat16" else 3e-3
        )


@pytest.mark.parametrize(("gamma", "values"), [("ones", (1, 1, 1)), ("thirds", [1 / 3] * 3), ("single", (1, 0, 0))])
def test_gammas_start_as_asked(gamma, values):
    layer = ACConv2D(4, 3, gamma=gamma)
    layer.build((None, 6, 6, 2))
    for normalization, value in zip(layer._normalizations(), values, strict=True):
        np.testing.assert_allclose(normalization.gamma, value)


def test_single_starts_as_one_convolution_with_batch_normalization():
    x = inputs()
    layer, plain = ACConv2D(4, 3, gamma="single"), keras.layers.Conv2D(4, 3, use_bias=False)
    layer.build(x.shape)
    plain.build(x.shape)
    plain.kernel.assign(layer.kernel)
    normalized = keras.layers.BatchNormalization()(plain(x), training=True)
    np.testing.assert_allclose(layer(x, training=True), normalized, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("initializer", ["glorot_uniform", keras.initializers.HeNormal(seed=3)], ids=["unseeded", "3"])
def test_branches_do_not_start_from_the_same_numbers(initializer):
    layer = ACConv2D(4, 3, kernel_initializer=initializer)
    layer.build((None, 6, 6, 2))
    row, column = numpy_of(layer.row_kernel).ravel(), numpy_of(layer.column_kernel).ravel()
    assert abs(np.corrcoef(row, column)[0, 1]) < 0.6
    if not isinstance(initializer, str):
        again = ACConv2D.from_config(layer.get_config())
        again.build((None, 6, 6, 2))
        np.testing.assert_array_equal(again.row_kernel, layer.row_kernel)


def test_regularizers_constraints_and_initializers_reach_every_branch():
    layer = ACConv2D(
        4, 3, kernel_regularizer="l2", kernel_constraint="non_neg", bias_initializer="ones", bias_regularizer="l1",
        kernel_initializer="ones", activity_regularizer="l2", momentum=0.5, epsilon=0.01,
    )  # fmt: skip
    layer.build((None, 6, 6, 2))
    assert len(layer.losses) == 6
    kernels = (layer.kernel, layer.row_kernel, layer.column_kernel)
    assert all(numpy_of(k).min() == 1 and k.constraint is not None for k in kernels)
    betas = [numpy_of(n.beta).max() for n in layer._normalizations()]
    assert betas == [1, 0, 0]
    assert all((n.momentum, n.epsilon) == (0.5, 0.01) for n in layer._normalizations())
    assert len(layer.trainable_weights) == 9
    (fused,) = layer.fused()
    assert fused.losses == []


def test_saved_and_loaded_it_is_the_same_also_by_weights_alone_and_exported(tmp_path):
    x = inputs()
    model = keras.Sequential(
        [
            keras.Input(x.shape[1:]),
            ACConv2D(4, 3, activation="relu", padding="same", strides=2),
            ACConv2D(3, 3, normalization="extended_batch", gamma="thirds"),
        ]
    )
    for layer in model.layers:
        randomized(layer, np.ones((1, *layer.input.shape[1:]), "float32"))
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras")(x), model(x))
    model.save_weights(tmp_path / "m.weights.h5")
    fresh = keras.models.clone_model(model)
    fresh.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(fresh(x), model(x))
    model.export(tmp_path / "saved", verbose=False)
    exported = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(exported.serve(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "has no middle.*Use 5 or 3"),
        ({"kernel_size": (3, 2)}, "has no middle.*Use 3 or 3"),
        ({"kernel_size": 1}, "same shape at the same place"),
        ({"kernel_size": (1, 3)}, "same shape at the same place"),
        ({"normalization": "layer"}, "'batch' or 'extended_batch'. Received: normalization='layer'"),
        ({"gamma": 1}, "'ones', 'thirds' or 'single'. Received: gamma=1"),
        ({"groups": 3}, "divisible by the number of groups"),
        ({"lora_rank": 2}, "has no LoRA"),
        ({"epsilon": -1e-3}, "`epsilon` must be at least 0"),
        ({"momentum": 1.5}, "`momentum` must be at least 0 and at most 1"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_with_the_reason(options, message):
    with pytest.raises(ValueError, match=message):
        ACConv2D(**{"filters": 4, "kernel_size": 3, **options})


def test_wrong_inputs_and_calls_out_of_order_are_refused():
    with pytest.raises(ValueError, match="divisible by the number of groups"):
        ACConv2D(4, 3, groups=2).build((None, 6, 6, 3))
    with pytest.raises(ValueError, match="expected ndim=4"):
        ACConv2D(4, 3)(np.ones((6, 6, 3), "float32"))
    with pytest.raises(ValueError, match="no weights yet"):
        ACConv2D(4, 3).fused()
    with pytest.raises(ValueError, match="has no LoRA"):
        ACConv2D(4, 3).enable_lora(2)


def small_network(**options):
    return runs.small_network(lambda *args, **kwargs: ACConv2D(*args, **kwargs, **options))


@pytest.mark.parametrize(("mode", "replicas"), [("xla", 1), ("graph", 2)])
def test_training_with_synchronized_statistics_is_the_same_everywhere(mode, replicas):
    def network():
        return small_network(normalization="extended_batch", synchronized=True)

    plain = runs.train(lambda: keras.optimizers.SGD(0.1), "graph", network=network, epochs=1)
    other = runs.train(lambda: keras.optimizers.SGD(0.1), mode, replicas, network=network, epochs=1)
    assert isinstance(other.model.layers[0].row_normalization, ExtendedBatchNormalization)
    runs.assert_same_weights(plain, other, 2e-5)
