import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.ops import convert_to_numpy as numpy_of

import keras_tricks as kt
from tests import reference


def inputs(shape=(6, 5), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize("shape", [(6, 5), (2, 3, 5)], ids=str)
def test_outputs_are_the_cosines_times_the_scale(shape):
    layer = kt.layers.NormalizedDense(4, scale=16)
    x = inputs(shape)
    np.testing.assert_allclose(layer(x), reference.cosines(x, numpy_of(layer.kernel), 16), rtol=1e-5, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(1e-3, 1e3))
def test_the_length_of_inputs_and_columns_does_not_matter(input_length, column_length):
    layer = kt.layers.NormalizedDense(4)
    x = inputs()
    before = np.array(layer(x))
    layer.kernel.assign(layer.kernel * column_length)
    np.testing.assert_allclose(layer(x * np.float32(input_length)), before, rtol=1e-4, atol=1e-5)


def test_zeros_give_zero_and_finite_gradients():
    import tensorflow as tf

    layer = kt.layers.NormalizedDense(3)
    layer.build((None, 5))
    layer.kernel.assign(np.concatenate([np.zeros((5, 1)), np.ones((5, 2))], axis=1))
    x = tf.Variable(np.concatenate([np.zeros((1, 5)), np.ones((1, 5))]).astype("float32"))
    with tf.GradientTape() as tape:
        y = layer(x)
        loss = tf.reduce_sum(y**2)
    assert np.abs(y[0]).max() == 0
    assert np.abs(y[:, 0]).max() == 0
    np.testing.assert_allclose(y[1, 1:], 1, rtol=1e-6)
    for gradient in tape.gradient(loss, [x, layer.kernel.value]):
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize(("policy", "dtype"), [("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16")])
def test_norms_are_in_float32_under_mixed_precision(policy, dtype):
    x = 200 * inputs((6, 512))  # their squares sum to 2e7, far beyond float16
    exact = kt.layers.NormalizedDense(4)
    exact(x)
    half = kt.layers.NormalizedDense(4, dtype=policy)
    assert half(x).dtype == dtype
    half.set_weights(exact.get_weights())
    np.testing.assert_allclose(keras.ops.cast(half(x), "float32"), exact(x), atol=0.02)


def test_fused_it_is_two_plain_layers_that_compute_the_same():
    layer = kt.layers.NormalizedDense(4, scale=8, name="head")
    x = inputs()
    layer(x)
    unit, dense = layer.fused()
    assert (type(unit), type(dense)) == (keras.layers.UnitNormalization, keras.layers.Dense)
    np.testing.assert_allclose(dense(unit(x)), layer(x), rtol=1e-5, atol=1e-6)


def test_it_learns_a_classifier():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = digits.data.astype("float32") / 16, digits.target
    model = keras.Sequential(
        [keras.Input((64,)), keras.layers.Dense(64, "relu"), kt.layers.NormalizedDense(10, scale=16)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, metrics=["accuracy"])
    model.fit(x[:1400], y[:1400], batch_size=50, epochs=4, verbose=0)
    assert model.evaluate(x[1400:], y[1400:], verbose=0)[1] > 0.88


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"units": 0}, ValueError, "`units` must be at least 1"),
        ({"units": 2.5}, TypeError, "`units` must be an integer"),
        ({"units": 3, "scale": 0}, ValueError, "`scale` must be greater than 0"),
        ({"units": 3, "scale": "16"}, TypeError, "`scale` must be a number"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        kt.layers.NormalizedDense(**options)


def test_an_unknown_last_axis_and_fusing_before_it_is_built_are_refused():
    with pytest.raises(ValueError, match="size of its input's last axis"):
        kt.layers.NormalizedDense(3).build((None, None))
    with pytest.raises(ValueError, match="not built yet"):
        kt.layers.NormalizedDense(3).fused()
