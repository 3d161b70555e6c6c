import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from tests import reference, runs

# Short runs with a momentum that tells the epochs apart.
pytestmark = pytest.mark.filterwarnings("ignore:WeightAveraging. after")


class Watch(keras.callbacks.Callback):
    """Records training's weights at the ends of epochs, or after every execution."""

    def __init__(self, batches=False):
        super().__init__()
        self.weights = []
        if batches:
            self.on_train_batch_end = lambda batch, logs=None: self.on_epoch_end(0)

    def on_epoch_end(self, epoch, logs=None):
        self.weights.append([w.astype("float64") for w in self.model.get_weights()])


def average_of(kind, collected, momentum=None):
    return [reference.averaged(kind, ws, momentum) for ws in zip(*collected, strict=True)]


def assert_close(a, b, tolerance=1e-6):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(np.asarray(x, "float64"), y, rtol=tolerance, atol=tolerance)


def assert_identical(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    ("kind", "replicas", "precision"),
    [("swa", 1, "float32"), ("ema", 1, "mixed_bfloat16"), ("swa", 2, "mixed_float16")],
)
def test_training_ends_with_the_average_of_the_epochs(kind, replicas, precision):
    watch = Watch()
    options = {"momentum": 0.7} if kind == "ema" else {}
    averaging = kt.callbacks.WeightAveraging(kind, start=1, **options)
    optimizer = lambda: kt.LossScaleOptimizer(kt.LAMB(0.05))  # noqa: E731
    run = runs.train(optimizer, "graph", replicas, precision, epochs=4, callbacks=[watch, averaging])
    assert averaging.collected == 3
    assert_close(run.weights, average_of(kind, watch.weights[1:], 0.7))


def test_every_n_optimizer_steps_are_collected_also_with_accumulation():
    watch = Watch(batches=True)
    averaging = kt.callbacks.WeightAveraging("ema", every=2, momentum=0.5)
    run = runs.train(
        lambda: kt.LAMB(0.05, gradient_accumulation_steps=2), batch=4, epochs=2, callbacks=[watch, averaging]
    )
    batches = watch.weights[: 2 * 8 + 1]
    del batches[8]  # the watch's own end of the epoch
    assert averaging.collected == 4
    assert_close(run.weights, average_of("ema", batches[3::4], 0.5))


def test_several_steps_an_execution_are_collected_once_with_the_momentum_of_several():
    watch = Watch(batches=True)
    averaging = kt.callbacks.WeightAveraging("ema", every=1, momentum=0.9)
    run = runs.train(lambda: kt.LAMB(0.05), batch=4, epochs=1, steps_per_execution=4, callbacks=[watch, averaging])
    assert averaging.collected == 2
    assert_close(run.weights, average_of("ema", watch.weights[:2], 0.9**4))


def test_the_average_is_wide_where_weights_are_narrow():
    keras.config.set_dtype_policy("bfloat16")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    averaging = kt.callbacks.WeightAveraging("ema", momentum=0.999)
    averaging.set_params({"epochs": 2})
    averaging.set_model(model)
    averaging.on_train_begin()
    averaging.on_epoch_begin(0)
    model.set_weights([np.zeros((2, 1)), np.ones(1)])
    averaging.on_epoch_end(0)
    for epoch in range(1, 30):
        model.set_weights([np.ones((2, 1)), np.ones(1)])
        averaging.on_epoch_begin(epoch)
        averaging.on_epoch_end(epoch)
    # In bfloat16 each of these steps from 1 would have been lost.
    assert_close([averaging._values()[0]], [np.full((2, 1), 1 - 0.999**29)], 1e-5)


def normalized(batch_normalization=keras.layers.BatchNormalization):
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(3, 3),
            batch_normalization(momentum=0.9),
            keras.layers.Dropout(0.25),
            keras.layers.Flatten(),
            keras.layers.Dense(3, dtype="float32"),
        ]
    )


