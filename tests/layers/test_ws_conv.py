import inspect

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.ops import convert_to_numpy as numpy_of

import keras_tricks as kt
from tests import reference

KINDS = {1: (kt.layers.WSConv1D, keras.layers.Conv1D), 2: (kt.layers.WSConv2D, keras.layers.Conv2D),
         3: (kt.layers.WSConv3D, keras.layers.Conv3D)}  # fmt: skip


def inputs(rank, channels=4, size=6, seed=0):
    return np.random.default_rng(seed).normal(size=(2, *[size] * rank, channels)).astype("float32")


def randomized(layer, x, seed=1):
    """Builds the layer on `x` and gives all of its weights random values."""
    layer(x)
    random = np.random.default_rng(seed)
    layer.set_weights([random.normal(size=w.shape) for w in layer.get_weights()])
    return layer


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [{}, {"strides": 2, "padding": "same"}, {"dilation_rate": 2}, {"groups": 2}, {"gain": False}, {"use_bias": False}],
    ids=str,
)
def test_is_the_plain_convolution_with_the_standardized_kernel(rank, options):
    ours, plain = KINDS[rank]
    x = inputs(rank)
    layer = randomized(ours(6, 3, activation="relu", **options), x)
    gain = numpy_of(layer.gain) if layer.gain is not None else 1.0
    same = plain(6, 3, activation="relu", **{k: v for k, v in options.items() if k != "gain"})
    same(x)
    weights = [reference.standardized_kernel(numpy_of(layer.kernel), gain)]
    same.set_weights(weights + ([numpy_of(layer.bias)] if layer.bias is not None else []))
    np.testing.assert_allclose(layer(x), same(x), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"depth_multiplier": 2, "strides": 2, "padding": "same"}], ids=str)
