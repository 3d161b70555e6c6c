"""What every callback leaves behind: after a `fit` that was stopped the model is as one that never had the callback."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from tests import runs

pytestmark = pytest.mark.filterwarnings("ignore:WeightAveraging")  # of so few epochs

X, Y = np.random.default_rng(0).normal(size=(12, 4)).astype("float32"), np.arange(12) % 3


def loss():
    return kt.losses.ClassBalanced([60, 30, 10], beta=0)


CALLBACKS = {
    "Histograms": lambda model: kt.callbacks.Histograms(every=1),
    "CyclicLR": lambda model: kt.callbacks.CyclicLR(
        kt.schedules.CyclicalLearningRate(0.01, 0.1, 4), momentum=(0.9, 0.5)
    ),
    "WeightAveraging": lambda model: kt.callbacks.WeightAveraging("ema", momentum=0.5),
    "WeightAveraging of steps": lambda model: kt.callbacks.WeightAveraging("swa", start=0, every=1),
    "DeferredReweighting": lambda model: kt.callbacks.DeferredReweighting(model.loss, start_epoch=1, beta=0.999),
    "EarlyStopping": lambda model: kt.callbacks.EarlyStopping(restore_best_weights=True, patience=9),
}


class InValidation(KeyboardInterrupt):
    pass


STOPS = {
    "Ctrl-C": KeyboardInterrupt,
    "Ctrl-C in validation": InValidation,
    "an error of a callback": ZeroDivisionError,
    "a NaN": tf.errors.InvalidArgumentError,
}


class Stop(keras.callbacks.Callback):
    """Ends the third epoch in its middle; every callback has acted by then."""

    def __init__(self, error):
        super().__init__()
        self.error, self.epoch = error, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == 2 and batch == 1 and self.error is not InValidation:
            if self.error is tf.errors.InvalidArgumentError:
                tf.debugging.check_numerics(np.nan, "the loss")
            raise self.error

    def on_test_batch_end(self, batch, logs=None):
        if self.epoch == 2:
            raise InValidation


def compiled():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, activation="relu"), keras.layers.Dense(3)])
    model.compile(keras.optimizers.SGD(0.05, momentum=0.9, name="sgd"), loss(), metrics=["accuracy"])
    return model


def fit(model, *callbacks, epochs=1):
    data = {"validation_data": (X, Y), "batch_size": 4, "shuffle": False}
    return model.fit(X, Y, epochs=epochs, callbacks=list(callbacks), verbose=0, **data).history


def stopped(name, stop=KeyboardInterrupt, before=(), after=()):
    model = compiled()
    with pytest.raises(stop):
        fit(model, *before, CALLBACKS[name](model), *after, Stop(stop), epochs=5)
    return model


def twin_of(model):
    """One that never had a callback, in the same state."""
    twin = compiled()
    twin.optimizer.build(twin.trainable_variables)
    for v, value in zip(state_of(twin), state_of(model), strict=True):
        v.assign(value)
    return twin


def state_of(model):
    return [*model.variables, *model.optimizer.variables]


def is_as_one_that_never_had_it(model, then, tmp_path):
    twin = twin_of(model)
    ends = []
    for one in (model, twin):
        said = then(one)
        one.save(tmp_path / "m.keras")
        again = keras.models.load_model(tmp_path / "m.keras")
        values = [keras.ops.convert_to_numpy(v) for v in (*state_of(one), *state_of(again))]
        ends.append((values, said, one.evaluate(X, Y, verbose=0), one.optimizer.get_config()))
    for a, b in zip(ends[0][0], ends[1][0], strict=True):
        np.testing.assert_array_equal(a, b)
    assert ends[0][1:] == ends[1][1:]
    for name in ("fit", "evaluate", "save", "train_step", "make_train_function", "call"):
        assert name not in vars(model), name
    assert not {"apply", "update_step"} & set(vars(model.optimizer))


THEN = {
    "a plain fit": lambda model: fit(model, epochs=2),
    "evaluate": lambda model: model.evaluate(X, Y, verbose=0),
    "predict": lambda model: model.predict(X, verbose=0).tolist(),
    "compile": lambda model: model.compile(model.optimizer, loss(), metrics=["accuracy"]),
    "fit with EarlyStopping": lambda model: fit(model, kt.callbacks.EarlyStopping(restore_best_weights=True), epochs=2),
}


QUICK = {
    *(("fit with EarlyStopping", name) for name in ("CyclicLR", "WeightAveraging", "DeferredReweighting")),
    ("evaluate", "Histograms"),
}
ALIKE = ("WeightAveraging of steps", "EarlyStopping", "DeferredReweighting")  # replace no more than others do


@pytest.mark.parametrize("stop", [stop if stop == "Ctrl-C" else runs.slow(stop) for stop in STOPS])
@pytest.mark.parametrize(
    ("then", "name"),
    [case if case in QUICK else runs.slow(*case) for case in itertools.product(THEN, CALLBACKS)],
)
def test_after_a_fit_that_was_stopped_a_model_goes_on_as_one_that_never_had_the_callback(name, stop, then, tmp_path):
    is_as_one_that_never_had_it(stopped(name, STOPS[stop]), THEN[then], tmp_path)


@pytest.mark.parametrize("name", [runs.slow(name) if name in ALIKE else name for name in CALLBACKS])
def test_after_a_fit_that_was_stopped_a_new_callback_works_as_on_a_new_model(name):
    model = stopped(name)
    twin = twin_of(model)
    said = [fit(one, CALLBACKS[name](one), epochs=3) for one in (model, twin)]
    assert said[0] == said[1]
    for a, b in zip(state_of(model), state_of(twin), strict=True):
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(v) for v in (a, b)))


@pytest.mark.parametrize("name", [name if name == "WeightAveraging" else runs.slow(name) for name in CALLBACKS])
@pytest.mark.parametrize("is_stopped", [True, runs.slow(False)])
def test_the_same_callback_serves_two_models_one_after_the_other(name, is_stopped, tmp_path):
    first, second, alone = compiled(), compiled(), compiled()
    callback = CALLBACKS[name](first)
    if is_stopped:
        with pytest.raises(KeyboardInterrupt):
            fit(first, callback, Stop(KeyboardInterrupt), epochs=5)
    else:
        fit(first, callback, epochs=3)
    said = fit(second, callback, epochs=3), fit(alone, CALLBACKS[name](alone), epochs=3)
    assert said[0] == said[1]
    for a, b in zip(state_of(second), state_of(alone), strict=True):
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(v) for v in (a, b)))
    is_as_one_that_never_had_it(first, THEN["a plain fit"], tmp_path)
    is_as_one_that_never_had_it(second, THEN["a plain fit"], tmp_path)


class Foreign(keras.callbacks.Callback):
    """Another callback that wraps methods while training runs, and puts back what it found."""

    def __init__(self):
        super().__init__()
        self.calls, self.found = dict.fromkeys(("apply", "train_step", "evaluate", "make_train_function"), 0), []

    def on_train_begin(self, logs=None):
        for name in self.calls:
            owner = self.model.optimizer if name == "apply" else self.model
            self.found.append((owner, name, getattr(owner, name)))
            setattr(owner, name, self.wrapped(name, getattr(owner, name)))
        self.model.make_train_function(force=True)

    def wrapped(self, name, plain):
        def wrapper(*args, **kwargs):
            self.calls[name] += 1
            return plain(*args, **kwargs)

        return wrapper

    def on_train_end(self, logs=None):
        while self.found:
            setattr(*self.found.pop())
        self.model.make_train_function(force=True)


@pytest.mark.parametrize("name", [runs.slow(name) if name in ALIKE else name for name in CALLBACKS])
@pytest.mark.parametrize("ours_first", [True, runs.slow(False)])
@pytest.mark.parametrize("is_stopped", [False, runs.slow(True)])
def test_another_callback_that_wraps_the_same_methods_keeps_its_wrappers_and_takes_them_out(
    name, ours_first, is_stopped, tmp_path
):
    model, foreign = compiled(), Foreign()
    both = [CALLBACKS[name](model), foreign][:: 1 if ours_first else -1]
    if is_stopped:
        with pytest.raises(KeyboardInterrupt):
            fit(model, *both, Stop(KeyboardInterrupt), epochs=5)
        foreign.on_train_end()
    else:
        fit(model, *both, epochs=3)
    assert all(foreign.calls.values()), foreign.calls
    twin = twin_of(model)
    said = [fit(one, epochs=2) for one in (model, twin)]
    assert said[0] == said[1]
    for a, b in zip(state_of(model), state_of(twin), strict=True):
        np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(v) for v in (a, b)))
    fit(model, CALLBACKS[name](model), epochs=1)
    model.save(tmp_path / "m.keras")
