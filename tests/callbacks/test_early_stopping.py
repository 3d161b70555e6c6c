import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_tricks as kt
from tests import reference, runs


class Replay(keras.Model):
    """Its weight counts the epochs; its losses are the given ones."""

    def __init__(self, validation, training):
        super().__init__()
        self.epochs_run = self.add_weight(name="epochs_run", initializer="zeros")
        self.validation, self.training = validation, training


def replay(stop, validation, training=None, first=0, frequency=1):
    """Drives the callback as `fit` does, with these values. Returns the check that it stopped at, from 1."""
    model = Replay(validation, training)
    model.stop_training = False
    stop.set_model(model)
    stop.on_train_begin()
    for epoch in range(first, len(validation)):
        stop.on_epoch_begin(epoch)
        model.epochs_run.assign(epoch + 1)
        logs = {"loss": 1.0 if training is None else training[epoch], "accuracy": 0.5}
        if (epoch + 1) % frequency == 0:
            logs |= {stop.monitor: validation[epoch]}
        stop.on_epoch_end(epoch, logs)
        if model.stop_training:
            break
    stop.on_train_end()
    replay.model = model
    return None if stop.stopped_epoch is None else stop.stopped_epoch + 1


def curves(length=60, seed=0):
    """An overfitting run with noise: validation falls and rises, training falls."""
    random = np.random.default_rng(seed)
    t = np.arange(1, length + 1)
    training = np.exp(-t / 15) + 0.1 + 0.01 * random.normal(size=length)
    return training + 0.004 * t + 0.02 * random.normal(size=length), training


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("criterion", "alphas"),
    [("GL", (1, 2, 5, 20)), ("PQ", (0.1, 0.5, 1, 3)), ("UP", (None,)), ("gap", (None,))],
)
def test_the_criteria_stop_where_prechelts_definitions_do(criterion, alphas, seed):
    va, tr = curves(seed=seed)
    for alpha in alphas:
        for strip, successive in [(5, 2), (1, 3), (4, 1)]:
            own = {"PQ": {"strip": strip}}.get(criterion, {"strip": strip, "successive": successive})
            own = {} if criterion == "GL" else own
            stop = kt.callbacks.EarlyStopping(criterion, alpha=alpha, **own)
            assert replay(stop, va, tr) == reference.early_stop(criterion, va, tr, alpha, strip, successive)
            assert (stop.stopped_because is None) == (stop.stopped_epoch is None)


def test_the_references_themselves_stop_at_all():
    va, tr = curves()
    stops = [reference.early_stop(c, va, tr, a) for c, a in [("GL", 5), ("PQ", 0.1), ("UP", 0), ("gap", 0)]]
    assert all(t is not None and 5 < t < 60 for t in stops), stops


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-2, 2, width=32, allow_subnormal=False), min_size=1, max_size=14),  # 0 for TensorFlow
    st.integers(0, 4),
    st.sampled_from([0, 0.25]),
    st.sampled_from(["min", "max"]),
    st.sampled_from([None, 0.5]),
    st.integers(0, 3),
)
def test_patience_is_that_of_keras(values, patience, min_delta, mode, baseline, start):
    arguments = {
        "patience": patience,
        "min_delta": min_delta,
        "mode": mode,
        "baseline": baseline,
        "start_from_epoch": start,
        "restore_best_weights": True,
    }
    theirs = keras.callbacks.EarlyStopping("val_loss", **arguments)
    theirs.stopped_because = None
    model = Replay(values, None)
    model.stop_training = False
    theirs.set_model(model)
    theirs.on_train_begin()
    for epoch, value in enumerate(values):
        model.epochs_run.assign(epoch + 1)
        theirs.on_epoch_end(epoch, {"val_loss": value})
        if model.stop_training:
            break
    theirs.on_train_end()
    ours = kt.callbacks.EarlyStopping("patience", **arguments)
    stopped = replay(ours, values)
    assert (stopped or 0) == (theirs.stopped_epoch + 1 if model.stop_training else 0)
    if ours.best is not None:
        assert ours.best_epoch == theirs.best_epoch
    assert float(replay.model.epochs_run) == float(model.epochs_run)


