"""Histograms of weights, gradients and updates from inside a compiled `fit`.

The gradient that counts is the one that the optimizer uses: aggregated over replicas, averaged over accumulation,
unscaled and clipped. It exists only inside the compiled step, so it is counted there, into variables, and the callback
writes them out: this survives XLA, `steps_per_execution`, mixed precision and several replicas.

    bins: the sign times 10^(k/5) for 1e-12 <= |x| < 1e4; smaller and larger values go to the end bins;
          exact zeros, NaN and infinities are counted apart

No paper; Keras' `TensorBoard(histogram_freq=1)` shows weights only.
"""

import math
import numbers
import pathlib
import re

import keras
import numpy as np
from keras import ops

from keras_tricks.callbacks._innermost import accumulation_steps, innermost_optimizer

KINDS = ("weights", "gradients", "updates")

# Values of gradients span decades, so bins are equal on a logarithmic scale, mirrored at zero.
LOWEST_EXPONENT, HIGHEST_EXPONENT, BINS_A_DECADE = -12, 4, 5
BINS = (HIGHEST_EXPONENT - LOWEST_EXPONENT) * BINS_A_DECADE  # of one sign
ZERO, NAN, INFINITE = BINS, 2 * BINS + 1, 2 * BINS + 2
SLOTS = 2 * BINS + 3

# With every="epoch", each so-many-th optimizer step of the epoch is counted, beginning with the first.
EPOCH_STRIDE = 10


