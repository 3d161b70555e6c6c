import keras
import numpy as np
import pytest
from keras import layers
from keras.ops import convert_to_numpy as numpy_of

from keras_tricks.models import retrain_classifier
from tests.models.classifiers import QUIET, data, features, network, softmax


def crt_reference(x, y, kernel, bias, steps):
    """SGD with momentum and decay on the whole batch, with the cosine by epochs: the default."""
    kernel, bias = kernel.astype("float64"), bias.astype("float64")
    momenta, rate = [0.0, 0.0], 0.2 * len(x) / 512
    for step in range(steps):
        lr = rate * (1 + np.cos(np.pi * step / steps)) / 2
        error = (softmax(x @ kernel + bias) - np.eye(3)[y]) / len(x)
        gradients = x.T @ error, error.sum(0)
        kernel = kernel * (1 - lr * 5e-3)
        momenta = [0.9 * m - lr * g for m, g in zip(momenta, gradients, strict=True)]
        kernel, bias = kernel + momenta[0], bias + momenta[1]
    return kernel, bias


@pytest.mark.parametrize("labels", ["column", "one-hot"])
def test_the_default_is_the_authors_recipe(labels):
    x, y = data(192)
    model = network(kernel_initializer="orthogonal")
    given = {"column": y[:, None], "one-hot": np.eye(3)[y]}[labels]
    options = {"batch_size": 192, "layer": "head", "seed": 3, **QUIET}
    trained = retrain_classifier(model, x, y=given, epochs=3, **options).get_layer("head")
    start = [keras.initializers.Orthogonal(seed=3)((5, 3)), keras.initializers.GlorotNormal(seed=3)((3,))]
    expected = crt_reference(features(model, x), y, *map(numpy_of, start), steps=3)
    for value, reference in zip(trained.get_weights(), expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-5)


def test_the_new_classifier_is_another_draw_of_its_own_initializers():
    head = layers.Dense(
        3,
        kernel_initializer=keras.initializers.RandomNormal(5.0, 0.1, seed=1),
        bias_initializer=keras.initializers.Constant(-2.0),
        name="head",
    )
    model = network(head)
    head.set_weights([head.kernel_initializer((5, 3)), np.zeros(3)])
    x, y = data()

    def draw(**more):
        standing_still = keras.optimizers.SGD(1e-9)
        new = retrain_classifier(model, x, y=y, optimizer=standing_still, epochs=1, **more, **QUIET)
        weights = new.get_layer("head")
        np.testing.assert_allclose(weights.bias, -2.0, atol=1e-5)
        return numpy_of(weights.kernel)

    first, second, seeded = draw(), draw(seed=7), draw(seed=7)
    np.testing.assert_allclose([k.mean() for k in (first, second)], 5.0, atol=0.2)
    np.testing.assert_array_equal(second, seeded)
    assert np.abs(first - numpy_of(head.kernel)).min() > 1e-6
    assert np.abs(first - second).min() > 1e-6
