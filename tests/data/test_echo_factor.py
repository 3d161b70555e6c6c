import functools
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from tests import runs


def sleep(seconds, taken):
    """Sleeps, and notes for how long: longer than asked, most on a busy machine."""
    start = time.perf_counter()
    time.sleep(seconds)
    taken.append(time.perf_counter() - start)


def slow(seconds, count=1000, size=4, taken=None):
    """A reader that takes so long for each element, which it notes in `taken`."""
    taken = [] if taken is None else taken

    def read(i):
        sleep(seconds, taken)
        return i

    @tf.autograph.experimental.do_not_convert
    def element(i):
        i = tf.ensure_shape(tf.numpy_function(read, [i], tf.int64), ())
        return tf.ones(size) * tf.cast(i % 7, tf.float32), i % 3

    return tf.data.Dataset.range(count).map(element)


def of_three_tries(test):
    """For what measures time: a busy machine may spoil it, but hardly three times."""

    @functools.wraps(test)
    def tried(*arguments, **named):
        for _ in range(2):
            try:
                return test(*arguments, **named)
            except AssertionError:
                pass
        return test(*arguments, **named)

    return tried


@of_three_tries
@pytest.mark.parametrize(("upstream", "step", "ratio"), [(0.004, 0.016, 2.0), (0.001, 0.032, 0.25)])
def test_it_finds_the_ratio_of_reading_and_training(upstream, step, ratio, capsys):
    reads, steps = [], []
    found = kt.data.measure_echo_factor(
        slow(upstream, taken=reads), lambda x, y: sleep(step, steps), downstream=lambda d: d.batch(8), seconds=0.6
    )
    assert found.elements == pytest.approx(8)
    assert 0.7 < found.ratio / (8 * np.mean(reads) / np.mean(steps)) < 1.4
    assert found.ratio == found.upstream_seconds / found.step_seconds
    assert found.factor == max(1.0, int(100 * found.ratio) / 100)
    assert found.speedup == pytest.approx(max(1.0, found.ratio), rel=0.01)
    printed = capsys.readouterr().out
    assert ("Reading is the bottleneck" if ratio > 1 else "Reading keeps up with training") in printed
    assert str(found) in printed


@of_three_tries
def test_the_factor_it_finds_costs_no_time():
    def seconds_a_step(dataset):
        batches = iter(dataset.repeat().batch(8).prefetch(4))
        for _ in range(4):
            next(batches)
        start = time.perf_counter()
        for _ in range(20):
            next(batches)
            time.sleep(0.01)
        return (time.perf_counter() - start) / 20

    dataset = slow(0.005)
    found = kt.data.measure_echo_factor(
        dataset, lambda x, y: time.sleep(0.01), downstream=lambda d: d.batch(8), seconds=0.5, verbose=False
    )
    assert 2 < found.factor < 7
    plain, echoed = seconds_a_step(dataset), seconds_a_step(dataset.apply(kt.data.echo(found.factor)))
    assert plain / echoed > 0.6 * found.speedup


def test_elements_of_a_step_are_counted_where_their_number_cannot_be_known():
    def downstream(dataset):
        return dataset.filter(lambda x, y: y == 0).batch(4)  # a third of the elements

    found = kt.data.measure_echo_factor(
        slow(0.0), lambda x, y: time.sleep(0.002), downstream=downstream, seconds=0.5, verbose=False
    )
    assert found.elements == pytest.approx(12, rel=0.1)


@of_three_tries
def test_small_fast_elements_are_not_timed_by_python():
    dataset = tf.data.Dataset.range(10_000)
    found = kt.data.measure_echo_factor(dataset, lambda x: time.sleep(0.001), seconds=0.3, verbose=False)
    walk, start = iter(dataset), time.perf_counter()
    for _ in range(3000):
        next(walk)
    assert found.upstream_seconds < 0.5 * (time.perf_counter() - start) / 3000  # found: 0.04 to 0.3
    assert found.factor == 1


@pytest.mark.parametrize(("replicas", "steps_per_execution"), [(1, 1), (2, 3), runs.slow(1, 3), runs.slow(2, 1)])
def test_a_model_is_left_exactly_as_it_was(replicas, steps_per_execution):
    keras.config.set_dtype_policy("mixed_float16")
    with runs.strategy_of(replicas).scope():
        model = keras.Sequential([keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)])
        model.compile(
            kt.LossScaleOptimizer(kt.LAMB(0.01)), "mse", metrics=["mae"], steps_per_execution=steps_per_execution
        )
    x, y = np.random.default_rng(0).normal(size=(2, 32, 8)).astype("float32")
    model.fit(x, y, batch_size=8, verbose=0)
    model.stop_training = "untouched"
    history = model.history

    def state():
        variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
        return [keras.ops.convert_to_numpy(v) for v in variables]

    before = state()
    data = tf.data.Dataset.from_tensor_slices((x, y))
    found = kt.data.measure_echo_factor(data, model, downstream=lambda d: d.batch(8), seconds=0.3, verbose=False)
    assert found.elements == pytest.approx(8)
    assert 0 < found.step_seconds < 1
    for a, b in zip(before, state(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert model.history is history
    assert model.stop_training == "untouched"


def test_a_model_that_was_never_called_starts_from_what_it_would_start_from():
    def trained(measure):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Dense(3)])
        model.compile("adam", "mse")
        x, y = np.ones((16, 4), "float32"), np.zeros((16, 3), "float32")
        if measure:
            data = tf.data.Dataset.from_tensor_slices((x, y)).batch(4)
            kt.data.measure_echo_factor(data, model, seconds=0.05, verbose=False)
        model.fit(x, y, shuffle=False, verbose=0)
        return model.get_weights()

    for a, b in zip(trained(False), trained(True), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_after_an_error_or_ctrl_c_the_model_is_as_it_was(error):
    class Breaks(keras.layers.Layer):
        def call(self, x):
            tf.numpy_function(self.count, [], [])
            return x

        calls = 0

        def count(self):
            self.calls += 1
            if self.calls > 5:
                raise error("stopped")

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), Breaks()])
    model.compile("adam", "mse", run_eagerly=True)
    before = model.get_weights()
    data = tf.data.Dataset.from_tensors((np.ones((4, 4)), np.zeros((4, 3))))
    with pytest.raises((error, tf.errors.OpError)):
        kt.data.measure_echo_factor(data, model, seconds=0.5, verbose=False)
    assert model.layers[-1].calls > 5
    assert int(model.optimizer.iterations) == 0
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def numbers():
    return tf.data.Dataset.range(10)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kt.data.measure_echo_factor([1], print), TypeError, "tf.data.Dataset"),
        (lambda: kt.data.measure_echo_factor(numbers(), 3), TypeError, "compiled Keras model or a function"),
        (lambda: kt.data.measure_echo_factor(numbers(), keras.Sequential()), ValueError, "not compiled"),
        (lambda: kt.data.measure_echo_factor(numbers(), print, seconds=0), ValueError, "seconds"),
        (lambda: kt.data.measure_echo_factor(numbers(), print, sample=-1), ValueError, "sample"),
        (lambda: kt.data.measure_echo_factor(numbers().take(0), print, seconds=0.1), ValueError, "no elements"),
        (
            lambda: kt.data.measure_echo_factor(
                numbers(), print, downstream=lambda d: d.take(7).batch(8, drop_remainder=True), seconds=0.1
            ),
            ValueError,
            "made no batch",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