class Histograms(keras.callbacks.Callback):
    """Logs how weights, gradients and updates are distributed, for each variable and over time.

    Writes TensorBoard histograms and scalars (`gradients/<path>`, `gradients_norm/<path>`, `gradients_zeros/<path>`,
    the share of exact zeros, ...), and keeps the counts in `history` for `plot`. The tensorboard package is needed to
    look at the logs, not to write them.

    Cost: a few passes over the values where it counts; one condition a variable, and for `"updates"` the memory of a
    copy of the variable, at every step. State: 1.3 kB a variable and kind.

    After a `fit` that was interrupted, `on_train_end()` takes it out of the compiled step.

    Args:
        log_dir: Folder of the TensorBoard logs, or `None` to keep only `history`. Defaults to `None`.
        every: `"epoch"` (default): one histogram an epoch, over every tenth optimizer step; or an int `n`: one for
            every n-th optimizer step (at the end of the execution, with `steps_per_execution`).
        what: Any of `"weights"`, `"gradients"` and `"updates"` (what one step adds to a variable). Defaults to all.
        layers: Regular expressions on variable paths (`conv2d_1/kernel`); a variable that one of them is found in is
            logged. Defaults to `None`, all trainable variables.

    Raises:
        ValueError: For an unknown `what` or `every`, and when training starts for a pattern that matches nothing or
            an optimizer that only hands variables on to others (`MultiOptimizer`).
        RuntimeError: On a backend other than TensorFlow.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer="adam", loss="mse")
    >>> histograms = kt.callbacks.Histograms()
    >>> log = model.fit(np.ones((8, 4)), np.ones((8, 1)), callbacks=[histograms], verbose=0)
    >>> [record["step"] for record in histograms.history if record["what"] == "gradients"]
    [1, 1]
    """

    def __init__(self, log_dir=None, every="epoch", what=KINDS, layers=None):
        super().__init__()
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                "Histograms counts into variables of the compiled TensorFlow step; this is the "
                f"{keras.backend.backend()} backend, which it does not support."
            )
        if every != "epoch" and (isinstance(every, bool) or not isinstance(every, numbers.Integral) or every < 1):
            raise ValueError(f"`every` must be 'epoch' or an int of at least 1. Received: every={every!r}")
        what = (what,) if isinstance(what, str) else tuple(what)
        unknown = [kind for kind in what if kind not in KINDS]
        if unknown or not what:
            raise ValueError(f"`what` must name some of {', '.join(KINDS)}. Received: what={what}")
        self.log_dir = None if log_dir is None else pathlib.Path(log_dir)
        self.every = every
        self.what = what
        self.layers = [layers] if isinstance(layers, str) else layers
        self.history = []
        self._optimizer = None
        self._writer = None

    def on_train_begin(self, logs=None):
        import tensorflow as tf

        self._release()  # a run that was interrupted did not
        self._tf = tf
        self._variables = self._chosen(self.model.trainable_variables)
        self._strategy = self.model.distribute_strategy
        optimizer = innermost_optimizer(self.model.optimizer)
        if self.what != ("weights",) and type(optimizer).update_step is keras.optimizers.Optimizer.update_step:
            raise ValueError(
                f"Histograms: {type(optimizer).__name__} has no `update_step` of its own to count gradients and "
                "updates in. Use what=('weights',) with it."
            )
        self._optimizer = optimizer
        with self._strategy.scope():
            self._start = keras.Variable(0, dtype="int64", trainable=False, name="histograms_start")
            self._tallies = {kind: [_Tally(v.path) for v in self._variables] for kind in self.what if kind != "weights"}
        # One traced function for all variables: tracing a tally for each would cost seconds in a deep model.
        count = _count_for_xla if self.model.jit_compile else _count
        self._tally = tf.function(
            lambda values: tally(values, count), input_signature=[tf.TensorSpec([None], "float32")]
        )
        # Keras hands its own optimizers the variable of one device, and ours the Keras variable.
        self._positions = {}
        for position, v in enumerate(self._variables):
            for alias in (v, v.value, *self._strategy.experimental_local_results(v.value)):
                self._positions[id(alias)] = position
        self._plain_update_step = self._optimizer.update_step
        self._optimizer.update_step = self._update_step
        self.model.make_train_function(force=True)  # it may have been traced without the callback
        if self.log_dir is not None and self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))
        self._batches = 0
        self._windows = 0

    def on_epoch_begin(self, epoch, logs=None):
        self._start.assign(ops.cast(self._optimizer.iterations, "int64") if self.every == "epoch" else 0)
        self._batches_before_epoch = self._batches

    def on_train_batch_end(self, batch, logs=None):
        # Counted here, since asking the device for its step would stop it after every batch.
        self._batches = self._batches_before_epoch + batch + 1
        if self.every == "epoch":
            return
        windows = self._batches // (self.every * accumulation_steps(self.model.optimizer))
        if windows > self._windows:
            self._windows = windows
            self._write()

    def on_epoch_end(self, epoch, logs=None):
        if self.every == "epoch":
            self._write()

    def on_train_end(self, logs=None):
        self._release()
        self.model.make_train_function(force=True)
        if self._writer is not None:
            self._writer.flush()

    def plot(self, path, what="gradients", variables=8):
        """Draws how the magnitude of each variable's values moved over time, one panel a variable, to a file.

        Args:
            path: File to write; its ending names the format.
            what: `"gradients"`, `"weights"` or `"updates"`.
            variables: At most so many panels; kernels first, spread over the depth of the model. Defaults to `8`.

        Returns:
            `path`.

        Raises:
            ValueError: If nothing of this kind has been logged.
            ImportError: Without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("`Histograms.plot` needs matplotlib: pip install 'keras_tricks[plot]'") from error
        records = [r for r in self.history if r["what"] == what]
        if not records:
            raise ValueError(f"No {what} have been logged: train with this callback and what=({what!r}, ...) first.")
        chosen = _spread(list(dict.fromkeys(r["path"] for r in records)), records, variables)
        columns = min(4, len(chosen))
        rows = math.ceil(len(chosen) / columns)
        figure = Figure(figsize=(3.2 * columns + 0.8, 2.7 * rows + 0.4), layout="constrained")
        panels = figure.subplots(rows, columns, sharey=True, squeeze=False)
        exponents = np.linspace(LOWEST_EXPONENT, HIGHEST_EXPONENT, BINS + 1)
        image, used = None, np.zeros(BINS, bool)
        for panel, name in zip(panels.flat, chosen, strict=False):
            of_variable = [r for r in records if r["path"] == name]
            share = np.array([_magnitudes(r["counts"]) / max(r["counts"].sum(), 1) for r in of_variable]).T
            used |= share.max(axis=1) > 0.005
            steps = [r["step"] for r in of_variable]
            image = panel.pcolormesh([0, *steps], exponents, share, cmap="viridis", vmin=0, vmax=0.25)
            panel.set_title(name, fontsize=9)
            panel.set_xlabel("optimizer step", fontsize=8)
        for panel in list(panels.flat)[len(chosen) :]:
            panel.set_visible(False)
        first, last = np.flatnonzero(used)[[0, -1]] if used.any() else (0, BINS - 1)
        for panel in panels[:, 0]:
            panel.set_ylim(exponents[first], exponents[last + 1])
            panel.set_ylabel(f"log10 |{what[:-1]}|", fontsize=8)
        figure.colorbar(image, ax=panels, label="share of the values", shrink=0.8)
        figure.savefig(path, dpi=120)
        return path

    def _chosen(self, variables):
        if self.layers is None:
            return list(variables)
        for pattern in self.layers:
            if not any(re.search(pattern, v.path) for v in variables):
                paths = "\n  ".join(v.path for v in variables)
                raise ValueError(
                    f"Histograms: `layers` has {pattern!r}, which is found in none of the variables' paths:\n  {paths}"
                )
        return [v for v in variables if any(re.search(pattern, v.path) for pattern in self.layers)]

    def _update_step(self, gradient, variable, learning_rate):
        # Traced into the compiled step, with the gradient that the optimizer is about to use.
        position = self._positions.get(id(variable))
        if position is None:
            self._plain_update_step(gradient, variable, learning_rate)
            return
        stride = EPOCH_STRIDE if self.every == "epoch" else self.every
        done = ops.cast(self._optimizer.iterations, "int64") - self._start
        counts_now = ops.equal(done % stride, 0)
        if "gradients" in self._tallies:
            self._tallies["gradients"][position].add_if(counts_now, lambda: self._tally(_flat(gradient)))
        if "updates" not in self._tallies:
            self._plain_update_step(gradient, variable, learning_rate)
            return
        before = self._tf.identity(variable)
        self._plain_update_step(gradient, variable, learning_rate)
        self._tallies["updates"][position].add_if(counts_now, lambda: self._tally(_flat(variable - before)))

    def _write(self):
        step = int(ops.convert_to_numpy(self._optimizer.iterations))
        records = []
        for kind in self.what:
            if kind == "weights":
                values = [[t.numpy() for t in self._tally(_flat(v))] for v in self._variables]
            else:
                values = [t.take() for t in self._tallies[kind]]
            for v, (counts, moments) in zip(self._variables, values, strict=True):
                if counts.sum():
                    records.append(_record(kind, v, step, counts, moments))
        self.history += records
        if self._writer is not None:
            with self._writer.as_default(step=step):
                for record in records:
                    _write_summaries(record, self._tf)

    def _release(self):
        if self._optimizer is not None:
            del self._optimizer.update_step
            self._optimizer = None


class _Tally:
    """Counts and moments of one variable's values, in variables that a compiled step can add to."""

    def __init__(self, path):
        name = path.replace("/", "_")
        self.counts = keras.Variable(np.zeros(SLOTS), dtype="int64", trainable=False, name=f"{name}_counts")
        self.moments = keras.Variable(_NO_MOMENTS, dtype="float32", trainable=False, name=f"{name}_moments")

    def add_if(self, predicate, tally_of_values):
        def add():
            counts, moments = tally_of_values()
            self.counts.assign(self.counts + ops.cast(counts, "int64"))
            low, high, total, squares = (self.moments[i] for i in range(4))
            self.moments.assign(
                ops.stack(
                    [
                        ops.minimum(low, moments[0]),
                        ops.maximum(high, moments[1]),
                        total + moments[2],
                        squares + moments[3],
                    ]
                )
            )

        ops.cond(predicate, add, lambda: None)

    def take(self):
        values = ops.convert_to_numpy(self.counts), ops.convert_to_numpy(self.moments)
        self.counts.assign(np.zeros(SLOTS))
        self.moments.assign(_NO_MOMENTS)
        return values