def test_more_is_better_for_an_accuracy_and_the_name_says_so():
    accuracy = [0.5, 0.7, 0.8, 0.79, 0.75]
    stop = kt.callbacks.EarlyStopping("GL", monitor="val_accuracy", alpha=5)
    assert replay(stop, accuracy) == 5  # 6.25 % below the best
    assert (stop.best, stop.best_epoch) == (0.8, 2)
    assert "val_accuracy is 0.75, 6.25 % worse" in stop.stopped_because
    assert "the best was 0.8 in epoch 3" in stop.stopped_because


@pytest.mark.parametrize("name", ["loss", "mean_squared_error", "mae", "head_loss", "categorical_crossentropy"])
def test_errors_fall(name):
    assert replay(kt.callbacks.EarlyStopping(monitor=f"val_{name}"), [1.0, 2.0]) == 2


@pytest.mark.parametrize("name", ["accuracy", "auc_2", "top_k_categorical_accuracy", "mean_io_u", "recall"])
def test_scores_rise(name):
    assert replay(kt.callbacks.EarlyStopping(monitor=f"val_{name}"), [1.0, 2.0]) is None


def test_signed_losses_are_judged_by_the_size_of_the_best():
    assert replay(kt.callbacks.EarlyStopping("GL", alpha=5), [-1.0, -2.0, -1.95, -1.8]) == 4  # 2.5 and 10 %
    va, tr = [-1.0, -2.0, -1.0, -0.5], [-1.0, -2.0, -2.1, -2.2]
    assert replay(kt.callbacks.EarlyStopping("PQ", alpha=0.5, strip=2), va, tr) == reference.early_stop(
        "PQ", va, tr, 0.5, 2
    )


def test_zero_errors_do_not_divide_by_zero():
    assert replay(kt.callbacks.EarlyStopping("GL"), [0.0, 0.0, 0.1]) == 3
    assert replay(kt.callbacks.EarlyStopping("PQ", strip=2), [1.0, 1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]) == 4
    assert replay(kt.callbacks.EarlyStopping("PQ", strip=2), [1.0, 1.0, 1.0, 2.0], [1.0, 0.0, 1.0, 0.0]) is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_worse_than_any_other(bad):
    flat = [1.0] * 4
    assert replay(kt.callbacks.EarlyStopping("GL"), [1.0, bad]) == 2
    assert replay(kt.callbacks.EarlyStopping("PQ", strip=2), [1.0, 1.0, 1.0, bad], flat) == 4
    assert replay(kt.callbacks.EarlyStopping("UP", strip=2, successive=1), [1.0, 1.0, bad, bad]) == 4
    assert replay(kt.callbacks.EarlyStopping("gap", strip=2, successive=1), [1.0, 1.0, 1.0, bad], flat) == 4
    stop = kt.callbacks.EarlyStopping(patience=2, restore_best_weights=True)
    assert replay(stop, [math.nan, 1.0, bad, 0.5, bad, bad]) == 6
    assert (stop.best_epoch, float(replay.model.epochs_run)) == (3, 4.0)


def test_without_a_number_there_is_nothing_to_restore_and_it_says_so():
    with pytest.warns(UserWarning, match="no best weights to restore"):
        replay(kt.callbacks.EarlyStopping(patience=5, restore_best_weights=True), [math.nan] * 3)


def test_a_gap_below_zero_that_closes_is_no_overfitting():
    va, tr = [1.0, 1.0, 1.0, 1.0], [1.6, 1.4, 1.2, 1.0]
    assert replay(kt.callbacks.EarlyStopping("gap", strip=1), va, tr) is None
    assert replay(kt.callbacks.EarlyStopping("gap", strip=1), va, [1.0, 0.9, 0.8, 0.7]) == 3


def test_a_history_shorter_than_a_strip_never_stops():
    for criterion in ("PQ", "UP", "gap"):
        assert replay(kt.callbacks.EarlyStopping(criterion), [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0]) is None


def test_epochs_without_validation_are_no_checks():
    stop = kt.callbacks.EarlyStopping(patience=2, validation_freq=2)
    assert replay(stop, [0, 1.0, 0, 2.0, 0, 3.0, 0, 4.0], frequency=2) == 6


