"""How much data echoing a pipeline can use, measured.

    R = upstream seconds / step seconds, for the data of one step
    echo(e) with e <= R costs no time; e optimizer steps then take as long as one does now
    upper bound on the speed-up: min(e, R)

Choi et al., 2019, arXiv:1907.05550.
"""

import contextlib
import dataclasses
import gc
import math
import time

import keras

from keras_tricks._arguments import check_count, check_flag, check_number
from keras_tricks._keras.snapshot import restored
from keras_tricks._labels.elements import require_dataset, require_tensorflow, tf

_LOOK = 0.02  # seconds between two looks at the clock
_MANY = 10**9  # elements, more than are ever drawn
_WARM_UP = 3  # steps that trace, compile and fill buffers


@dataclasses.dataclass(frozen=True)
class EchoFactor:
    """What `measure_echo_factor` found.

    Attributes:
        upstream_seconds: Seconds that reading takes for the data of one step.
        step_seconds: Seconds of one step, including all that lies between the echo and the step.
        ratio: `upstream_seconds / step_seconds`, R.
        factor: The largest factor for `echo` that costs no time: R, rounded down to two decimals, at least 1.
        speedup: How many times as fast steps are with that factor: an upper bound on what training gains, since repeats
            are worth less than fresh examples.
        elements: Elements of the dataset that one step uses.
    """

    upstream_seconds: float
    step_seconds: float
    elements: float

    @property
    def ratio(self):
        return self.upstream_seconds / self.step_seconds

    @property
    def factor(self):
        return max(1.0, math.floor(100 * self.ratio) / 100)

    @property
    def speedup(self):
        return max(1.0, min(self.factor, self.ratio))

    def __str__(self):
        lines = [
            f"reading  {1e3 * self.upstream_seconds:10.3f} ms for the data of one step ({self.elements:.4g} elements)",
            f"a step   {1e3 * self.step_seconds:10.3f} ms",
            f"R        {self.ratio:10.2f}",
        ]
        if self.factor < 1.1:
            lines.append("Reading keeps up with training: echoing would only repeat examples. Leave it out.")
        else:
            lines.append(
                f"Reading is the bottleneck: training waits {1 - 1 / self.ratio:.0%} of the time. "
                f"echo({self.factor:g}) is the largest factor that costs no time: steps come {self.speedup:.2g} times "
                "as fast. Repeats are worth less than fresh examples, so training gains at most that. Start with "
                f"echo({min(2.0, self.factor):g})."
            )
        return "\n".join(lines)


def measure_echo_factor(dataset, step, downstream=None, seconds=5.0, sample=256, verbose=True):
    """Measures whether `echo` helps, and the largest factor that costs no time.

    Times reading alone, then training alone, on elements that are held in memory. A Keras model is trained by `fit`
    under whatever strategy, precision and compilation it has; its weights, optimizer, metrics and seeds are put back
    exactly, even after an error or Ctrl-C. On a CPU, reading and training share the cores, so the real gain is less
    than the measured one.

    Args:
        dataset: The `tf.data.Dataset` as it is at the place of the echo.
        step: A compiled Keras model, or a function to call with each batch, or with a tuple's parts as separate
            arguments.
        downstream: The transformations between the echo and the step, such as augmentation and `batch`: a function from
            a dataset to a dataset. Defaults to `None`: the elements of `dataset` are batches.
        seconds: About how long to measure each of the two. Defaults to 5.
        sample: How many elements of `dataset` to hold in memory for the second part; at least those of one step.
            Defaults to 256.
        verbose: Whether to show progress and print the result. Defaults to `True`.

    Returns:
        An `EchoFactor` with `upstream_seconds`, `step_seconds`, `ratio` (R), `factor`, `speedup`, `elements`; as a
        string, it says in words what to do.

    Raises:
        TypeError: If `dataset` is not a dataset, `step` neither a model nor a function, or an argument is of the wrong
            kind.
        ValueError: If the model is not compiled, an argument is out of range, or the dataset has no elements or
            `downstream` makes no batch of them.
        RuntimeError: On a backend other than TensorFlow.

    Example:
    >>> import time, tensorflow as tf, keras_tricks as kt
    >>> slow = tf.data.Dataset.range(100).map(
    ...     lambda x: tf.numpy_function(lambda x: (time.sleep(0.02), x)[1], [x], tf.int64)
    ... )
    >>> found = kt.data.measure_echo_factor(slow, lambda x: time.sleep(0.01), seconds=0.5, verbose=False)
    >>> round(found.ratio)
    2

    Reference:
        Dami Choi, Alexandre Passos, Christopher J. Shallue, George E. Dahl, "Faster Neural Network Training with Data
        Echoing", 2019, arXiv:1907.05550.
    """
    require_tensorflow("measure_echo_factor")
    require_dataset("measure_echo_factor", dataset)
    seconds, sample = check_number("seconds", seconds, above=0), check_count("sample", sample)
    check_flag("verbose", verbose)
    if isinstance(step, keras.Model):
        if getattr(step, "optimizer", None) is None:
            raise ValueError("The model is not compiled, so it has no training step to time. Call `compile` first.")
        run = _fit
    elif callable(step):
        run = _call
    else:
        raise TypeError(f"`step` must be a compiled Keras model or a function of a batch. Received: {step!r}")

    with _progress(verbose) as show:
        an_element = _reading(dataset, seconds, show("Reading alone", seconds))
        kept = dataset.take(sample).cache()
        if not sum(1 for _ in _indices(kept)):
            raise ValueError("The dataset has no elements.")
        drawn = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, default_value=0)
        batches = _counted(kept.repeat(), drawn).apply(tf.data.experimental.assert_cardinality(_MANY))
        batches = (downstream(batches) if downstream else batches).prefetch(tf.data.AUTOTUNE)
        try:
            a_step, elements = run(
                step, batches, seconds, lambda: int(drawn.lookup(_zero())), show("Training alone", seconds)
            )
        except StopIteration:
            raise ValueError("`downstream` made no batch of the elements. Does it drop them?") from None
    if (made := int(batches.cardinality())) > 0:
        elements = _MANY / made  # exact; counting also counts what buffers have read ahead
    found = EchoFactor(an_element * elements, a_step, elements)
    if verbose:
        print(found)
    return found