def _flat(values):
    # ops.convert_to_tensor would leave the gradient of an embedding sparse; ops.cast reads variables.
    import tensorflow as tf

    return tf.reshape(ops.cast(tf.convert_to_tensor(values), "float32"), (-1,))


_NO_MOMENTS = np.array([np.inf, -np.inf, 0, 0], "float32")


def _count(slots):
    import tensorflow as tf

    return tf.math.bincount(slots, minlength=SLOTS, maxlength=SLOTS)  # ten times as fast, but XLA has no bincount


def _count_for_xla(slots):
    return ops.segment_sum(ops.ones_like(slots), slots, num_segments=SLOTS)


def tally(values, count=_count):
    """For a float32 vector: counts by slot, (SLOTS,), and [minimum, maximum, sum, sum of squares] of finite values."""
    x = values
    finite = ops.isfinite(x)
    safe = ops.where(finite, x, 0.0)
    magnitude = ops.abs(safe)
    exponent = ops.log(ops.maximum(magnitude, 1e-30)) / math.log(10)
    k = ops.cast(ops.clip(ops.floor((exponent - LOWEST_EXPONENT) * BINS_A_DECADE), 0, BINS - 1), "int32")
    slot = ops.where(x > 0, ZERO + 1 + k, ops.where(x < 0, ZERO - 1 - k, ZERO))
    slot = ops.where(finite, slot, ops.where(ops.isnan(x), NAN, INFINITE))
    counts = count(slot)
    moments = ops.stack(
        [
            ops.min(ops.where(finite, x, np.inf)),
            ops.max(ops.where(finite, x, -np.inf)),
            ops.sum(safe),
            ops.sum(ops.square(safe)),
        ]
    )
    return counts, moments


