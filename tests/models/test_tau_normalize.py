import numpy as np
import pytest
from keras import layers
from keras.ops import convert_to_numpy as numpy_of

import keras_tricks as kt
from keras_tricks.models import tau_normalize
from tests import runs
from tests.models.classifiers import network, state


def dense(kernel, **options):
    layer = layers.Dense(kernel.shape[1], **options)
    layer.build((None, kernel.shape[0]))
    layer.set_weights([kernel, np.ones(kernel.shape[1])])
    return layer


@pytest.mark.parametrize("tau", [0, 0.5, 1.0, 2.5])
def test_columns_are_divided_by_their_norm_to_the_power_of_tau(tau):
    kernel = np.random.default_rng(0).normal(size=(7, 4)).astype("float32") * [1, 10, 0.1, 0]
    layer = dense(kernel)
    assert tau_normalize(layer, tau) is layer
    norms = np.linalg.norm(kernel[:, :3], axis=0)
    np.testing.assert_allclose(layer.kernel[:, :3], kernel[:, :3] / norms**tau, rtol=1e-6)
    np.testing.assert_array_equal(layer.kernel[:, 3], np.zeros(7))
    np.testing.assert_array_equal(layer.bias, np.zeros(4))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_norms_do_not_overflow_in_half_precision(dtype):
    layer = dense(np.full((400, 2), 30.0), dtype=dtype)  # the sum of squares is 360,000
    np.testing.assert_allclose(tau_normalize(layer).kernel.numpy().astype("float64"), 0.05, rtol=4e-3)


def test_a_convolution_has_one_column_for_each_class():
    layer = layers.Conv2D(3, 2, use_bias=False)
    layer.build((None, 4, 4, 2))
    kernel = numpy_of(layer.kernel)
    tau_normalize(layer)
    np.testing.assert_allclose(layer.kernel, kernel / np.linalg.norm(kernel.reshape(8, 3), axis=0), rtol=1e-5)


def test_of_a_model_a_copy_is_changed_so_that_a_search_does_not_compound(replicas):
    with runs.strategy_of(replicas).scope():
        model = network()
        model.compile("sgd", "mse")
    before, optimizer = state(model), model.optimizer
    first, again = tau_normalize(model, 0.7), tau_normalize(model, 0.7)
    tau_normalize(first, 0.7)
    assert state(first) == state(again) != before
    assert state(model) == before
    assert model.optimizer is optimizer
    assert not first.compiled
    for path, (a, b) in {v.path: (v, w) for v, w in zip(model.variables, first.variables, strict=True)}.items():
        assert ("head" in path) != np.array_equal(a, b), path
    kernel = numpy_of(model.get_layer("head").kernel)
    np.testing.assert_allclose(
        first.get_layer("head").kernel, kernel / np.linalg.norm(kernel, axis=0) ** 0.7, rtol=1e-5
    )


@pytest.mark.parametrize(
    "layer", [kt.layers.NormalizedDense(3), kt.layers.WSDense(3), layers.EinsumDense("ab,bc->ac", 3)]
)
def test_layers_whose_kernel_means_something_else_are_refused(layer):
    layer.build((None, 6))
    with pytest.raises(ValueError, match=f"(?s)kernel and bias of a Dense layer.*{type(layer).__name__}"):
        tau_normalize(layer)
    with pytest.raises(ValueError, match="is not built"):
        tau_normalize(layers.Dense(3))
