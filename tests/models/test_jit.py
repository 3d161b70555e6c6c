import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from tests import runs

jit_module = importlib.import_module("keras_tricks.models.jit")  # the package has the function by this name


def with_state():
    """Batch normalisation, a regularized kernel and an activity loss: all that a call leaves behind."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3, kernel_regularizer=keras.regularizers.L2(0.1)),
            keras.layers.BatchNormalization(momentum=0.5),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(5, activity_regularizer=keras.regularizers.L2(0.1)),
            keras.layers.Dense(3),
        ]
    )


def functional():
    inputs = keras.Input((6, 6, 1))
    x = keras.layers.Flatten()(keras.layers.Conv2D(4, 3, activation="relu")(inputs))
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dropout(0.0)(x)))


@keras.saving.register_keras_serializable(package="test_jit")
class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.flatten = keras.layers.Flatten()
        self.hidden = keras.layers.Dense(5, activation="tanh", activity_regularizer=keras.regularizers.L2(0.1))
        self.out = keras.layers.Dense(3)

    def call(self, x, training=False):
        return self.out(self.hidden(self.flatten(x)))


@keras.saving.register_keras_serializable(package="test_jit")
class OwnStep(Subclassed):
    """With a train_step of its own."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True)
        )
        return {"loss": loss}


def sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9)


def both(network, replicas, **kwargs):
    """The same training without and with jit."""
    plain = runs.train(sgd, "graph", replicas, network=network, **kwargs)

    def jitted():
        return kt.jit(network())

    return plain, runs.train(sgd, "graph", replicas, network=jitted, **kwargs)


@pytest.mark.parametrize(
    ("network", "replicas"),
    [
        *[(with_state, 1), runs.slow(functional, 1), runs.slow(Subclassed, 1), (OwnStep, 1)],
        *[(with_state, 2), runs.slow(functional, 2), runs.slow(Subclassed, 2), runs.slow(OwnStep, 2)],
    ],
)
def test_training_is_the_same(network, replicas):
    plain, jitted = both(network, replicas)
    np.testing.assert_allclose(jitted.losses, plain.losses, rtol=1e-4)
    runs.assert_same_weights(plain, jitted, 2e-5)  # moving statistics too


def test_what_xla_cannot_compile_fails_so_it_is_xla_that_runs(replicas):
    class Python(keras.layers.Layer):
        def call(self, x):
            y = tf.numpy_function(lambda a: a, [x], tf.float32)
            return tf.ensure_shape(y, x.shape)

    def network():
        return keras.Sequential([keras.Input((6, 6, 1)), Python(), keras.layers.Flatten(), keras.layers.Dense(3)])

    runs.train(sgd, network=network, epochs=1)
    with pytest.raises(RuntimeError, match=r"(?s)`jit`: XLA cannot compile this model.*PyFunc"):
        runs.train(sgd, replicas=replicas, network=lambda: kt.jit(network()), epochs=1)


@pytest.mark.parametrize("replicas", [runs.slow(1), 2])
def test_mixed_precision(mixed_precision, replicas):
    def network():
        return keras.Sequential([*runs.small_network().layers[:-1], keras.layers.Dense(3, dtype="float32")])

    def train(make):
        scaled = lambda: kt.LossScaleOptimizer(kt.LAMB(0.02))  # noqa: E731
        return runs.train(scaled, "graph", replicas, mixed_precision, network=make)

    runs.assert_same_weights(train(network), train(lambda: kt.jit(network())), runs.tolerance(mixed_precision))


@pytest.mark.parametrize("replicas", [1, runs.slow(2)])
def test_several_steps_an_execution_and_metrics(replicas):
    plain, jitted = (
        runs.train(sgd, network=n, replicas=replicas, steps_per_execution=3, metrics=["accuracy"])
        for n in (with_state, lambda: kt.jit(with_state()))
    )
    a, b = plain.model.history.history, jitted.model.history.history
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(b[name], a[name], rtol=1e-4, atol=1e-6)


def test_dropout_draws_a_new_mask_at_each_step():
    model = kt.jit(keras.Sequential([keras.Input((100,)), keras.layers.Dropout(0.5, seed=1)]))
    x = np.ones((1, 100), "float32")
    call = tf.function(lambda: model(x, training=True))
    first, second = (call().numpy() for _ in range(2))
    assert (first != second).any()
    assert 20 < (first == 0).sum() < 80


