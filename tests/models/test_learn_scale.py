import keras
import numpy as np
import pytest
from keras import layers
from keras.ops import convert_to_numpy as numpy_of

import keras_tricks as kt
from keras_tricks.models import learn_scale
from tests.models.classifiers import QUIET, data, features, network, softmax


def test_one_step_of_the_scale_is_the_gradients_and_is_folded_into_kernel_and_bias():
    model = network()
    x, y = data(30)
    z = features(model, x) @ numpy_of(model.get_layer("head").kernel) + numpy_of(model.get_layer("head").bias)
    new = learn_scale(model, x, y=y, epochs=1, optimizer=keras.optimizers.SGD(0.5), batch_size=30, **QUIET)
    scale = 1 - 0.5 * ((softmax(z) - np.eye(3)[y]) * z).mean(0)
    for value, old in zip(new.get_layer("head").get_weights(), model.get_layer("head").get_weights(), strict=True):
        np.testing.assert_allclose(value, old * scale, rtol=1e-4)
    np.testing.assert_allclose(new(x), scale * z, rtol=1e-4, atol=1e-5)


def test_the_scale_of_a_convolution_is_that_of_a_dense_layer_on_each_pixel():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(6, 4, 4, 2)).astype("float32"), np.arange(96).reshape(6, 4, 4) % 3
    models = [keras.Sequential([keras.Input((4, 4, 2)), head]) for head in (layers.Dense(3), layers.Conv2D(3, 1))]
    models[1].set_weights([models[0].get_weights()[0][None, None], models[0].get_weights()[1]])
    a, b = (learn_scale(m, x, y=y, epochs=2, **QUIET) for m in models)
    np.testing.assert_allclose(a.get_weights()[0], b.get_weights()[0][0, 0], rtol=1e-4)
    assert not np.allclose(a.get_weights()[0], models[0].get_weights()[0], rtol=1e-3)


def test_a_scale_that_cannot_be_folded_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match=r"Received: head \(NormalizedDense"):
        learn_scale(network(kt.layers.NormalizedDense(3, name="head")), x, y=y)
    with pytest.raises(ValueError, match="has an activation"):
        learn_scale(network(layers.Dense(3, "tanh", name="head")), x, y=y)
