"""Averages of the weights along training: stochastic weight averaging and the exponential moving average.

    swa: average <- average + (w - average) / n              n: collections so far, this one included
    ema: average <- average + (1 - momentum) · (w - average)         the first collection copies w

Izmailov et al., 2018, arXiv:1803.05407, for SWA. Averaged weights give the normalisation layers other inputs than
either of the weights, so their statistics are taken anew over training data, as `models.recompute_statistics` does.
"""

import contextlib
import math
import numbers
import pathlib
import warnings

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_count, check_flag, check_number
from keras_tricks._keras.optimizers import accumulation_steps, innermost_optimizer
from keras_tricks._keras.patches import Replacements
from keras_tricks._keras.replicas import scope_of
from keras_tricks._keras.snapshot import remember_variables
from keras_tricks.callbacks._state import averaging_of, is_float, load_arrays, save_arrays
from keras_tricks.models.recompute_statistics import check_batches, normalization_layers, statistics


class WeightAveraging(keras.callbacks.Callback):
    """Averages weights along training, validates with the average, and leaves it in the model at the end.

    `kind="swa"` is the mean of the collected weights, `kind="ema"` their exponential moving average: `average <-
    momentum · average + (1 - momentum) · w` at each collection. All weights that are floats are averaged, in float32 or
    wider; the others (counters) stay as they are.

    Within `fit`, validation runs on the averaged weights as soon as there are any, and training continues bit for bit
    from where it was, even if validation is interrupted. Elsewhere the model has the weights of training: `with
    averaging.applied():` puts the average in temporarily. `applied()` works until training ends, and after an
    interruption. Training ends with the average in the model, unless `leave_averaged=False`.

    `fit` does not tell callbacks when it is interrupted. So the next use of the model (`fit`, `evaluate`, `predict`,
    `save`, `compile`) first removes the callback from it; the model then has the weights of training.

    State: one float32 copy of the weights on the device, and one more of the model's variables while they are swapped.

    Args:
        kind: `"swa"` or `"ema"`. Defaults to `"swa"`.
        start: The first epoch (from 0) to collect in: an int, or a float below 1, a share of `epochs`. Defaults to
            0.75 for `"swa"` and to 0 for `"ema"`.
        every: `"epoch"`: at each epoch's end, before validation; or an int `n`: after every n-th optimizer step. With
            `steps_per_execution` that is at the end of the execution, and if several were due there it collects once
            (`"ema"` with the momentum of several). Defaults to `"epoch"`.
        momentum: For `"ema"`, per collection, in [0, 1). Defaults to `None`: 0.999 per optimizer step and 0.9 per
            epoch, or less where training is so short that the weights of the first collection would still count for
            more than 1 % in the end. A warning says so where they count for more than 5 %.
        recompute_statistics_on: Batches as for `fit` (a dataset, or any iterable that can be gone through again) over
            which the statistics of `BatchNormalization` and `ExtendedBatchNormalization` are recomputed, before each
            validation and at the end, in one eager pass on one device; a model without such layers does not need it. Or
            `False`: average the moving statistics like weights. Defaults to `None`, an error where it is needed.
        leave_averaged: Whether training ends with the averaged weights. Defaults to `True`.
        backup_dir: A separate folder for the state after each epoch, to resume with `keras.callbacks.BackupAndRestore`
            after a crash; put this callback before that one. Removed when training ends. Defaults to `None`.

    Raises:
        ValueError: For an argument that is out of range; when training starts, if it ends before `start`, if a model
            with batch normalisation has no `recompute_statistics_on`, or if one `fit` has two of these callbacks; when
            a run is resumed and `backup_dir` does not hold the state of its last epoch.
        RuntimeError: If it is passed to `evaluate` or `predict`; use `applied()`.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse")
    >>> averaging = kt.callbacks.WeightAveraging("swa", start=2)
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=5, callbacks=[averaging], verbose=0)
    >>> averaging.collected
    3

    Reference:
        Pavel Izmailov, Dmitrii Podoprikhin, Timur Garipov, Dmitry Vetrov, Andrew Gordon Wilson, "Averaging Weights
        Leads to Wider Optima and Better Generalization", 2018, arXiv:1803.05407.
    """

    def __init__(
        self,
        kind="swa",
        start=None,
        every="epoch",
        momentum=None,
        recompute_statistics_on=None,
        leave_averaged=True,
        backup_dir=None,
    ):
        super().__init__()
        if kind not in ("swa", "ema"):
            raise ValueError(f"`kind` must be 'swa' or 'ema'. Received: kind={kind!r}")
        if start is None:
            start = 0.75 if kind == "swa" else 0
        start = check_count("start", start, at_least=0) if isinstance(start, numbers.Integral) else start
        if not isinstance(start, int):
            check_number("start", start, at_least=0, below=1, hint=" As a float it is a share of the epochs.")
        if every != "epoch":
            every = check_count("every", every, hint=" Or it is 'epoch'.")
        if momentum is not None:
            momentum = check_number("momentum", momentum, at_least=0, below=1)
            if kind == "swa":
                raise ValueError(f"`momentum` is of kind='ema'; 'swa' has none. Received: momentum={momentum!r}")
        check_flag("leave_averaged", leave_averaged)
        if recompute_statistics_on is not None and recompute_statistics_on is not False:
            check_batches("recompute_statistics_on", recompute_statistics_on)
        self.kind = kind
        self.start = start
        self.every = every
        self.momentum = momentum
        self.recompute_statistics_on = recompute_statistics_on
        self.leave_averaged = leave_averaged
        self.backup_dir = None if backup_dir is None else pathlib.Path(backup_dir)
        self.collected = 0
        self._averages = None
        self._replaced = None
        if every != "epoch":
            # Set only where it is needed: Keras waits for the device after each batch if a callback has this hook.
            self.on_train_batch_end = self._collect_every

    def on_train_begin(self, logs=None):
        self._release()  # an interrupted run of another model did not
        model = self.model
        if averaging_of(model) is not None:
            raise ValueError("Two WeightAveraging callbacks in one `fit`: validation can run on one average only.")
        epochs = self.params["epochs"]
        self._first = self.start if isinstance(self.start, numbers.Integral) else int(self.start * epochs)
        if self._first >= epochs:
            raise ValueError(
                f"WeightAveraging: training ends after {epochs} epochs, before averaging begins: start={self.start} "
                "(epochs count from 0). Lower `start`."
            )
        layers = normalization_layers(model)
        if layers and self.recompute_statistics_on is None:
            raise ValueError(
                f"WeightAveraging: {layers[0].name!r} and other batch normalisation keeps statistics, which are wrong "
                "for averaged weights. Pass training data as `recompute_statistics_on`, or `False` to average them too."
            )
        if self.recompute_statistics_on is None or self.recompute_statistics_on is False:
            layers = []
        if any(getattr(layer, "renorm", False) for layer in layers):
            raise ValueError(
                "WeightAveraging cannot take the statistics of batch renormalisation anew. Use `renorm=False`, or "
                "`recompute_statistics_on=False` to average them."
            )
        self._layers = layers
        self.collected = 0
        self._averages = None
        self._statistics = None  # of the current averages
        self._epoch = None
        self._batches = self._windows = 0
        self._final = False
        self._momentum = self._default_momentum(epochs) if self.momentum is None else self.momentum
        self._share_of_first = 1.0
        self._replaced = Replacements(model, self._release)
        self._replaced.put(model, "evaluate", self._evaluate)

    def _default_momentum(self, epochs):
        collections, longest = epochs - self._first, 0.9
        if self.every != "epoch":
            steps = (self.params.get("steps") or math.inf) // accumulation_steps(self.model.optimizer)
            collections, longest = collections * steps // self.every, 0.999**self.every
        return min(longest, 0.01 ** (1 / max(collections - 1, 1)))

    def on_epoch_begin(self, epoch, logs=None):
        if self._epoch is None:
            self._resume(epoch)
        self._epoch = epoch
        self._batches_before = self._batches
        self._due = self.every == "epoch" and epoch >= self._first

    def _collect_every(self, batch, logs=None):
        self._batches = self._batches_before + batch + 1
        windows = self._batches // (self.every * accumulation_steps(self.model.optimizer))
        if windows > self._windows:
            if self._epoch >= self._first:
                self._collect(windows - self._windows)
            self._windows = windows

    def on_epoch_end(self, epoch, logs=None):
        self._collect_if_due()
        self._save(epoch)

    def on_test_begin(self, logs=None):
        if not getattr(self, "_validating", False):
            raise RuntimeError(_USE_APPLIED)

    def on_predict_begin(self, logs=None):
        raise RuntimeError(_USE_APPLIED)

    def on_train_end(self, logs=None):
        if self._final:
            pass  # another callback has chosen
        elif not self.collected:
            warnings.warn(
                "WeightAveraging: training stopped before anything was collected; the model keeps its weights.",
                stacklevel=2,
            )
        elif self.leave_averaged:
            self._apply()
        if self.kind == "ema" and self.collected > 1 and self._share_of_first > 0.05:
            warnings.warn(
                f"WeightAveraging: after {self.collected} collections the weights of the first still make up "
                f"{self._share_of_first:.0%} of the average. Take a lower `momentum` than {self._momentum:.4g}, "
                "collect more often (`every`), or begin later (`start`).",
                stacklevel=2,
            )
        self._release()
        if self.backup_dir is not None:
            for path in self.backup_dir.glob("averages-*.npz"):
                path.unlink()

    @contextlib.contextmanager
    def applied(self):
        """Puts the averaged weights in the model within `with`; then always puts back the previous ones, bit for bit.

        Raises:
            RuntimeError: If nothing has been collected yet.
        """
        if not self.collected:
            raise RuntimeError("WeightAveraging has collected nothing yet: there is no average to apply.")
        put_back = remember_variables(self.model, self.model.variables, on_host=False)
        try:
            self._apply()
            yield self.model
        finally:
            put_back()

    def evaluated_weights(self):
        """The weights that validation runs on, as arrays in the order of `model.weights`."""
        weights = self.model.get_weights()
        if not self.collected:
            return weights
        values = self._values()
        return [np.asarray(values.get(i, w)).astype(w.dtype) for i, w in enumerate(weights)]

    def leave_as_they_are(self):
        """Called by a callback that has put final weights of its own into the model."""
        self._final = True

    def _evaluate(self, plain, *args, **kwargs):
        # `fit` calls `model.evaluate`. With one wrapper around that, unlike two hooks, no exception leaves the average
        # behind.
        callbacks = kwargs.get("callbacks")
        inside = isinstance(callbacks, keras.callbacks.CallbackList) and self in callbacks.callbacks
        if not inside:
            return plain(*args, **kwargs)
        self._collect_if_due()
        self._validating = True
        try:
            with self.applied() if self.collected else contextlib.nullcontext():
                return plain(*args, **kwargs)
        finally:
            self._validating = False

    def _release(self):
        if self._replaced is not None:
            self._replaced.take_out()
            self._replaced = None

    def _collect_if_due(self):
        if self._due:
            self._due = False
            self._collect(1)

    def _collect(self, periods):
        weights = {i: w for i, w in enumerate(self.model.weights) if is_float(w)}
        if self._averages is None:
            self._averages = {i: _wide_copy(w) for i, w in weights.items()}
            self._update = _compiled(lambda rate: _move([(self._averages[i], w) for i, w in weights.items()], rate))
        rate = 1 / (self.collected + 1) if self.kind == "swa" else 1 - self._momentum**periods
        self._share_of_first *= 1 - rate if self.collected else 1
        with scope_of(self.model):
            self._update(ops.convert_to_tensor(1.0 if not self.collected else rate, "float32"))
        self.collected += 1
        self._statistics = None

    def _values(self):
        """Averages and recomputed statistics, by their position in `model.weights`."""
        values = {i: ops.convert_to_numpy(a) for i, a in self._averages.items()}
        return {**values, **(self._statistics or {})}

    def _apply(self):
        weights = self.model.weights
        for i, average in self._averages.items():
            # A copy, since JAX's training step frees the buffers that the model has.
            weights[i].assign(ops.copy(ops.cast(average.value, weights[i].dtype)))
        if not self._layers:
            return
        if self._statistics is None:
            self._statistics = statistics(
                self.model, self._layers, self.recompute_statistics_on, "recompute_statistics_on"
            )
        for i, value in self._statistics.items():
            weights[i].assign(value)

    def _save(self, epoch):
        if self.backup_dir is None:
            return
        state = {"counts": np.array([self.collected, self._batches, self._windows])}
        state["share_of_first"] = np.array(self._share_of_first)
        state["iterations"] = np.array(self._iterations())
        state |= {f"average_{i}": ops.convert_to_numpy(a) for i, a in (self._averages or {}).items()}
        save_arrays(self._path(epoch), state)
        # A crash may come before the model's own backup of this epoch, so the state before it is kept too.
        self._path(epoch - 2).unlink(missing_ok=True)

    def _iterations(self):
        return int(ops.convert_to_numpy(innermost_optimizer(self.model.optimizer).iterations))

    def _path(self, epoch):
        return self.backup_dir / f"averages-{epoch}.npz"

    def _resume(self, epoch):
        if self.backup_dir is None:
            return
        if epoch == 0:
            for path in self.backup_dir.glob("averages-*.npz"):
                path.unlink()
            return
        if not self._path(epoch - 1).exists():
            found = sorted(path.name for path in self.backup_dir.glob("averages-*.npz"))
            if found or epoch > self._first:
                raise ValueError(
                    f"WeightAveraging: training begins with epoch {epoch}, but {self.backup_dir} does not hold "
                    f"{self._path(epoch - 1).name}, the state after the epoch before. It holds: "
                    f"{', '.join(found) or 'nothing'}. Put this callback before BackupAndRestore; or, to average anew, "
                    "empty the folder and pass no `backup_dir`."
                )
            return
        state = load_arrays(self._path(epoch - 1))
        self.collected, self._batches, self._windows = (int(n) for n in state.pop("counts"))
        self._share_of_first = float(state.pop("share_of_first", 1.0))
        if int(state.pop("iterations", self._iterations())) != self._iterations():
            raise ValueError(
                "WeightAveraging: the model goes on after another number of optimizer steps than the average, since it "
                "was backed up in the middle of an epoch, which Keras then begins again. Use "
                'BackupAndRestore(save_freq="epoch"), or average anew: empty the folder and pass no `backup_dir`. '
                f"Expected the step at the end of epoch {epoch}."
            )
        if not self.collected:
            return
        weights = {i: w for i, w in enumerate(self.model.weights) if is_float(w)}
        shapes = {f"average_{i}": tuple(w.shape) for i, w in weights.items()}
        if {name: a.shape for name, a in state.items()} != shapes:
            raise ValueError(
                f"WeightAveraging: {self._path(epoch - 1)} is of another model. Delete it, or use another `backup_dir`."
            )
        self._averages = {i: _wide_copy(w) for i, w in weights.items()}
        for i, average in self._averages.items():
            average.assign(state[f"average_{i}"])
        self._update = _compiled(lambda rate: _move([(self._averages[i], w) for i, w in weights.items()], rate))


_USE_APPLIED = (
    "WeightAveraging is a callback for `fit`. To evaluate or predict with the averaged weights, use "
    "`with averaging.applied(): model.predict(x)`."
)


def _wide_copy(variable):
    dtype = keras.backend.result_type(variable.dtype, "float32")
    return keras.Variable(ops.convert_to_numpy(ops.cast(variable.value, dtype)), dtype=dtype, trainable=False)


def _move(pairs, rate):
    for average, weight in pairs:
        w = ops.cast(weight.value, average.dtype)
        # Written so that a rate of 1 gives exactly w.
        rate_ = ops.cast(rate, average.dtype)
        average.assign(average.value * (1 - rate_) + w * rate_)


def _compiled(function):
    if keras.backend.backend() != "tensorflow":
        return function
    import tensorflow as tf

    return tf.function(function, autograph=False)  # one call for all variables