@pytest.mark.parametrize("replicas", [1, runs.slow(2)])
def test_evaluate_predict_and_direct_calls_are_as_before(replicas):
    plain, jitted = both(with_state, replicas)
    x, y = runs.images()
    np.testing.assert_allclose(
        jitted.model.predict(x, batch_size=8, verbose=0), plain.model.predict(x, batch_size=8, verbose=0), atol=1e-4
    )
    assert jitted.model.evaluate(x, y, batch_size=8, verbose=0) == pytest.approx(
        plain.model.evaluate(x, y, batch_size=8, verbose=0), rel=1e-4
    )
    np.testing.assert_allclose(jitted.model(x), plain.model(x), atol=1e-4)
    losses = [float(loss) for loss in jitted.model.losses]
    assert losses == pytest.approx([float(loss) for loss in plain.model.losses], rel=1e-4)
    assert len(losses) == 2
    np.testing.assert_allclose(tf.function(jitted.model)(x), plain.model(x), atol=1e-4)


@pytest.mark.parametrize("replicas", [1, runs.slow(2)])
def test_after_compile_and_training_it_takes_effect(replicas):
    run = runs.train(sgd, "xla" if replicas == 1 else "graph", replicas, network=with_state, epochs=1)
    assert run.model.train_function is not None
    kt.jit(run.model)
    assert run.model.train_function is None
    assert not run.model.jit_compile
    again = runs.train(sgd, "graph", replicas, network=with_state, epochs=1)
    for model in (run.model, again.model):
        model.fit(*runs.images(), batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(run.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("network", [with_state, runs.slow(functional), runs.slow(Subclassed)])
def test_saved_it_is_a_plain_model_and_continues_bit_for_bit_when_jitted_again(network, tmp_path):
    run = runs.train(sgd, network=lambda: kt.jit(network()), epochs=1)
    run.model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert "call" not in vars(loaded)
    kt.jit(loaded)
    for model in (run.model, loaded):
        model.fit(*runs.images(), batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(run.model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_cloned_exported_and_nested_in_another_model(tmp_path):
    model = kt.jit(functional())
    x = runs.images()[0]
    clone = keras.models.clone_model(model)
    clone.set_weights(model.get_weights())
    np.testing.assert_allclose(clone(x), model(x), atol=1e-5)
    model.export(tmp_path / "saved", verbose=False)
    exported = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(exported.serve(x), model(x), atol=1e-5)
    outer = keras.Sequential([keras.Input((6, 6, 1)), model, keras.layers.Softmax()])
    np.testing.assert_allclose(np.array(outer(x)).sum(axis=1), 1, atol=1e-5)


def test_masks_reach_the_loss():
    def network():
        return keras.Sequential(
            [
                keras.Input((4,), dtype="int32"),
                keras.layers.Embedding(10, 3, mask_zero=True),
                keras.layers.LSTM(3, return_sequences=True, use_cudnn=False),
            ]
        )

    data = np.array([[1, 2, 0, 0], [3, 0, 0, 0], [4, 5, 6, 7], [8, 9, 1, 0]]), np.zeros((4, 4), int)
    plain, jitted = both(network, 1, data=data, batch=4)
    np.testing.assert_allclose(jitted.losses, plain.losses, rtol=1e-4)
    for model in (plain.model, jitted.model):
        assert model.evaluate(*data, verbose=0) == pytest.approx(
            float(np.ravel(plain.model.evaluate(*data, verbose=0))[0]), rel=1e-4
        )
    mask = jitted.model(data[0])._keras_mask
    np.testing.assert_array_equal(mask, data[0] != 0)


def test_several_inputs_and_outputs_by_name():
    def network():
        a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
        x = keras.layers.Concatenate()([a, b])
        return keras.Model(
            {"a": a, "b": b}, {"s": keras.layers.Dense(1, name="s")(x), "t": keras.layers.Dense(2, name="t")(x)}
        )

    x = {"a": np.ones((8, 3), "float32"), "b": np.arange(24).reshape(8, 3).astype("float32")}
    y = {"s": np.ones((8, 1)), "t": np.ones((8, 2))}
    results = []
    for wrap in (lambda m: m, kt.jit):
        keras.utils.set_random_seed(0)
        model = wrap(network())
        model.compile(keras.optimizers.SGD(1e-3), {"s": "mse", "t": "mae"})
        history = model.fit(
            x, y, epochs=2, verbose=0, shuffle=False, sample_weight={"s": np.arange(8.0), "t": np.ones(8)}
        )
        results.append(history.history["loss"])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5)


def test_a_new_compile_takes_effect():
    x = runs.images()[0]
    y = np.ones((len(x), 3))
    results = []
    for wrap in (lambda m: m, kt.jit):
        keras.utils.set_random_seed(0)
        model = wrap(functional())
        for loss, rate in (("mse", 0.01), ("mae", 0.3)):
            model.compile(keras.optimizers.SGD(rate), loss, jit_compile=False)
            model.fit(x, y, verbose=0, shuffle=False)
        results.append(model.get_weights())
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_freezing_a_layer_takes_effect_as_it_does_without_jit():
    model = kt.jit(with_state())
    x = runs.images()[0]
    free = np.array(model(x, training=True))
    model.layers[1].trainable = False  # batch normalisation then uses its moving statistics
    frozen = np.array(model(x, training=True))
    np.testing.assert_allclose(frozen, model(x, training=False), atol=1e-5)
    assert np.abs(free - frozen).max() > 0.01


def test_jit_twice_is_jit_once():
    model = kt.jit(functional())
    call = model.call
    assert kt.jit(model) is model
    assert model.call is call


def test_the_step_is_traced_once_for_a_shape():
    traces = []

    class Counting(keras.layers.Layer):
        def call(self, x):
            traces.append(x.shape)
            return x

    def network():
        layers = [keras.Input((6, 6, 1)), Counting(), keras.layers.Flatten(), keras.layers.Dense(3)]
        return kt.jit(keras.Sequential(layers))

    run = runs.train(sgd, network=network, epochs=1)
    before = len(traces)
    run.model.fit(*runs.images(), batch_size=8, epochs=3, verbose=0)
    assert len(traces) == before


@pytest.mark.parametrize("replicas", [1, runs.slow(2)])
def test_a_smaller_last_batch_trains_evaluates_and_predicts_without_more_traces(replicas):
    traces = []

    class Counting(keras.layers.Layer):
        def call(self, x):
            traces.append(x.shape)
            return x

    x, y = runs.images(count=21)

    def outcome(wrap):
        traces.clear()
        keras.utils.set_random_seed(0)
        with runs.strategy_of(replicas).scope():
            network = [keras.Input((6, 6, 1)), Counting(), keras.layers.Flatten(), keras.layers.Dense(3)]
            model = wrap(keras.Sequential(network))
            loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
            model.compile(sgd(), loss, jit_compile=False, steps_per_execution=2)
        model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0)
        figures = [model.evaluate(x, y, batch_size=8, verbose=0), *model.predict(x, batch_size=8, verbose=0).ravel()]
        return figures, len(traces)

    plain, plain_traces = outcome(lambda model: model)
    jitted, jitted_traces = outcome(kt.jit)
    np.testing.assert_allclose(jitted, plain, rtol=1e-4, atol=1e-5)
    # On one device one trace is thrown away: it makes the variables of optimizer and metrics.
    assert jitted_traces == plain_traces + (replicas == 1)


def test_what_cannot_work_says_what_can():
    with pytest.raises(TypeError, match=r"expects a keras\.Model"):
        kt.jit(keras.layers.Dense(1))

    def synchronized():
        return keras.Sequential(
            [keras.Input((6, 6, 1)), keras.layers.BatchNormalization(synchronized=True), keras.layers.Flatten()]
        )

    with pytest.raises(ValueError, match="synchronized=True"):
        runs.train(sgd, replicas=2, network=lambda: kt.jit(synchronized()))
    kt.jit(synchronized())  # on one device there is nothing to exchange

    with runs.strategy_of(2).scope():
        model = kt.jit(functional())
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=True)
    with pytest.raises(ValueError, match=r"use `compile\(jit_compile=False\)`"):
        model.fit(*runs.images(), batch_size=8, verbose=0)

    metric = keras.metrics.SparseCategoricalAccuracy()
    with pytest.raises(ValueError, match="made outside of the strategy's scope"):
        runs.train(sgd, replicas=2, network=lambda: kt.jit(functional()), metrics=[metric])

    spectral = kt.jit(keras.Sequential([keras.Input((3,)), keras.layers.SpectralNormalization(keras.layers.Dense(2))]))
    with pytest.raises(ValueError, match="train this model without `jit`"):
        tf.function(lambda: spectral(np.ones((2, 3), "float32"), training=True))()


@pytest.mark.parametrize(
    "optimizer",
    [
        sgd,
        runs.slow(lambda: keras.optimizers.SGD(0.05, momentum=0.9)),
        lambda: kt.LossScaleOptimizer(keras.optimizers.SGD(0.05)),
    ],
)
@pytest.mark.parametrize("jit_first", [True, runs.slow(False)])
def test_the_backward_pass_is_compiled_in_the_very_first_step(optimizer, jit_first, monkeypatch):
    """Plain SGD makes no variables, so that its step is traced once only."""
    compiled, xla = [], jit_module._xla
    monkeypatch.setattr(jit_module, "_xla", lambda function: compiled.append(function.func.__self__) or xla(function))
    model = keras.Sequential([keras.Input((4, 2)), keras.layers.LSTM(3), keras.layers.Dense(1)])
    model = kt.jit(model) if jit_first else model
    model.compile(optimizer(), "mse", jit_compile=False, metrics=["mae"])
    model = kt.jit(model)
    model.fit(np.ones((4, 4, 2)), np.ones((4, 1)), verbose=0)
    assert {type(part) for part in compiled} == {jit_module._CompiledTrainStep}


class TestWhatXLACannotTake:
    def test_a_layer_is_named_before_training(self):
        preprocessing = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.RandomRotation(0.1, name="turn")])
        model = keras.Sequential([keras.Input((8, 8, 3)), preprocessing, keras.layers.Flatten()])
        with pytest.raises(ValueError, match=r"`jit`: layer 'turn' \(RandomRotation\).*tf.data pipeline"):
            kt.jit(model)

    def test_data_that_are_ragged_or_strings(self):
        for x, kind in ((tf.ragged.constant([[1.0], [2.0]]), "ragged"), (tf.constant([["a"], ["b"]]), "of strings")):
            with pytest.raises(ValueError, match=f"`jit`: the data have a tensor that is {kind}"):
                jit_module._refuse_inputs((x, None))

    def test_a_loop_in_a_model_with_a_step_of_its_own(self):
        class Own(keras.Model):
            def train_step(self, data):
                x, y = data
                with tf.GradientTape() as tape:
                    loss = self.compute_loss(x, y, self(x, training=True))
                self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
                return {"loss": loss}

        def outcome(wrap, **arguments):
            keras.utils.set_random_seed(0)
            inputs = keras.Input((4, 2))
            model = wrap(Own(inputs, keras.layers.Dense(1)(keras.layers.LSTM(3, **arguments)(inputs))))
            model.compile(sgd(), "mse", jit_compile=False)
            model.fit(np.ones((4, 4, 2)), np.ones((4, 1)), verbose=0)
            return model.get_weights()

        with pytest.raises(ValueError, match=r"(?s)`jit`: model .* has a loop.*unroll=True"):
            outcome(kt.jit)
        for a, b in zip(outcome(kt.jit, unroll=True), outcome(lambda m: m), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_somebody_elses_apply_gradients_survives():
    model = kt.jit(keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)]))
    model.compile(sgd(), "mse", jit_compile=False)
    calls, plain = [], model.optimizer.apply_gradients

    def mine(pairs):
        calls.append(1)
        return plain(pairs)

    model.optimizer.apply_gradients = mine
    model.fit(np.ones((4, 3)), np.ones((4, 1)), verbose=0)
    assert model.optimizer.apply_gradients is mine
    assert calls


