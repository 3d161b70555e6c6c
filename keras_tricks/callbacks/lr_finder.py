"""Finds a learning rate: raises it step by step from far too small to far too large, and watches the loss.

    rate_k = low · (high/low)^(k/(n-1))  or  low + (high - low)·k/(n-1)          k = 0 ... n-1: optimizer step
    a_k = b·a_(k-1) + (1 - b)·loss_k,    smoothed_k = a_k / (1 - b^(k+1))
    stops where smoothed > divergence · best, or the loss is not finite

Smith, 2017, arXiv:1506.01186. `loss_k` is the loss of the batches of step k alone, before that step; in Keras the logs
of a batch hold the mean since the epoch began, which hides divergence. `_lr_curve` reads a rate off the curve.
"""

import contextlib
import gc
import math
import warnings

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_choice, check_count, check_flag, check_number
from keras_tricks._keras.optimizers import accumulation_steps, innermost_optimizer, schedule_of
from keras_tricks._keras.patches import Replacements
from keras_tricks._keras.replicas import scope_of
from keras_tricks._keras.snapshot import attributes_restored, copies, remember, single_steps
from keras_tricks.callbacks._lr_curve import SHORTEST, LRCurve, minimum, steepest, valley

__all__ = ["LRCurve", "LRFinder", "find_lr", "minimum", "steepest", "valley"]