def bin_edges():
    """The 2·BINS + 2 borders of the bins in ascending order; the middle bin holds the exact zeros."""
    positive = 10.0 ** np.linspace(LOWEST_EXPONENT, HIGHEST_EXPONENT, BINS + 1)
    return np.concatenate([-positive[::-1], positive])


def _magnitudes(counts):
    return counts[ZERO + 1 : NAN] + counts[:ZERO][::-1]


def _record(kind, variable, step, counts, moments):
    size = max(math.prod(variable.shape), 1)
    passes = counts.sum() / size
    return {
        "what": kind,
        "path": variable.path,
        "rank": len(variable.shape),
        "step": step,
        "counts": counts,
        "min": float(moments[0]),
        "max": float(moments[1]),
        "sum": float(moments[2]),
        "sum_of_squares": float(moments[3]),
        "norm": math.sqrt(moments[3] / passes),  # root mean square over the counted steps
        "zeros": float(counts[ZERO] / counts.sum()),
        "nan": int(counts[NAN]),
        "infinite": int(counts[INFINITE]),
    }


def _spread(paths, records, most):
    rank = {r["path"]: r["rank"] for r in records}
    kernels = [p for p in paths if rank[p] > 1] or paths
    if len(kernels) <= most:
        return kernels
    return [kernels[round(i * (len(kernels) - 1) / max(most - 1, 1))] for i in range(most)]


def _write_summaries(record, tf):
    kind, path = record["what"], record["path"]
    edges = bin_edges()
    filled = np.flatnonzero(record["counts"][:NAN])
    if filled.size:
        first, last = filled[0], filled[-1] + 1
        rows = np.stack([edges[first:last], edges[first + 1 : last + 1], record["counts"][first:last]], axis=1)
        _write(f"{kind}/{path}", rows, "histograms", tf)
    _write(f"{kind}_norm/{path}", np.float32(record["norm"]), "scalars", tf)
    _write(f"{kind}_zeros/{path}", np.float32(record["zeros"]), "scalars", tf)
    if record["nan"] or record["infinite"]:
        _write(f"{kind}_not_finite/{path}", np.float32(record["nan"] + record["infinite"]), "scalars", tf)


def _write(tag, value, plugin, tf):
    # tf.summary.histogram bins raw values and needs the tensorboard package; these are binned already.
    data = tf.compat.v1.SummaryMetadata.PluginData(plugin_name=plugin)
    tf.summary.write(tag, value, metadata=tf.compat.v1.SummaryMetadata(plugin_data=data))