@pytest.mark.parametrize("replicas", [1, runs.slow(2)])
def test_training_goes_on_bit_for_bit_as_without_it(replicas):
    x, y = runs.images()

    class Prediction(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            before = self.model.get_weights()
            self.model.predict(x, verbose=0)
            self.model.evaluate(x, y, verbose=0)
            assert_identical(before, self.model.get_weights())

    def train(callbacks, watch):
        keras.utils.set_random_seed(0)
        with runs.strategy_of(replicas).scope():
            layers = [keras.layers.Flatten(), keras.layers.BatchNormalization(), keras.layers.Dropout(0.25)]
            model = keras.Sequential([keras.Input((6, 6, 1)), *layers, keras.layers.Dense(3)])
            model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = model.fit(
            x,
            y,
            batch_size=8,
            epochs=2,
            shuffle=False,
            verbose=0,
            validation_data=(x, y),
            callbacks=[*callbacks, watch],
        )
        parts = [v for w in model.weights for v in model.distribute_strategy.experimental_local_results(w.value)]
        return history.history, [p.numpy() for p in parts]

    data = tf.data.Dataset.from_tensor_slices(x).batch(8)
    averaging = kt.callbacks.WeightAveraging("ema", momentum=0.5, recompute_statistics_on=data, leave_averaged=False)
    plain_watch, watch = Watch(), Watch()
    plain, plain_parts = train([], plain_watch)
    averaged, parts = train([averaging] if replicas > 1 else [averaging, Prediction()], watch)
    assert plain["loss"] == averaged["loss"]
    assert plain["val_loss"] != averaged["val_loss"]
    for a, b in zip(watch.weights, plain_watch.weights, strict=True):
        assert_identical(a, b)
    assert_identical(parts, plain_parts)  # each replica's own statistics


def test_validation_runs_on_the_average_with_its_own_statistics():
    x, y = runs.images()
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(10)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    averaging = kt.callbacks.WeightAveraging("swa", start=0, recompute_statistics_on=data)
    model = normalized()
    model.compile("adam", loss)
    history = model.fit(x, y, epochs=3, verbose=0, validation_data=(x, y), callbacks=[averaging])
    assert history.history["val_loss"][-1] == pytest.approx(model.evaluate(x, y, verbose=0), rel=1e-6)
    assert "evaluate" not in vars(model)


@pytest.mark.parametrize("when", ["training", "validation"])
def test_after_an_interruption_the_model_has_the_weights_of_training(when):
    x, y = runs.images()
    data = tf.data.Dataset.from_tensor_slices(x).batch(8)
    watch = Watch(batches=True)

    class Interrupt(keras.callbacks.Callback):
        epoch = 0

        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_begin(self, batch, logs=None):
            if (when, self.epoch) == ("training", 2):
                raise KeyboardInterrupt

        def on_test_batch_end(self, batch, logs=None):
            if (when, self.epoch) == ("validation", 1):
                raise KeyboardInterrupt

    averaging = kt.callbacks.WeightAveraging("swa", start=0, recompute_statistics_on=data)
    model = normalized()
    model.compile(kt.LAMB(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, epochs=4, validation_data=(x, y), verbose=0, callbacks=[watch, averaging, Interrupt()])
    training = model.get_weights()
    last = watch.weights[-1]
    assert_identical([w.astype("float64") for w in training], last)
    with averaging.applied():
        assert np.abs(model.get_weights()[0] - training[0]).max() > 0
    assert_identical(model.get_weights(), training)
    with pytest.raises(ZeroDivisionError), averaging.applied():
        raise ZeroDivisionError
    assert_identical(model.get_weights(), training)
    another = kt.callbacks.WeightAveraging("swa", start=0, recompute_statistics_on=data)
    model.fit(x, y, epochs=1, verbose=0, callbacks=[another])
    assert another.collected == 1
    assert "evaluate" not in vars(model)


def test_early_stopping_keeps_the_average_that_was_validated():
    for order in (1, -1):
        x, y = runs.images()
        averaging = kt.callbacks.WeightAveraging("swa", start=0)
        stop = kt.callbacks.EarlyStopping(patience=1, mode="max", restore_best_weights=True)
        keras.utils.set_random_seed(0)
        model = runs.small_network()
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = model.fit(
            x, y, epochs=6, shuffle=False, verbose=0, validation_data=(x, y), callbacks=[averaging, stop][::order]
        )
        validated = history.history["val_loss"]
        assert stop.best == max(validated)
        assert model.evaluate(x, y, verbose=0) == pytest.approx(stop.best, rel=1e-6)


class Crash(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("kind", "every"), [("swa", "epoch"), ("ema", 3)])
def test_a_run_that_crashed_goes_on_as_if_it_had_not(tmp_path, kind, every):
    x, y = runs.images()

    def run(callbacks):
        keras.utils.set_random_seed(0)
        model = runs.small_network()
        model.compile(kt.LAMB(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        averaging = kt.callbacks.WeightAveraging(kind, start=0, every=every, backup_dir=tmp_path / "average")
        try:
            model.fit(x, y, batch_size=8, epochs=4, shuffle=False, verbose=0, callbacks=[averaging, *callbacks])
        except KeyboardInterrupt:
            return None
        return model.get_weights()

    whole = run([])
    backup = keras.callbacks.BackupAndRestore(tmp_path / "model")
    assert run([backup, Crash()]) is None
    assert sorted(p.name for p in (tmp_path / "average").iterdir()) == ["averages-0.npz", "averages-1.npz"]
    assert_identical(run([backup]), whole)
    assert not list((tmp_path / "average").iterdir())


def fit(averaging, network=runs.small_network, more=(), **arguments):
    model = network()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(*runs.images(), verbose=0, callbacks=[averaging, *more], **arguments)
    return model


def test_a_resumed_run_without_the_state_it_needs_is_refused(tmp_path):
    averaging = kt.callbacks.WeightAveraging("ema", backup_dir=tmp_path)
    with pytest.raises(ValueError, match=r"does not hold averages-1.npz.*Put this callback before BackupAndRestore"):
        fit(averaging, initial_epoch=2, epochs=3)


def test_what_cannot_work_is_said_when_training_starts():
    with pytest.raises(ValueError, match="before averaging begins: start=3"):
        fit(kt.callbacks.WeightAveraging(start=3), epochs=3)
    with pytest.raises(ValueError, match="Pass training data as `recompute_statistics_on`"):
        fit(kt.callbacks.WeightAveraging(), normalized)
    fit(kt.callbacks.WeightAveraging(recompute_statistics_on=False), normalized)
    with pytest.raises(ValueError, match="Two WeightAveraging"):
        fit(kt.callbacks.WeightAveraging(), more=[kt.callbacks.WeightAveraging("ema")])
    renorm = lambda **kw: keras.layers.BatchNormalization(renorm=True, **kw)  # noqa: E731
    averaging = kt.callbacks.WeightAveraging(recompute_statistics_on=[runs.images()[0]])
    with pytest.raises(ValueError, match="batch renormalisation"):
        fit(averaging, lambda: normalized(renorm))


def test_it_is_not_for_predict_and_evaluate_and_says_what_is():
    averaging = kt.callbacks.WeightAveraging()
    with pytest.raises(RuntimeError, match="collected nothing"), averaging.applied():
        pass
    model = fit(averaging)
    for use in (model.predict, model.evaluate):
        with pytest.raises(RuntimeError, match=r"with averaging.applied\(\)"):
            use(runs.images()[0], verbose=0, callbacks=[averaging])


def test_a_run_that_stops_before_the_start_says_so():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = True

    model = runs.small_network()
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    with pytest.warns(UserWarning, match="before anything was collected"):
        model.fit(*runs.images(), epochs=5, verbose=0, callbacks=[kt.callbacks.WeightAveraging(start=2), Stop()])


@pytest.mark.parametrize(
    "arguments",
    [
        {"kind": "mean"},
        {"start": -1},
        {"start": 1.5},
        {"start": float("nan")},
        {"every": 0},
        {"every": "batch"},
        {"kind": "ema", "momentum": 1.0},
        {"kind": "swa", "momentum": 0.9},
        {"recompute_statistics_on": np.ones((3, 4))},
        {"recompute_statistics_on": tf.data.Dataset.from_tensors(1).repeat()},
    ],
    ids=str,
)
def test_arguments_of_the_wrong_kind_are_refused(arguments):
    with pytest.raises((TypeError, ValueError), match=r"Received|never ends"):
        kt.callbacks.WeightAveraging(**arguments)


def test_statistics_cannot_be_taken_over_a_generator():
    with pytest.raises(ValueError, match=r"must give batches.*Received: generator"):
        kt.callbacks.WeightAveraging(recompute_statistics_on=(x for x in [np.ones((3, 4))]))


@pytest.mark.parametrize(("every", "epochs"), [("epoch", 12), ("epoch", 60), (1, 12), (1, 600)])
def test_the_default_momentum_does_not_remember_the_start(every, epochs):
    averaging = kt.callbacks.WeightAveraging("ema", every=every)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.0), "mse")
    averaging.set_model(model)
    averaging.set_params({"epochs": epochs, "steps": 5})
    averaging.on_train_begin()
    collections = epochs if every == "epoch" else 5 * epochs
    assert averaging._momentum ** (collections - 1) <= 0.0101
    assert averaging._momentum <= (0.9 if every == "epoch" else 0.999)
    averaging._release()


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras' own, on the way to the warning
def test_an_average_that_remembers_its_start_says_so():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    averaging = kt.callbacks.WeightAveraging("ema", momentum=0.999)
    with pytest.warns(UserWarning, match=r"after 3 collections the weights of the first still make up 100%"):
        model.fit(np.ones((4, 1)), np.ones((4, 1)), epochs=3, verbose=0, callbacks=[averaging])


def test_a_model_that_was_backed_up_in_mid_epoch_is_refused(tmp_path):
    """Keras begins that epoch again with weights that have seen a part of it, of which the average knows nothing."""

    class Crash(keras.callbacks.Callback):
        batches = 0

        def on_train_batch_end(self, batch, logs=None):
            self.batches += 1
            if self.batches == 7:
                raise KeyboardInterrupt

    def fit(*more):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
        averaging = kt.callbacks.WeightAveraging("swa", start=0, every=1, backup_dir=tmp_path / "average")
        backup = keras.callbacks.BackupAndRestore(tmp_path / "model", save_freq=2)
        x, y = np.ones((8, 4)), np.ones((8, 1))
        model.fit(x, y, batch_size=2, epochs=3, verbose=0, callbacks=[averaging, backup, *more])

    with pytest.raises(KeyboardInterrupt):
        fit(Crash())
    with pytest.raises(ValueError, match=r"backed up in the middle of an epoch.*save_freq=\"epoch\""):
        fit()
