import keras
import numpy as np
import pytest
from keras.ops import convert_to_numpy as numpy_of

import keras_tricks as kt


def inputs(shape=(6, 5), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def dense(units=5, **options):
    return keras.layers.Dense(units, "tanh", **options)


def test_it_is_the_input_plus_alpha_times_the_layer():
    layer, x = kt.layers.ReZero(dense()), inputs()
    np.testing.assert_array_equal(layer(x), x)
    layer.alpha.assign(0.3)
    np.testing.assert_allclose(layer(x), x + 0.3 * np.array(layer.layer(x)), rtol=1e-6)


def test_with_ones_it_is_an_ordinary_residual_connection():
    layer, x = kt.layers.ReZero(dense(), alpha_initializer="ones"), inputs()
    np.testing.assert_allclose(layer(x), x + np.array(layer.layer(x)), rtol=1e-6)


def test_only_alpha_moves_in_the_first_step_then_both_do():
    model = keras.Sequential([keras.Input((5,)), kt.layers.ReZero(dense())])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    kernel = model.layers[0].layer.kernel
    start = numpy_of(kernel)
    x, y = inputs(), inputs(seed=1)
    model.train_on_batch(x, y)
    np.testing.assert_array_equal(numpy_of(kernel), start)
    assert float(model.layers[0].alpha) != 0
    model.train_on_batch(x, y)
    assert np.abs(numpy_of(kernel) - start).max() > 0


def test_the_gradient_of_alpha_is_the_sum_of_what_the_branch_gives(precision):
    import tensorflow as tf

    layer = kt.layers.ReZero(dense(32, dtype=precision), dtype=precision)
    x = inputs((512, 32))
    layer(x)
    with tf.GradientTape() as tape:
        y = tf.cast(layer(x), "float32")
        loss = tf.reduce_sum(y)
    expected = np.asarray(layer.layer(x)).astype("float32").sum()
    gradient = tape.gradient(loss, layer.alpha.value)
    assert gradient.dtype == "float32"
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-2)


def test_signals_and_gradients_pass_three_hundred_layers_unchanged():
    import tensorflow as tf

    x = tf.Variable(inputs((4, 8)))
    with tf.GradientTape() as tape:
        y = x
        for _ in range(300):
            y = kt.layers.ReZero(dense(8))(y)
        loss = tf.reduce_sum(y)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(tape.gradient(loss, x), np.ones((4, 8)))


def test_blocks_models_and_attention_can_be_inside():
    x = inputs((2, 7, 6))
    block = keras.Sequential([keras.layers.Dense(12, "relu"), keras.layers.Dropout(0.5), keras.layers.Dense(6)])
    attention = kt.layers.ReZero(keras.layers.MultiHeadAttention(2, 3), alpha_initializer="ones")
    tokens = keras.Input((7, 6))
    model = keras.Model(tokens, kt.layers.ReZero(block)(attention(tokens, value=tokens)))
    assert [v.shape for v in model.trainable_variables if v.path.endswith("alpha")] == [(), ()]
    inner = np.array(attention.layer(x, x))
    np.testing.assert_allclose(model(x), x + inner, rtol=1e-5, atol=1e-5)
    assert not np.allclose(block(x, training=True), block(x))  # dropout is told whether it trains


def test_a_wrapped_model_with_attention_is_saved_and_loaded(tmp_path):
    tokens = keras.Input((7, 6))
    attention = kt.layers.ReZero(keras.layers.MultiHeadAttention(2, 3), alpha_initializer="ones")
    model = keras.Model(tokens, attention(tokens, value=tokens))
    x = inputs((2, 7, 6))
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras")(x), model(x))


def test_masks_reach_the_layer_and_what_follows():
    tokens = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(10, 6, mask_zero=True)(tokens)
    y = kt.layers.ReZero(keras.layers.LSTM(6, return_sequences=True), alpha_initializer="ones")(x)
    pooled = keras.layers.GlobalAveragePooling1D()(y)
    model = keras.Model(tokens, pooled)
    short, padded = np.array([[3, 5]]), np.array([[3, 5, 0, 0]])
    np.testing.assert_allclose(model(np.pad(short, ((0, 0), (0, 2)))), model(padded))
    one = keras.Model(tokens, y)(padded)[0, :2]
    np.testing.assert_allclose(model(padded)[0], np.array(one).mean(axis=0), rtol=1e-5)


def test_re_zero_add_stands_where_add_stood():
    skip, branch = keras.Input((4, 4, 3)), keras.Input((4, 4, 3))
    layer = kt.layers.ReZeroAdd()
    model = keras.Model([skip, branch], layer([skip, branch]))
    a, b = inputs((2, 4, 4, 3)), inputs((2, 4, 4, 3), seed=1)
    np.testing.assert_array_equal(model([a, b]), a)
    layer.alpha.assign(-2)
    np.testing.assert_allclose(model([a, b]), a - 2 * b, rtol=1e-6)


def test_decay_leaves_alpha_alone():
    layer = kt.layers.ReZero(dense(), alpha_initializer="ones")
    layer.build((None, 5))
    optimizer = kt.LAMB(0.1, weight_decay=0.5)
    optimizer.build(layer.trainable_variables)
    optimizer.apply([np.zeros(v.shape, "float32") for v in layer.trainable_variables])
    assert float(layer.alpha) == 1


@pytest.mark.parametrize("layer", [lambda: dense(4), lambda: keras.layers.Conv1D(5, 3)], ids=["units", "length"])
def test_another_shape_is_reported_when_it_is_built(layer):
    with pytest.raises(ValueError, match="both need the same shape"):
        kt.layers.ReZero(layer()).build((None, 9, 5))


def test_another_shape_of_a_layer_with_several_inputs_is_reported_when_it_is_called():
    tokens = keras.Input((7, 6))
    with pytest.raises(ValueError, match="both need the same shape"):
        kt.layers.ReZero(keras.layers.MultiHeadAttention(2, 3, output_shape=5))(tokens, value=tokens)


def test_what_is_no_layer_or_no_pair_is_refused():
    with pytest.raises(ValueError, match="Keras layer"):
        kt.layers.ReZero(lambda x: x)
    with pytest.raises(ValueError, match="two tensors"):
        kt.layers.ReZeroAdd()(inputs())
    with pytest.raises(ValueError, match="same shape"):
        kt.layers.ReZeroAdd()([inputs((2, 5)), inputs((2, 1))])


@pytest.mark.slow
def test_it_trains_a_deep_network_that_does_not_train_without():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = digits.data.astype("float32") / 16, digits.target

    def accuracy(wrap):
        keras.utils.set_random_seed(0)
        blocks = [wrap(keras.layers.Dense(32, "relu")) for _ in range(16)]
        model = keras.Sequential([keras.Input((64,)), keras.layers.Dense(32), *blocks, keras.layers.Dense(10)])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(0.003), loss, metrics=["accuracy"])
        model.fit(x[:1400], y[:1400], batch_size=100, epochs=5, verbose=0)
        return model.evaluate(x[1400:], y[1400:], verbose=0)[1]

    plain, rezero = accuracy(lambda layer: layer), accuracy(kt.layers.ReZero)
    assert rezero > 0.85
    assert plain < 0.6
