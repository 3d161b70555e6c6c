import itertools

import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import reference, runs

LOW, HIGH, HALF = 0.001, 0.1, 3


def cycle(momentum=None):
    return kt.callbacks.CyclicLR(kt.schedules.CyclicalLearningRate(LOW, HIGH, HALF), momentum=momentum)


def by_hand(momentum=None, steps=8):
    """The same training, batch by batch and eagerly, with the hyper-parameters set before each step."""
    keras.utils.set_random_seed(0)
    model = runs.small_network()
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    x, y = runs.images()
    for t in range(steps):
        rate = reference.cyclical(t, LOW, HIGH, HALF)
        optimizer.learning_rate = rate
        if momentum is not None:
            high, low = momentum
            optimizer.momentum = float(high - (high - low) * (rate - LOW) / (HIGH - LOW))
        batch = slice(8 * (t % 4), 8 * (t % 4) + 8)
        model.train_on_batch(x[batch], y[batch])
    return runs.Run(model, [], model.get_weights())


BOTH = (0.95, 0.2)
CONDITIONS = [
    *[("eager", 1, BOTH, 1), ("graph", 1, None, 1), ("graph", 1, BOTH, 3), ("graph", 2, BOTH, 1)],
    *[("xla", 1, BOTH, 1), ("xla", 2, BOTH, 3), ("xla", 2, None, 1)],
]


def every_condition():
    for mode, replicas, momentum, at_once in itertools.product(("eager", "graph", "xla"), (1, 2), (None, BOTH), (1, 3)):
        if mode != "eager" or at_once == 1:  # eagerly Keras runs one step an execution
            condition = mode, replicas, momentum, at_once
            yield condition if condition in CONDITIONS else runs.slow(*condition)


@pytest.mark.parametrize(("mode", "replicas", "momentum", "steps_per_execution"), [*every_condition()])
def test_rate_and_momentum_move_at_every_step(mode, replicas, momentum, steps_per_execution):
    run = runs.train(
        lambda: keras.optimizers.SGD(0.01, momentum=0.9),
        mode,
        replicas,
        callbacks=[cycle(momentum)],
        steps_per_execution=steps_per_execution,
    )
    runs.assert_same_weights(run, by_hand(momentum), 3e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.Adam(0.01),
        runs.slow(lambda: keras.optimizers.RMSprop(0.01, momentum=0.5)),
        lambda: keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        runs.slow(lambda: kt.LAMB(0.01)),  # as the accumulating one
        lambda: kt.LossScaleOptimizer(kt.LAMB(0.01)),
        lambda: kt.LAMB(0.01, gradient_accumulation_steps=2),
    ],
    ids=["Adam", "RMSprop", "Nesterov", "LAMB", "loss-scaled", "accumulating"],
)
@pytest.mark.parametrize("replicas", [1, runs.slow(2)])
def test_momentum_really_moves_in_every_optimizer(optimizer, replicas):
    still, moving = (runs.train(optimizer, replicas=replicas, callbacks=[cycle(m)]) for m in ((0.9, 0.9), (0.9, 0.1)))
    assert max(np.abs(a - b).max() for a, b in zip(still.weights, moving.weights, strict=True)) > 1e-4


def test_accumulation_counts_optimizer_steps():
    large = runs.train(lambda: kt.LAMB(0.01), callbacks=[cycle((0.95, 0.5))], batch=16)
    small = runs.train(
        lambda: kt.LAMB(0.01, gradient_accumulation_steps=4), replicas=2, callbacks=[cycle((0.95, 0.5))], batch=4
    )
    runs.assert_same_weights(large, small, 5e-5)


def test_the_last_values_of_an_epoch_are_logged():
    run = runs.train(lambda: kt.LAMB(0.01), callbacks=[cycle((0.9, 0.5))])
    history = run.model.history.history
    rates = [reference.cyclical(t, LOW, HIGH, HALF) for t in (3, 7)]
    assert history["learning_rate"] == pytest.approx(rates, rel=1e-5)
    assert history["momentum"] == pytest.approx([0.9 - 0.4 * (r - LOW) / (HIGH - LOW) for r in rates], rel=1e-5)