def _zero():
    return tf.constant(0, tf.int64)


@contextlib.contextmanager
def _progress(verbose):
    """Returns a function that starts a progress bar and returns what moves it."""
    if not verbose:
        yield lambda text, total: lambda done: None
        return
    import rich.progress

    with rich.progress.Progress(transient=True) as bars:

        def show(text, total):
            bar = bars.add_task(text, total=total)
            return lambda done: bars.update(bar, completed=min(done, total))

        yield show


def _indices(dataset):
    return dataset.enumerate().map(tf.autograph.experimental.do_not_convert(lambda i, _: i))


def _counted(dataset, drawn):
    """The same dataset, which also writes down how many elements were drawn."""

    @tf.autograph.experimental.do_not_convert
    def count(position, element):
        with tf.control_dependencies([drawn.insert(_zero(), position + 1)]):
            return tf.nest.map_structure(tf.identity, element, expand_composites=True)

    return dataset.enumerate().map(count)


def _reading(dataset, seconds, show):
    """Seconds per element."""
    one = _walk(dataset, 1, min(seconds, 10 * _LOOK), lambda done: None)
    return _walk(dataset, min(4096, max(1, round(_LOOK / one))), seconds, show)


def _walk(dataset, at_once, seconds, show):
    """Seconds per element, read `at_once` at a time: a step in Python costs more than a small element does."""
    walk = iter(_indices(dataset.repeat()).batch(at_once))
    if next(walk, None) is None:  # this one also fills the buffers
        raise ValueError("The dataset has no elements.")
    start, looks, taken = time.perf_counter(), 0, 0.0
    while taken < seconds:
        next(walk)
        looks, taken = looks + 1, time.perf_counter() - start
        show(taken)
    return taken / (looks * at_once)


def _call(step, batches, seconds, drawn, show):
    """Seconds and elements per step, where the step is a function."""
    walk = iter(batches)

    def one_step():
        batch = next(walk)
        return step(*batch) if type(batch) is tuple else step(batch)

    for _ in range(_WARM_UP):
        result = one_step()
    _wait_for(result)
    start, before, steps, taken = time.perf_counter(), drawn(), 0, 0.0
    while taken < seconds:
        result = one_step()
        steps, taken = steps + 1, time.perf_counter() - start
        show(taken)
    _wait_for(result)  # steps on a GPU are only queued
    return (time.perf_counter() - start) / steps, (drawn() - before) / steps


def _wait_for(result):
    for tensor in tf.nest.flatten(result):
        if tf.is_tensor(tensor):
            tensor.numpy()


def _fit(model, batches, seconds, drawn, show):
    """Seconds and elements per step of a Keras model, which is left as it was."""
    with model.distribute_strategy.scope():
        if not model.built:
            x, _, _ = keras.utils.unpack_x_y_sample_weight(next(iter(batches)))
            model(x, training=False)
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
    watch = _Watch(seconds, drawn, show)
    with restored(model):
        model.fit(batches, epochs=1, steps_per_epoch=2**31, shuffle=False, verbose=0, callbacks=[watch])
    # A `fit` that is stopped leaves its iterator in a cycle of references; collected later, it would hold up others.
    gc.collect()
    if watch.steps is None:
        raise StopIteration
    return watch.steps, watch.elements


class _Watch(keras.callbacks.Callback):
    """Times steps after the first few, then stops `fit`."""

    def __init__(self, seconds, drawn, show):
        super().__init__()
        self._seconds, self._drawn, self._show = seconds, drawn, show
        self._start, self.steps = None, None

    def on_train_batch_end(self, batch, logs=None):
        if self._start is None:
            if batch >= _WARM_UP:
                _wait_for(logs)
                self._start = time.perf_counter(), self._drawn(), batch
            return
        start, drawn, first = self._start
        self._show(time.perf_counter() - start)
        if time.perf_counter() - start >= self._seconds:
            _wait_for(logs)
            self.steps = (time.perf_counter() - start) / (batch - first)
            self.elements = (self._drawn() - drawn) / (batch - first)
            self.model.stop_training = True