class LRFinder(keras.callbacks.Callback):
    """Runs a learning-rate range test inside `fit`, and puts the model back as it was.

    Each optimizer step has its own rate, from `min_learning_rate` to `max_learning_rate`. A step takes several batches
    with accumulation, or when loss scaling skips it. `fit` is stopped when the range is done or the loss diverges.
    `find_lr` does it all in one call; use the callback where `fit` needs special arguments, with enough epochs for
    `steps`.

    Metrics are reset before each batch, so the loss that `fit` shows is that of the batch. At the end weights,
    statistics, seeds, metrics and the optimizer (slots, step count, rate or schedule, loss scale) are put back bit for
    bit. After an interrupted `fit`, that happens as soon as the model is trained, evaluated, used or saved, or when you
    call `on_train_end()` of the callback.

    Args:
        min_learning_rate: First rate, above 0. Defaults to `1e-7`.
        max_learning_rate: Last rate. Defaults to `10.0`.
        steps: Number of optimizer steps, at least 5. Defaults to `100`.
        mode: `"exp"`: each rate the same multiple of the one before; `"linear"`: the same distance. Defaults to
            `"exp"`.
        smoothing: Weight of the past in the smoothed loss, in [0, 1). The curve lags by about
            `smoothing / (1 - smoothing)` steps. Defaults to `0.8`.
        divergence: Stop where the smoothed loss is above this multiple of its best value, after a tenth of the steps;
            above 1. Defaults to `4.0`.

    Raises:
        TypeError, ValueError: If an argument is out of range; when training starts, if the model is not built, has
            `steps_per_execution` above 1, several optimizers, or a function as its learning rate.
        RuntimeError: During training, if something else moves the learning rate, or no step is taken.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=keras.optimizers.SGD(0.01), loss="mse")
    >>> finder = kt.callbacks.LRFinder(max_learning_rate=0.1, steps=20)
    >>> history = model.fit(np.eye(4), np.ones((4, 1)), epochs=20, callbacks=[finder], verbose=0)
    >>> len(finder.result.learning_rates), finder.result.stopped
    (20, 'complete')

    Reference:
        Leslie N. Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, arXiv:1506.01186.
    """

    def __init__(
        self, min_learning_rate=1e-7, max_learning_rate=10.0, steps=100, mode="exp", smoothing=0.8, divergence=4.0
    ):
        super().__init__()
        low = check_number("min_learning_rate", min_learning_rate, above=0)
        high = check_number(
            "max_learning_rate", max_learning_rate, above=low, hint=" It must be above `min_learning_rate`."
        )
        steps = check_count("steps", steps, at_least=SHORTEST)
        self.smoothing = check_number("smoothing", smoothing, at_least=0, below=1)
        self.divergence = check_number("divergence", divergence, above=1)
        self.mode = check_choice("mode", mode, ("exp", "linear"))
        self.learning_rates = (np.geomspace if mode == "exp" else np.linspace)(low, high, steps)
        self.result = None
        self._put_back = None
        self._show = lambda rate, loss: None

    def on_train_begin(self, logs=None):
        self._release()  # an interrupted run of another model did not
        model = self.model
        if not model.built:
            raise ValueError(
                "LRFinder: the model is not built, so there is nothing to put back at the end. Call "
                "`model.build(input_shape)` first, or use `keras_tricks.callbacks.find_lr(model, data)`."
            )
        if model.steps_per_execution > 1:
            raise ValueError(
                "LRFinder needs the loss of each batch, but the model was compiled with "
                f"steps_per_execution={model.steps_per_execution}. Use `keras_tricks.callbacks.find_lr(model, data)`, "
                "which runs single steps and sets it back, or compile with steps_per_execution=1 for the test."
            )
        self._optimizer = innermost_optimizer(model.optimizer)
        schedule = _check_rate(self._optimizer)
        with scope_of(model):
            if not model.optimizer.built:
                model.optimizer.build(model.trainable_variables)
        put_back_variables, train_function = remember(model), model.train_function
        self._first = self._steps_taken()
        if schedule is not None:
            self._optimizer.learning_rate = _RateOfTheStep(self._optimizer, self._first, self.learning_rates)
            model.make_train_function(force=True)  # the schedule is part of the compiled step

        def put_back():
            if schedule is not None:
                self._optimizer.learning_rate = schedule
                model.train_function = train_function
            put_back_variables()

        self._put_back = put_back
        self._replaced = Replacements(model, self._release)
        self._settable = schedule is None
        self._raw, self._smoothed, self._average = [], [], 0.0
        self._sum = self._weight = 0.0  # of the batches of the step
        self._patience = 100 * accumulation_steps(model.optimizer)
        self._batches_for_step = self._batches_of_epoch = 0
        self._stopped = "out of data"
        self.result = None

    def on_epoch_begin(self, epoch, logs=None):
        self._batches_of_epoch = 0

    def on_train_batch_begin(self, batch, logs=None):
        model = self.model
        model.reset_metrics()
        if self._settable:
            self._optimizer.learning_rate.assign(self.learning_rates[len(self._raw)])

    def on_train_batch_end(self, batch, logs=None):
        model = self.model
        if model.stop_training and self._stopped != "out of data":
            return
        self._batches_of_epoch += 1
        loss, weight = self._loss_of_batch(model, logs)
        self._sum, self._weight = self._sum + weight * loss, self._weight + weight
        if not math.isfinite(self._sum):
            self._stop("not finite")
            return
        self._check_rate_is_ours()
        if self._steps_taken() - self._first <= len(self._raw):
            self._batches_for_step += 1
            if self._batches_for_step >= self._patience:
                self._fail(
                    f"LRFinder: the optimizer has taken no step for {self._batches_for_step} batches. With loss "
                    "scaling, no gradient was finite; otherwise `model.optimizer` is not what trains this model."
                )
            return
        self._end_step(self._sum / self._weight)

    def on_epoch_end(self, epoch, logs=None):
        if not self._batches_of_epoch:
            self._fail("LRFinder: the data gave no batch in this epoch. It must not be empty, or readable only once.")

    def on_train_end(self, logs=None):
        self._release()

    def _end_step(self, loss):
        k, b = len(self._raw), self.smoothing
        self._average = b * self._average + (1 - b) * loss
        smoothed = self._average / (1 - b ** (k + 1))
        self._raw.append(loss)
        self._smoothed.append(smoothed)
        self._sum = self._weight = 0.0
        self._batches_for_step = 0
        self._show(self.learning_rates[k], smoothed)
        best = min(self._smoothed)
        if k + 1 > len(self.learning_rates) / 10 and smoothed > best + (self.divergence - 1) * abs(best):
            self._stop("diverged")
        elif k + 1 == len(self.learning_rates):
            self._stop("complete")

    def _stop(self, why):
        self._stopped = why
        self.model.stop_training = True

    def _fail(self, message):
        self._release()
        raise RuntimeError(message)

    def _release(self):
        if self._put_back is None:
            return
        self._replaced.take_out()
        put_back, self._put_back = self._put_back, None
        put_back()
        self.result = LRCurve(
            learning_rates=self.learning_rates[: len(self._raw)],
            raw_losses=np.array(self._raw),
            losses=np.array(self._smoothed),
            stopped=self._stopped,
            smoothing=self.smoothing,
            mode=self.mode,
        )

    def _loss_of_batch(self, model, logs):
        """Mean loss of a batch over all replicas, and the number of its examples."""
        for metric in model.metrics:
            if metric.name == "loss" and isinstance(metric, keras.metrics.Mean):
                total, count = (sum(float(x) for x in copies(model, v)) for v in (metric.total, metric.count))
                if count:
                    return total / count, count
        if "loss" not in (logs or {}):  # a custom `train_step` may keep it in another way
            self._fail(
                "LRFinder reads the loss from the model's metric 'loss', or from what `train_step` returns under that "
                f"name. Received: {sorted(logs or {})}. Return it as 'loss'."
            )
        return float(ops.convert_to_numpy(logs["loss"])), 1.0

    def _steps_taken(self):
        return int(ops.convert_to_numpy(self._optimizer.iterations))

    def _check_rate_is_ours(self):
        if not self._settable:
            return
        rate = ops.convert_to_numpy(self._optimizer.learning_rate)
        expected = np.asarray(self.learning_rates[len(self._raw)], rate.dtype)
        if rate != expected:
            self._fail(
                f"LRFinder: something else set the learning rate to {float(rate):.4g} in a step for "
                f"{float(expected):.4g}. Leave out other callbacks that move it, such as CyclicLR."
            )