def test_after_training_the_optimizer_is_as_it_was_but_for_the_rate():
    run = runs.train(lambda: kt.LAMB(0.01), callbacks=[cycle((0.95, 0.5))])
    optimizer = run.model.optimizer
    assert float(optimizer.beta_1) == optimizer.get_config()["beta_1"] == 0.9
    assert not {"apply", "get_config"} & set(vars(optimizer))
    rate = float(optimizer.learning_rate)
    run.model.fit(*runs.images(), batch_size=8, verbose=0)
    assert float(optimizer.learning_rate) == rate


def test_a_model_saved_in_the_middle_continues_in_the_middle_of_the_cycle(tmp_path):
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    whole = runs.train(lambda: kt.LAMB(0.01), callbacks=[cycle((0.95, 0.5)), checkpoint])
    loaded = keras.models.load_model(tmp_path / "1.keras")
    assert loaded.optimizer.get_config()["beta_1"] == 0.9
    loaded.fit(*runs.images(), batch_size=8, shuffle=False, verbose=0, callbacks=[cycle((0.95, 0.5))])
    for a, b in zip(loaded.get_weights(), whole.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("again", [True, False])
def test_an_interrupted_run_leaves_nothing_behind_for_the_next(again):
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise KeyboardInterrupt

    callback = cycle((0.95, 0.5))
    keras.utils.set_random_seed(0)
    model = runs.small_network()
    model.compile(kt.LAMB(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = runs.images()
    with pytest.raises(KeyboardInterrupt):
        model.fit(x, y, verbose=0, callbacks=[callback, Interrupt()])
    if again:
        model.fit(x, y, verbose=0, callbacks=[callback])
    else:
        callback.on_train_end()
    assert not {"apply", "get_config"} & set(vars(model.optimizer))
    rate = float(model.optimizer.learning_rate)
    model.fit(x, y, verbose=0)
    assert float(model.optimizer.learning_rate) == rate
    assert float(model.optimizer.beta_1) == 0.9


@pytest.mark.parametrize(
    ("schedule", "momentum", "error"),
    [
        (0.1, None, TypeError),
        (kt.schedules.CyclicalLearningRate(LOW, HIGH, 3), 0.9, TypeError),
        (kt.schedules.CyclicalLearningRate(LOW, HIGH, 3), (0.8, 0.9), ValueError),
        (kt.schedules.CyclicalLearningRate(LOW, HIGH, 3), (1.0, 0.9), ValueError),
        (keras.optimizers.schedules.CosineDecay(0.1, 10), (0.95, 0.85), ValueError),
        (kt.schedules.CyclicalLearningRate(LOW, LOW, 3), (0.95, 0.85), ValueError),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(schedule, momentum, error):
    with pytest.raises(error):
        kt.callbacks.CyclicLR(schedule, momentum)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.1, 9)), "Give it a number"),
        (lambda: keras.optimizers.SGD(0.1), "no `momentum` or `beta_1`"),
    ],
)
def test_an_optimizer_that_cannot_be_moved_is_reported_when_training_starts(optimizer, message):
    with pytest.raises(ValueError, match=message):
        runs.train(optimizer, callbacks=[cycle((0.95, 0.85))])


def test_beside_a_callback_that_wraps_apply_and_takes_its_wrap_out_in_either_order():
    class Wrapping(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.plain = self.model.optimizer.apply
            self.model.optimizer.apply = lambda *args, **kwargs: self.plain(*args, **kwargs)

        def on_train_end(self, logs=None):
            self.model.optimizer.apply = self.plain

    cycle = kt.callbacks.CyclicLR(kt.schedules.CyclicalLearningRate(0.01, 0.1, 4))
    x, y = np.ones((8, 2), "float32"), np.ones((8, 1), "float32")
    for callbacks in ([Wrapping(), cycle], [cycle, Wrapping()]):
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.fit(x, y, batch_size=4, verbose=0, callbacks=callbacks)
        rate = float(model.optimizer.learning_rate)
        model.fit(x, y, batch_size=4, verbose=0)  # without callbacks
        assert float(model.optimizer.learning_rate) == rate
        model.fit(x, y, batch_size=4, verbose=0, callbacks=callbacks)
        assert float(model.optimizer.learning_rate) != rate
