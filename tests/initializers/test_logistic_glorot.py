import keras
import numpy as np
import pytest
from keras.ops import convert_to_numpy as numpy_of

import keras_tricks as kt


@pytest.mark.parametrize("shape", [(784, 256), (3, 3, 16, 32)], ids=str)
def test_values_fill_four_times_the_range_of_glorot(shape):
    receptive = np.prod(shape[:-2])
    limit = 4 * np.sqrt(6 / (receptive * (shape[-2] + shape[-1])))
    values = numpy_of(kt.initializers.LogisticGlorotUniform(seed=0)(shape))
    assert np.abs(values).max() <= limit
    assert np.abs(values).max() > 0.99 * limit
    assert values.std() == pytest.approx(limit / np.sqrt(3), rel=0.03)


def test_it_is_glorot_uniform_times_four_with_the_same_seed():
    ours = kt.initializers.LogisticGlorotUniform(seed=3)((20, 30))
    np.testing.assert_allclose(ours, 4 * keras.initializers.GlorotUniform(seed=3)((20, 30)), rtol=1e-6)


def test_a_deep_logistic_network_passes_more_of_its_gradient_than_with_the_plain_range():
    import tensorflow as tf

    def first_gradient(initializer):
        model = keras.Sequential([keras.Input((64,))])
        for seed in range(6):
            model.add(keras.layers.Dense(64, "sigmoid", kernel_initializer=initializer(seed=seed)))
        x = tf.constant(np.random.default_rng(0).normal(size=(128, 64)), "float32")
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x)[:, 0])
        return float(tf.norm(tape.gradient(loss, model.layers[0].kernel.value)))

    assert first_gradient(kt.initializers.LogisticGlorotUniform) > 5 * first_gradient(keras.initializers.GlorotUniform)


def test_it_survives_saving_and_knows_the_axes_of_other_kernels(tmp_path):
    initializer = kt.initializers.LogisticGlorotUniform(seed=1, input_axes=[0, 1], output_axes=[0, 1, 3])
    assert type(initializer).from_config(initializer.get_config()).get_config() == initializer.get_config()
    # A depthwise kernel (height, width, channels, multiplier): nine inputs, eighteen outputs, whatever the channels.
    assert np.abs(numpy_of(initializer((3, 3, 64, 2)))).max() == pytest.approx(4 * np.sqrt(6 / (9 + 18)), rel=0.02)
    dense = keras.layers.Dense(2, kernel_initializer=kt.initializers.LogisticGlorotUniform())
    model = keras.Sequential([keras.Input((4,)), dense])
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert isinstance(loaded.layers[0].kernel_initializer, kt.initializers.LogisticGlorotUniform)