def test_a_depthwise_kernel_is_standardized_for_each_channel_and_multiplier_alone(options):
    x = inputs(2)
    layer = randomized(kt.layers.WSDepthwiseConv2D(3, activation="relu", **options), x)
    kernel = numpy_of(layer.kernel)
    # To the reference, every (channel, multiplier) is an output unit that sees nine inputs.
    flat = reference.standardized_kernel(kernel.reshape(3, 3, 1, -1), numpy_of(layer.gain).ravel())
    same = keras.layers.DepthwiseConv2D(3, activation="relu", **options)
    same(x)
    same.set_weights([flat.reshape(kernel.shape), numpy_of(layer.bias)])
    np.testing.assert_allclose(layer(x), same(x), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("shape", [(5, 4), (2, 3, 4)], ids=str)
def test_a_dense_kernel_is_standardized_for_each_unit(shape):
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    layer = randomized(kt.layers.WSDense(6, activation="tanh"), x)
    kernel = reference.standardized_kernel(numpy_of(layer.kernel), numpy_of(layer.gain))
    np.testing.assert_allclose(layer(x), np.tanh(x @ kernel + numpy_of(layer.bias)), rtol=2e-5, atol=2e-5)


EVERY_KIND = {
    "1D, causal": (lambda: kt.layers.WSConv1D(6, 3, padding="causal", dilation_rate=2), inputs(1)),
    "2D, groups": (lambda: kt.layers.WSConv2D(6, 3, groups=2, strides=2, padding="same", activation="relu"), inputs(2)),
    "3D, no bias": (lambda: kt.layers.WSConv3D(6, 2, use_bias=False), inputs(3)),
    "depthwise": (lambda: kt.layers.WSDepthwiseConv2D(3, depth_multiplier=2, activation="tanh"), inputs(2)),
    "dense": (lambda: kt.layers.WSDense(5, "gelu", gain=False), inputs(1)),
}


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_fused_it_is_the_plain_keras_layer_with_the_kernel_that_is_used(kind):
    make, x = EVERY_KIND[kind]
    layer = randomized(make(), x)
    (plain,) = layer.fused()
    assert type(plain) is layer.plain
    assert plain.name == layer.name
    np.testing.assert_allclose(plain(x), layer(x), rtol=1e-6, atol=1e-6)


def test_fusing_needs_a_built_layer():
    with pytest.raises(ValueError, match="not built yet"):
        kt.layers.WSConv2D(4, 3).fused()


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_the_weights_of_every_kind_are_saved(kind, tmp_path):
    make, x = EVERY_KIND[kind]
    model = keras.Sequential([keras.Input(x.shape[1:]), make()])
    randomized(model.layers[0], x)
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras")(x), model(x))


def test_a_dense_layer_takes_lora_and_refuses_to_be_quantized():
    x = np.ones((2, 4), "float32")
    layer = randomized(kt.layers.WSDense(6), x)
    before = np.array(layer(x))
    layer.enable_lora(2)
    np.testing.assert_allclose(layer(x), before, atol=1e-6)
    with pytest.raises(ValueError, match="cannot be quantized"):
        layer.quantize("int8")


def test_causal_padding_looks_at_the_past_only():
    layer = randomized(kt.layers.WSConv1D(6, 3, padding="causal", dilation_rate=2), inputs(1))
    x, changed = inputs(1), inputs(1)
    changed[:, 4:] = 0
    assert layer(x).shape == (2, 6, 6)
    np.testing.assert_allclose(layer(x)[:, :4], layer(changed)[:, :4], atol=1e-6)
    assert np.abs(layer(x)[:, 4:] - layer(changed)[:, 4:]).max() > 0.1


@pytest.mark.parametrize("filters", [6, 4], ids=["as many as columns", "others"])
def test_channels_first_is_the_same_convolution(filters):
    x = inputs(2, size=8)  # 6 columns come out, where the bias must not be taken for one along them
    last = randomized(kt.layers.WSConv2D(filters, 3), x)
    first = kt.layers.WSConv2D(filters, 3, data_format="channels_first")
    first.build((2, 4, 8, 8))
    first.set_weights(last.get_weights())
    np.testing.assert_allclose(
        np.moveaxis(np.array(first(np.moveaxis(x, -1, 1))), 1, -1), last(x), rtol=2e-5, atol=2e-5
    )


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-1, 1e3), st.floats(-10, 10), st.integers(0, 1000))
def test_each_output_channel_has_mean_zero_and_squares_that_sum_to_its_gain_squared(size, shift, seed):
    layer = randomized(kt.layers.WSConv2D(5, 3), inputs(2), seed)
    kernel = size * numpy_of(layer.kernel) + shift
    used = np.array(layer.standardize(kernel)).reshape(-1, 5)
    np.testing.assert_allclose(used.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose((used**2).sum(axis=0), numpy_of(layer.gain) ** 2, rtol=2e-3)


def test_normal_inputs_give_outputs_of_variance_one():
    layer = kt.layers.WSConv2D(64, 3)
    outputs = np.array(layer(inputs(2, channels=32, size=24)))
    assert outputs.var() == pytest.approx(1, rel=0.05)


def test_a_constant_kernel_gives_zero_and_a_tiny_one_is_not_blown_up():
    layer = kt.layers.WSConv2D(3, 3, kernel_initializer="ones")
    assert np.abs(layer(inputs(2))).max() == 0
    tiny = 1e-6 * np.random.default_rng(0).normal(size=(3, 3, 4, 3))
    np.testing.assert_allclose(layer.standardize(tiny), reference.standardized_kernel(tiny), rtol=1e-4)
    assert np.abs(layer.standardize(tiny)).max() < 1e-3


@pytest.mark.parametrize(("policy", "dtype"), [("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16")])
def test_the_kernel_is_standardized_in_float32_under_mixed_precision(policy, dtype):
    x = inputs(2)
    exact = randomized(kt.layers.WSConv2D(6, 3), x)
    # A large mean: in half precision the differences to it would have lost their digits.
    weights = [exact.get_weights()[0] * 1e-3 + 1, *exact.get_weights()[1:]]
    exact.set_weights(weights)
    half = kt.layers.WSConv2D(6, 3, dtype=policy)
    assert half(x).dtype == dtype
    half.set_weights(weights)
    assert half.kernel.dtype == half.gain.dtype == "float32"
    np.testing.assert_allclose(keras.ops.cast(half(x), "float32"), exact(x), atol=0.1 if dtype == "bfloat16" else 0.02)


def test_weights_alone_are_saved_and_loaded(tmp_path):
    x = inputs(2)
    model = keras.Sequential([keras.Input(x.shape[1:]), kt.layers.WSConv2D(6, 3), kt.layers.WSConv2D(4, 3, gain=False)])
    randomized(model.layers[0], x)
    model.save_weights(tmp_path / "m.weights.h5")
    fresh = keras.models.clone_model(model)
    fresh.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(fresh(x), model(x))


def test_lora_acts_on_the_kernel_before_it_is_standardized_and_is_saved(tmp_path):
    x = inputs(2)
    model = keras.Sequential([keras.Input(x.shape[1:]), kt.layers.WSConv2D(6, 3)])
    layer = randomized(model.layers[0], x)
    before = np.array(model(x))
    layer.enable_lora(2)
    assert len(kt.layers.WSConv2D(6, 3, lora_rank=2)(x).shape) == 4  # also when asked for at construction
    np.testing.assert_allclose(model(x), before, atol=1e-5)  # it starts at zero
    layer.lora_kernel_b.assign(np.random.default_rng(0).normal(size=layer.lora_kernel_b.shape))
    assert np.abs(np.array(model(x)) - before).max() > 0.1
    merged = reference.standardized_kernel(numpy_of(layer.kernel), numpy_of(layer.gain))
    np.testing.assert_allclose(layer.standardize(layer.kernel), merged, rtol=1e-4, atol=1e-6)
    model.save(tmp_path / "m.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "m.keras")(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_gradient_of_a_channel_is_orthogonal_to_its_kernel():
    # The output does not depend on a kernel's size or mean, so the loss cannot fall along either.
    import tensorflow as tf

    layer = randomized(kt.layers.WSConv2D(6, 3), inputs(2))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.sin(layer(inputs(2))))
    gradient = tape.gradient(loss, layer.kernel.value).numpy().reshape(-1, 6)
    kernel = numpy_of(layer.kernel).reshape(-1, 6)
    size = np.linalg.norm(gradient, axis=0)
    assert (size > 1e-3).all()
    np.testing.assert_allclose(gradient.sum(axis=0) / size, 0, atol=1e-4)
    np.testing.assert_allclose((gradient * (kernel - kernel.mean(axis=0))).sum(axis=0) / size, 0, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "channels"), [({"kernel_size": 1}, 1), ({"kernel_size": 1, "groups": 4, "filters": 4}, 4)], ids=str
)
def test_a_kernel_of_one_weight_is_refused_with_the_reason(options, channels):
    layer = kt.layers.WSConv2D(**{"filters": 4, **options})
    with pytest.raises(ValueError, match="standardising a single weight makes it 0"):
        layer.build((None, 8, 8, channels))