class _RateOfTheStep(keras.optimizers.schedules.LearningRateSchedule):
    """Stands in for the schedule of an optimizer during the test."""

    def __init__(self, optimizer, first, learning_rates):
        self.optimizer, self.first = optimizer, first
        self.learning_rates = learning_rates.astype("float32")

    def __call__(self, step):
        # Not at `step`, which Keras' own accumulation counts in batches.
        k = ops.cast(self.optimizer.iterations, "int32") - self.first
        return ops.take(ops.convert_to_tensor(self.learning_rates), ops.clip(k, 0, len(self.learning_rates) - 1))

    def get_config(self):
        raise NotImplementedError("The model cannot be saved during a learning-rate test. Save it afterwards.")


def find_lr(
    model,
    data,
    y=None,
    sample_weight=None,
    batch_size=None,
    min_learning_rate=1e-7,
    max_learning_rate=10.0,
    steps=100,
    mode="exp",
    smoothing=0.8,
    divergence=4.0,
    class_weight=None,
    verbose=True,
):
    """Finds a learning rate for a compiled model on its data, and leaves the model exactly as it was.

    The model trains for `steps` optimizer steps, each at a higher rate, by its own `fit`: under whatever strategy,
    precision, compilation, accumulation and wrappers it has. The data is repeated as needed. Weights, statistics,
    seeds, metrics and the optimizer are put back bit for bit, even after an error, NaN or Ctrl-C; an optimizer with a
    schedule keeps it. The global random state, from which `fit` shuffles arrays, moves on.

    Args:
        model: A compiled Keras model. If it is not built, the first batch builds it.
        data: What `fit` takes as `x`: a `tf.data.Dataset` of batches, a `PyDataset`, or arrays, which are shuffled; or
            a tuple `(x, y)` or `(x, y, sample_weight)` of arrays.
        y: Targets, where `data` is inputs alone. Defaults to `None`.
        sample_weight: Weights of the examples, with `y`. Defaults to `None`.
        batch_size: Examples per batch, for arrays: as in the training to come. Defaults to `None`, Keras' 32.
        min_learning_rate: First rate, above 0. Defaults to `1e-7`.
        max_learning_rate: Last rate. Defaults to `10.0`.
        steps: Number of optimizer steps, at least 5. Defaults to `100`.
        mode: `"exp"` or `"linear"`, see `LRFinder`. Defaults to `"exp"`.
        smoothing: Weight of the past in the smoothed loss, in [0, 1). Defaults to `0.8`.
        divergence: Stop where the smoothed loss is above this multiple of its best; above 1. Defaults to `4.0`.
        class_weight: As in `fit`. Defaults to `None`.
        verbose: Whether to show progress. The result is not printed; print it to read what to do. Defaults to `True`.

    Returns:
        An `LRCurve` with `learning_rates`, `losses`, `raw_losses`, `suggestion`, `suggestions`, `stopped` and
        `plot(path)`; as a string, it says in words what to do.

    Raises:
        TypeError: If `model` is not a Keras model, or `data` is a generator, which can be read only once.
        ValueError: If the model is not compiled, the data is empty, or an argument is out of range.
        RuntimeError: If no step is taken.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> random = np.random.default_rng(0)
    >>> x = random.normal(size=(256, 4))
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    >>> model.compile(optimizer=keras.optimizers.SGD(0.01), loss="mse")
    >>> found = kt.callbacks.find_lr(model, (x, x @ [[1.0], [2.0], [3.0], [4.0]]), steps=50, verbose=False)
    >>> found.stopped, 0.001 < found.suggestion < 0.5
    ('diverged', True)

    Reference:
        Leslie N. Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, arXiv:1506.01186.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a compiled keras.Model. Received: {model!r}")
    if getattr(model, "optimizer", None) is None:
        raise ValueError("The model is not compiled, so it has no optimizer to find a rate for. Call `compile` first.")
    if hasattr(data, "__next__"):
        raise TypeError(
            "`data` must be readable several times, since the test may need more than one pass. Received a generator "
            "or iterator: make a `tf.data.Dataset` or a `keras.utils.PyDataset` of it, or give arrays."
        )
    check_flag("verbose", verbose)
    finder = LRFinder(min_learning_rate, max_learning_rate, steps, mode, smoothing, divergence)
    if isinstance(data, tuple):
        if y is not None or sample_weight is not None:
            raise ValueError("`data` is a tuple, which holds the targets already: leave out `y` and `sample_weight`.")
        data, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if hasattr(data, "cardinality") and int(data.cardinality()) == 0:
        raise ValueError("`data` has no batches. Look at the transformations that made it.")
    arrays = y is not None or _is_array(data)
    _build(model, data, arrays)
    with single_steps(model), attributes_restored(model), _progress(verbose, finder), warnings.catch_warnings():
        # Each pass over data of unknown size would warn that it ended.
        warnings.filterwarnings("ignore", message="Your input ran out of data", category=UserWarning)
        try:
            model.fit(
                data,
                y,
                sample_weight=sample_weight,
                batch_size=batch_size,
                class_weight=class_weight,
                epochs=2**31,
                shuffle=arrays,
                verbose=0,
                callbacks=[finder],
            )
        finally:
            finder.on_train_end()
    # A pass that was stopped stays in a cycle of references. Dropping its iterator can take as long as the pass took:
    # better now than in the middle of training.
    gc.collect()
    return finder.result


def _check_rate(optimizer):
    """The schedule of the optimizer, or None if its rate can be set."""
    if isinstance(optimizer, getattr(keras.optimizers, "MultiOptimizer", ())):  # Keras has it since 3.15
        raise ValueError(
            "LRFinder moves one learning rate, but MultiOptimizer has several. Compile the model with one of its "
            "optimizers for the test, or freeze the variables of the others."
        )
    if isinstance(optimizer.learning_rate, keras.Variable):
        return None
    schedule = schedule_of(optimizer)
    if schedule is None:
        raise ValueError(
            f"LRFinder: the optimizer {optimizer.name!r} has a function as its learning rate, which cannot be set "
            "aside. Compile the model with a number or a LearningRateSchedule."
        )
    return schedule


def _is_array(data):
    leaves = keras.tree.flatten(data)
    return all(hasattr(leaf, "shape") and hasattr(leaf, "__getitem__") for leaf in leaves)


def _build(model, data, arrays):
    if model.built:
        return
    if arrays:
        x = keras.tree.map_structure(lambda array: array[:1], data)
    elif isinstance(data, keras.utils.PyDataset):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data[0])
    else:
        x, _, _ = keras.utils.unpack_x_y_sample_weight(next(iter(data)))
    with scope_of(model):
        model(keras.tree.map_structure(ops.convert_to_tensor, x), training=False)


@contextlib.contextmanager
def _progress(verbose, finder):
    if not verbose:
        yield
        return
    import rich.progress

    with rich.progress.Progress(transient=True) as bars:
        bar = bars.add_task("Learning rate", total=len(finder.learning_rates))
        finder._show = lambda rate, loss: bars.update(
            bar, advance=1, description=f"Learning rate {rate:.1e}, loss {loss:.4g}"
        )
        yield