def test_an_exported_model_is_as_without_jit(replicas, tmp_path):
    """Nothing is compiled while an export is traced, whose formats know nothing of XLA; in a strategy's scope too."""
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    with runs.strategy_of(replicas).scope():
        model = kt.jit(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), keras.layers.LayerNormalization()]))
        model.compile(sgd(), "mse", jit_compile=False)
        model.fit(x, x[:, :2], verbose=0)
        model.export(tmp_path / "saved", verbose=False)
    loaded = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(loaded.serve(x), model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
    graph = loaded.signatures["serving_default"].graph.as_graph_def()
    assert not any("_XlaMustCompile" in f.attr and f.attr["_XlaMustCompile"].b for f in graph.library.function)


class Noise(keras.layers.Layer):
    """Random numbers of the global generator, whose state is not the model's."""

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x))


@pytest.mark.parametrize("layer", [lambda: keras.layers.LSTM(3, stateful=True, return_sequences=True), Noise])
def test_assignments_that_would_be_lost_are_refused_before_training(layer):
    model = kt.jit(keras.Sequential([keras.Input(batch_shape=(2, 4, 3)), layer(), keras.layers.Dense(3)]))
    model.compile(sgd(), "mse", jit_compile=False)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"`jit`: model .* assigns a variable that is not one of its own"):
        model.fit(np.ones((4, 4, 3)), np.ones((4, 4, 3)), batch_size=2, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:.*np.object:FutureWarning")  # Keras' exporter touches it
@pytest.mark.slow
def test_an_onnx_file_of_a_jitted_model_runs(tmp_path):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")
    model = kt.jit(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, activation="relu")]))
    model.compile(sgd(), "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    model.fit(x, x[:, :2], verbose=0)
    model.export(tmp_path / "m.onnx", format="onnx", verbose=False)
    session = runtime.InferenceSession(tmp_path / "m.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(y, model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)
