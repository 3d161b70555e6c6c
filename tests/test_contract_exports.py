"""What replaces a model's or a layer's `call`, then exported: each file computes what the model predicts."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_tricks as kt

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*np.object:FutureWarning"),  # Keras' exporter to ONNX touches it
]


def small_network():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    x = kt.layers.Recompute(kt.layers.ReZero(layers.Conv2D(4, 3, padding="same", activation="relu")))(x)
    x = layers.Dropout(0.3)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(16, 8, 8, 3)).astype("float32"), np.arange(16) % 3


def trained(model, callbacks=()):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, jit_compile=False)
    model.fit(*data(), batch_size=8, epochs=2, verbose=0, callbacks=list(callbacks))
    return model


TRICKS = {
    "nothing": lambda: trained(small_network()),
    "jit": lambda: trained(kt.jit(small_network())),
    "recompute": lambda: trained(kt.recompute(small_network(), segments=2)),
    "jit of recompute of convert": lambda: trained(
        kt.jit(kt.recompute(kt.convert(small_network(), {layers.Conv2D: "ws_conv"})[0], segments=2))
    ),
    "fuse": lambda: kt.fuse(trained(small_network())),
    "fuse of convert": lambda: kt.fuse(trained(kt.convert(small_network(), {layers.Conv2D: "ac_conv"})[0])),
    "adjust_logits": lambda: kt.models.adjust_logits(trained(small_network()), [8, 4, 4]),
    "Histograms": lambda: trained(small_network(), [kt.callbacks.Histograms(every=1)]),
    "WeightAveraging": lambda: trained(
        small_network(), [kt.callbacks.WeightAveraging("swa", start=0, recompute_statistics_on=[data()[0]])]
    ),
}


def run_saved_model(model, path, x):
    model.export(path, verbose=False)
    exported = tf.saved_model.load(path)  # it must outlive the call
    return exported.serve(x)


def run_litert(model, path, x):
    model.export(path, format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(str(path))
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(returned["index"])


def run_onnx(model, path, x):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    model.export(path, format="onnx", verbose=False)
    session = runtime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


FORMATS = {"saved": run_saved_model, "small.tflite": run_litert, "m.onnx": run_onnx}


@pytest.mark.slow
@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize("trick", TRICKS)
def test_the_file_computes_what_the_model_predicts(trick, file, tmp_path):
    model = TRICKS[trick]()
    x, _ = data()
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(FORMATS[file](model, tmp_path / file, x), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.predict(x, verbose=0), expected)  # exporting has changed nothing


def test_exported_in_the_middle_of_a_fit_it_computes_what_the_model_predicts(tmp_path):
    """Beside a callback that replaces `call`."""
    seen = []

    class Export(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            served = run_saved_model(self.model, tmp_path / f"{epoch}", data()[0])
            seen.append((served, self.model.predict(data()[0], verbose=0)))

    model = kt.jit(small_network())
    trained(model, [kt.callbacks.Histograms(every=1), Export()])
    assert len(seen) == 2
    for served, predicted in seen:
        np.testing.assert_allclose(served, predicted, rtol=1e-5, atol=1e-6)
