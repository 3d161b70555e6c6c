"""What every layer of the catalogue keeps to; a new record is tested by being there."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from keras_tricks import catalog
from tests import runs

LAYERS = [t for t in catalog.TRICKS if t.kind == "layer" and t.make]


@pytest.fixture(params=LAYERS, ids=lambda t: t.name)
def trick(request):
    return request.param


@pytest.fixture(params=runs.of_each_kind(LAYERS), ids=lambda t: t.name)
def trick_of_each_kind(request):
    return request.param


def network_of(trick):
    def network():
        layer, shape = trick.make()
        return keras.Sequential(
            [keras.Input(shape), layer, keras.layers.Flatten(), keras.layers.Dense(3, dtype="float32")]
        )

    return network


def data_of(trick):
    layer, shape = trick.make()
    random = np.random.default_rng(0)
    x, y = random.normal(size=(16, *shape)).astype("float32"), random.integers(0, 3, 16)
    if hasattr(layer, "synchronized"):
        # Each replica normalises by the statistics of its half of a batch: with equal halves, by those of the batch.
        x, y = (
            np.concatenate([part, part])[[0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15]]
            for part in (x[:8], y[:8])
        )
    return x, y


def sgd():
    return keras.optimizers.SGD(0.05)


@functools.cache
def plain(trick):
    """One epoch on one device, as a graph, in float32."""
    return runs.train(sgd, network=network_of(trick), data=data_of(trick), epochs=1)


def test_config_round_trip(trick):
    layer, _ = trick.make()
    again = type(layer).from_config(layer.get_config())
    assert again.get_config() == layer.get_config()


def test_symbolic_and_real_calls_agree_on_shape_and_dtype(trick, precision):
    layer, shape = trick.make(dtype=precision)
    x = np.ones((2, *shape), "float32")
    real, symbolic = layer(x), layer(keras.Input(shape))
    assert (None, *real.shape[1:]) == tuple(symbolic.shape)
    assert layer.compute_output_shape((None, *shape)) == (None, *real.shape[1:])
    assert keras.backend.standardize_dtype(real.dtype) == symbolic.dtype == layer.compute_dtype


def test_the_result_is_the_same_eager_compiled_under_xla_and_on_two_replicas(trick_of_each_kind):
    arguments = {"network": network_of(trick_of_each_kind), "data": data_of(trick_of_each_kind), "epochs": 1}
    for mode, replicas in (("eager", 1), ("xla", 1), ("graph", 2)):  # XLA on two: the next test
        runs.assert_same_weights(plain(trick_of_each_kind), runs.train(sgd, mode, replicas, **arguments), 2e-5)


def test_mixed_precision_on_two_replicas_under_xla(trick_of_each_kind, mixed_precision):
    arguments = {"network": network_of(trick_of_each_kind), "data": data_of(trick_of_each_kind), "epochs": 1}
    other = runs.train(lambda: kt.LossScaleOptimizer(sgd()), "xla", 2, mixed_precision, **arguments)
    runs.assert_same_weights(plain(trick_of_each_kind), other, runs.tolerance(mixed_precision))


def test_exported_as_a_saved_model_it_computes_the_same(trick, tmp_path):
    model = network_of(trick)()
    x, _ = data_of(trick)
    model.export(tmp_path / "saved", verbose=False)
    exported = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(exported.serve(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.slow
def test_exported_for_small_devices_it_computes_the_same(trick_of_each_kind, tmp_path):
    model = network_of(trick_of_each_kind)()
    x, _ = data_of(trick_of_each_kind)
    model.export(tmp_path / "small.tflite", format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(str(tmp_path / "small.tflite"))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x[:1])
    interpreter.invoke()
    computed = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    np.testing.assert_allclose(computed, model(x[:1]), rtol=1e-5, atol=1e-5)


def test_saved_loaded_and_continued_equals_uninterrupted(trick_of_each_kind, tmp_path):
    x, y = data_of(trick_of_each_kind)
    run = runs.train(kt.LAMB, network=network_of(trick_of_each_kind), data=(x, y), epochs=1)
    run.model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(x), run.model(x))
    for model in (run.model, loaded):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(run.model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