@pytest.mark.parametrize("epsilon", [0, -1e-4, float("inf")])
def test_epsilon_must_be_positive(epsilon):
    with pytest.raises(ValueError, match="`epsilon` must be greater than 0"):
        kt.layers.WSConv2D(4, 3, epsilon=epsilon)


@pytest.mark.parametrize("name", ["Conv1D", "Conv2D", "Conv3D", "DepthwiseConv2D", "Dense"])
def test_the_signature_names_the_arguments_of_the_keras_layer(name):
    plain, ours = (
        inspect.signature(cls).parameters for cls in (getattr(keras.layers, name), getattr(kt.layers, f"WS{name}"))
    )
    assert list(ours)[:-3] == list(plain)[:-1]
    assert list(ours)[-3:] == ["gain", "epsilon", "kwargs"]
    assert ours["activation"].default is None
    if name == "Conv2D":  # and they can be given by position, by the name, and from the config
        layer = kt.layers.WSConv2D(4, 3, 2, "same", gain=False)
        assert (layer.filters, layer.strides, layer.padding) == (4, (2, 2), "same")
        assert type(layer).from_config(layer.get_config()).get_config() == layer.get_config()


def test_it_learns_without_normalisation():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = digits.images[..., None].astype("float32") / 16, digits.target
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            *[kt.layers.WSConv2D(16, 3, activation="relu", padding="same", strides=s) for s in (1, 2, 2)],
            keras.layers.Flatten(),
            keras.layers.Dense(10),
        ]
    )
    model.compile(kt.LAMB(0.02), keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    model.fit(x[:1400], y[:1400], batch_size=50, epochs=4, verbose=0)
    assert model.evaluate(x[1400:], y[1400:], verbose=0)[1] > 0.9
