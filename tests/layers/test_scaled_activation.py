import keras
import numpy as np
import pytest

import keras_tricks as kt

# algorithms: by adaptive quadrature.
EXACT = {
    "linear": 1.0, "celu": 1.2708434179, "elu": 1.2708434179, "gelu": 1.7009262434, "relu": 1.7128585505,
    "relu6": 1.7128585550, "selu": 1.0, "sigmoid": 4.8013133720, "silu": 1.7871872221, "softsign": 2.3375333631,
    "softplus": 1.9191259801, "tanh": 1.5925374197, "mish": 1.5920253811, "hard_silu": 1.8138714738,
    "log_sigmoid": 1.9191259801,
}  # fmt: skip


@keras.saving.register_keras_serializable(package="test_scaled_activation")
def squared_relu(x):
    return keras.ops.square(keras.ops.relu(x))


@pytest.mark.parametrize("name", EXACT)
def test_gamma_is_exact(name):
    assert kt.layers.ScaledActivation(name).gamma == pytest.approx(EXACT[name], rel=2e-8)


def test_gamma_of_any_function_is_integrated():
    assert kt.layers.ScaledActivation(squared_relu).gamma == pytest.approx(0.8944271910, rel=1e-7)
    leaky = kt.layers.ScaledActivation(lambda x: keras.activations.leaky_relu(x, 0.01))
    assert leaky.gamma == pytest.approx(1.7048316272, rel=1e-7)
    tanh_gelu = kt.layers.ScaledActivation(lambda x: keras.activations.gelu(x, approximate=True))
    assert tanh_gelu.gamma == pytest.approx(1.7009165617, rel=1e-7)


@pytest.mark.parametrize("name", ["relu", "silu", "tanh", "sigmoid"])
def test_normal_inputs_come_out_with_variance_one(name):
    z = np.random.default_rng(0).normal(size=1_000_000).astype("float32")
    assert np.var(kt.layers.ScaledActivation(name)(z)) == pytest.approx(1, rel=0.01)


def test_it_is_the_activation_times_gamma_in_every_precision(precision):
    x = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    layer = kt.layers.ScaledActivation("silu", dtype=precision)
    expected = layer.gamma * x / (1 + np.exp(-x))
    tolerance = {"float32": 1e-5, "mixed_float16": 2e-3, "mixed_bfloat16": 2e-2}[precision]
    np.testing.assert_allclose(keras.ops.cast(layer(x), "float32"), expected, rtol=tolerance, atol=tolerance)


def test_a_function_is_saved_by_its_name_and_loaded(tmp_path):
    model = keras.Sequential([keras.Input((3,)), kt.layers.ScaledActivation(squared_relu)])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.layers[0].gamma == model.layers[0].gamma


def test_fused_it_is_two_plain_layers_that_compute_the_same():
    x = np.random.default_rng(0).normal(size=(4, 5)).astype("float32")
    layer = kt.layers.ScaledActivation("gelu", name="act")
    first, second = layer.fused()
    assert (type(first), type(second)) == (keras.layers.Activation, keras.layers.Rescaling)
    assert first.name == "act"
    np.testing.assert_allclose(second(first(x)), layer(x), rtol=1e-6)


@pytest.mark.parametrize("activation", ["softmax", "log_softmax", "glu"])
def test_activations_that_mix_elements_are_refused(activation):
    with pytest.raises(ValueError, match="act on each element alone"):
        kt.layers.ScaledActivation(activation)


@pytest.mark.parametrize(
    ("activation", "match"),
    [
        (lambda x: 0 * x, "variance above 0"),
        (lambda x: keras.ops.log(x), "variance above 0"),
        (keras.layers.LeakyReLU(), "pass the function"),
        ("no_such_activation", "no_such_activation"),
    ],
    ids=["constant", "not finite", "layer", "unknown"],
)
def test_what_has_no_variance_or_is_no_function_is_refused(activation, match):
    with pytest.raises(ValueError, match=match):
        kt.layers.ScaledActivation(activation)


def test_integers_are_refused_early_with_what_to_do():
    layer = kt.layers.ScaledActivation("relu")
    for x in (np.ones((2, 3), "int32"), keras.Input((3,), dtype="int32")):
        with pytest.raises(ValueError, match=r"expects inputs in floating point.*int32: cast them first"):
            layer(x)


def test_a_deep_network_of_standardized_kernels_keeps_the_size_of_its_signals():
    x = np.random.default_rng(0).normal(size=(256, 128)).astype("float32")
    for seed in range(30):
        dense = kt.layers.WSDense(128, kernel_initializer=keras.initializers.RandomNormal(seed=seed))
        x = kt.layers.ScaledActivation("relu")(dense(x))
    assert 0.5 < np.var(x) < 2