def small(epochs=1, callbacks=(), **fit):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile("sgd", "mse", metrics=["mae"])
    x, y = np.ones((8, 4)), np.ones((8, 1))
    return model, model.fit(x, y, epochs=epochs, verbose=0, callbacks=list(callbacks), **fit)


def test_a_value_that_never_appears_is_an_error_that_lists_those_that_do():
    data = (np.ones((8, 4)), np.ones((8, 1)))
    with pytest.raises(ValueError, match=r"'val_loss', which is not in the logs.* loss, mae\. Give `fit` validation"):
        small(callbacks=[kt.callbacks.EarlyStopping()])
    with pytest.raises(ValueError, match="loss, mae, val_loss, val_mae"):
        small(callbacks=[kt.callbacks.EarlyStopping(monitor="val_mse")], validation_data=data)
    with pytest.raises(ValueError, match="monitors 'accuracy'"):
        small(callbacks=[kt.callbacks.EarlyStopping("PQ", train_monitor="accuracy")], validation_data=data)


@pytest.mark.parametrize(("replicas", "precision"), [(1, "mixed_float16"), (2, "mixed_bfloat16")])
def test_the_best_weights_come_back_in_every_precision_and_on_replicas(replicas, precision):
    best = []

    class Watch(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            best.append(self.model.get_weights())

    stop = kt.callbacks.EarlyStopping(monitor="loss", mode="max", patience=9, restore_best_weights=True)
    run = runs.train(lambda: keras.optimizers.SGD(0.1), "graph", replicas, precision, callbacks=[stop, Watch()])
    assert stop.best_epoch == 0
    for w, kept, last in zip(run.weights, best[0], best[-1], strict=True):
        np.testing.assert_array_equal(w, kept)
        assert not np.array_equal(w, last)


@pytest.mark.parametrize("policy", ["bfloat16", "float16"])
def test_low_precision_weights_survive_the_file(tmp_path, policy):
    keras.config.set_dtype_policy(policy)
    arguments = {"monitor": "loss", "patience": 9, "restore_best_weights": True, "backup_dir": tmp_path}
    stop = kt.callbacks.EarlyStopping(**arguments)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    stop.set_model(model)
    stop.on_train_begin()
    stop.on_epoch_begin(0)
    kept = model.get_weights()
    stop.on_epoch_end(0, {"loss": 1.0})
    model.set_weights([0 * w for w in kept])
    other = kt.callbacks.EarlyStopping(**arguments)
    other.set_model(model)
    other.on_train_begin()
    other.on_epoch_begin(1)
    other.on_train_end()
    for a, b in zip(model.get_weights(), kept, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


class Crash(keras.callbacks.Callback):
    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("criterion", "arguments", "first"),
    [("patience", {"patience": 3}, "backup"), ("GL", {"alpha": 4}, "stopping"), ("UP", {"strip": 2}, "backup")],
)
def test_a_run_that_crashed_goes_on_as_if_it_had_not(tmp_path, criterion, arguments, first):
    x = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
    data = (x, -x[:, :1])

    def run(callbacks):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.02), "mse")
        stop = kt.callbacks.EarlyStopping(
            criterion, restore_best_weights=True, backup_dir=tmp_path / "stop", **arguments
        )
        backup = [keras.callbacks.BackupAndRestore(tmp_path / "model")] if callbacks is not None else []
        order = [stop, *backup] if first == "stopping" else [*backup, stop]
        try:
            model.fit(
                x,
                x[:, :1],
                epochs=12,
                shuffle=False,
                verbose=0,
                validation_data=data,
                callbacks=order + (callbacks or []),
            )
        except KeyboardInterrupt:
            return stop, None
        return stop, model.get_weights()

    whole, weights = run(None)
    _, nothing = run([Crash(2)])
    assert nothing is None
    resumed, again = run([])
    assert whole.stopped_because
    assert resumed.stopped_because == whole.stopped_because
    np.testing.assert_array_equal(resumed.history, whole.history)
    for a, b in zip(again, weights, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not list((tmp_path / "stop").iterdir())


def test_a_state_of_another_run_is_refused(tmp_path):
    stop = kt.callbacks.EarlyStopping(monitor="val_mae", backup_dir=tmp_path)
    stop.history, stop.best, stop.best_epoch = [(0, 1.0, 1.0)], 1.0, 0
    stop._save(0)
    other = kt.callbacks.EarlyStopping(backup_dir=tmp_path)
    with pytest.raises(ValueError, match="of a run that monitored"):
        small(2, [other], initial_epoch=1, validation_split=0.5)
    small(1, [other], validation_split=0.5)  # a run from the beginning does not look at it


def test_a_state_that_lacks_an_epoch_is_told_of(tmp_path):
    with pytest.warns(UserWarning, match="does not know epoch 2"):
        small(3, [kt.callbacks.EarlyStopping(monitor="loss", backup_dir=tmp_path)], initial_epoch=2)


def test_it_stops_a_compiled_fit_with_several_steps_an_execution():
    x, y = np.ones((16, 4), "float32"), np.ones((16, 1), "float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    model.compile("sgd", "mse", steps_per_execution=3)
    stop = kt.callbacks.EarlyStopping("GL")
    history = model.fit(x, y, batch_size=2, epochs=9, validation_data=(x, -y), callbacks=[stop], verbose=0)
    assert len(history.history["loss"]) == 2 == stop.stopped_epoch + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"criterion": "val_loss"}, "must be 'patience', 'GL'"),
        ({"patience": 3, "criterion": "GL"}, "`patience` has no effect"),
        ({"alpha": 3}, "`alpha` has no effect on criterion='patience'; it is for GL, PQ"),
        ({"criterion": "UP", "min_delta": 0.1}, "no effect"),
        ({"criterion": "UP", "strip": 0}, "`strip` must be at least 1"),
        ({"criterion": "GL", "alpha": -1}, "`alpha` must be greater than 0"),
        ({"patience": 1.5}, "`patience` must be an integer"),
        ({"min_delta": -1}, "`min_delta` must be at least 0"),
        ({"min_delta": float("inf")}, "`min_delta` must be at least 0 and finite"),
        ({"baseline": float("nan")}, "`baseline` must be finite"),
        ({"validation_freq": 0}, "`validation_freq` must be at least 1"),
        ({"validation_freq": [1, 2.5]}, "`validation_freq` must be an integer"),
        ({"mode": "down"}, "`mode` must be"),
        ({"monitor": "val_something"}, "cannot be told by its name"),
        ({"criterion": "gap", "monitor": "val_accuracy"}, "set `train_monitor='NAME'`"),
    ],
)
def test_arguments_that_are_wrong_or_of_no_use_are_refused(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        kt.callbacks.EarlyStopping(**arguments)


def test_the_best_weights_of_an_epoch_that_was_lost_are_lost_too(tmp_path):
    """The callback's backup of epoch 3 is there, the model's own is not, and epoch 3 runs again."""

    def stop():
        return kt.callbacks.EarlyStopping(
            monitor="loss", patience=9, restore_best_weights=True, backup_dir=tmp_path / "stop"
        )

    def trained(callbacks):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.05), "mse")
        backup = keras.callbacks.BackupAndRestore(tmp_path / "model", delete_checkpoint=False)
        model.fit(
            np.eye(4),
            np.ones((4, 1)),
            epochs=5,
            batch_size=4,
            shuffle=False,
            verbose=0,
            callbacks=[*callbacks, backup],
        )
        return model.get_weights()

    class Crash(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    first = stop()
    with pytest.raises(KeyboardInterrupt):
        trained([first, Crash()])
    assert first.best_epoch == 2
    resumed = stop()
    resumed_begin = []
    seen = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: resumed_begin.append((epoch, resumed.best_epoch, len(resumed.history)))
    )
    trained([resumed, seen])
    assert resumed_begin[0] == (2, 1, 2)
    assert [epoch for epoch, _, _ in resumed.history] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off"])
def test_a_damaged_backup_is_named(tmp_path, content):
    (tmp_path / "early_stopping-0.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"(?s)The backup .*early_stopping-0.npz cannot be read.*Delete it"):
        small(2, [kt.callbacks.EarlyStopping(backup_dir=tmp_path)], initial_epoch=1, validation_split=0.5)
