"""Histograms of weights, gradients, updates and activations from inside a compiled `fit`.

The gradient that counts is the one that the optimizer uses: aggregated over replicas, averaged over accumulation,
unscaled and clipped. It exists only inside the compiled step, as do the outputs of layers, so both are counted there,
into variables, and the callback writes them out: this survives XLA, `steps_per_execution`, mixed precision and several
replicas.

    bins: the sign times 10^(k/5) for 1e-12 <= |x| < 1e4; smaller and larger values go to the end bins;
          exact zeros, NaN and infinities are counted apart

No paper; Keras' `TensorBoard(histogram_freq=1)` shows weights only.
"""

import contextlib
import pathlib
import re
import threading

import keras
from keras import ops

from keras_tricks._arguments import check_count
from keras_tricks._keras.optimizers import accumulation_steps, innermost_optimizer, stepping_optimizer
from keras_tricks._keras.patches import Replacements, replace
from keras_tricks.callbacks import _activations, _diagnosis, _tallies
from keras_tricks.callbacks._records import record_of, write_summaries
from keras_tricks.optimizers._aggregated import method_of_all_updates

KINDS = ("weights", "gradients", "updates", "activations")

# With every="epoch", one in this many optimizer steps is counted, beginning with the first of the epoch. Values change
# little from step to step, and counting takes about as long as a step of a small model.
EPOCH_STRIDE = 100

# The step that counts and the plain one are traced separately, and a trace takes about as long as a hundred steps of a
# small deep model. So the plain one is traced only after this many steps that were not due. Until then those steps run
# the other one, which counts nothing in them.
STEPS_BEFORE_THE_SECOND_TRACE = 100


class Histograms(keras.callbacks.Callback):
    """Logs how weights, gradients, updates and layers' outputs are distributed, over time, and says what is wrong.

    Writes TensorBoard histograms and scalars (`gradients/<path>`, `gradients_norm/<path>`, `gradients_zeros/<path>`,
    the share of exact zeros, ...), and keeps the counts in `history` for `plot` and `diagnosis`. The tensorboard
    package is needed to look at the logs, not to write them.

    Of an example's output, at most 256 evenly spaced values are counted. A channel of a relu is dead if it was
    0 for every example that was counted. Outputs are counted only in the forward pass of the training step.

    `fit` does not tell callbacks when it is interrupted. So the next use of the model (`fit`, `evaluate`, `predict`,
    `save`, `compile`) first removes the callback from it; the records stay.

    Cost, in the steps that are counted: a few passes over the values, and for `"updates"` the memory of two copies of
    each variable. Counted steps run their own version of the training step, which is traced (and compiled) once for as
    long as the callback watches the same compiled model. Other steps run as they would without the callback, except the
    first hundred, which run that version too. State: 1.3 kB per variable or layer and kind.

    Args:
        log_dir: Folder of the TensorBoard logs, or `None` to keep only `history`. Defaults to `None`.
        every: `"epoch"` (default): one histogram per epoch, over its first optimizer step and every hundredth after it;
            or an int `n`: one for every n-th optimizer step (at the end of the execution, with
            `steps_per_execution`).
        what: Any of `"weights"`, `"gradients"`, `"updates"` (what one step adds to a variable) and `"activations"`
            (the outputs of layers). Defaults to all.
        layers: Layers, or regular expressions to search for in the paths of variables (`conv2d_1/kernel`) and layers;
            all matches are logged. Defaults to `None`: all trainable variables and all layers.

    Raises:
        ValueError: For an unknown `what` or `every`, and when training starts for a pattern that matches nothing or
            an optimizer that only hands variables on to others (`MultiOptimizer`); for two of these callbacks at once.
        RuntimeError: On a backend other than TensorFlow; and when the first activations are due, but no watched layer
            has been called in the training step.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer="adam", loss="mse")
    >>> histograms = kt.callbacks.Histograms()
    >>> log = model.fit(np.ones((8, 4)), np.ones((8, 1)), callbacks=[histograms], verbose=0)
    >>> [record["step"] for record in histograms.history if record["what"] == "gradients"]
    [1, 1]
    >>> [finding.kind for finding in histograms.diagnosis()]
    ['healthy']
    """

    def __init__(self, log_dir=None, every="epoch", what=KINDS, layers=None):
        super().__init__()
        if keras.backend.backend() != "tensorflow":
            raise RuntimeError(
                "Histograms counts into variables of the compiled TensorFlow step; this is the "
                f"{keras.backend.backend()} backend, which it does not support."
            )
        if every != "epoch":
            every = check_count("every", every, hint=" Or it is 'epoch'.")
        what = (what,) if isinstance(what, str) else tuple(what)
        unknown = [kind for kind in what if kind not in KINDS]
        if unknown or not what:
            raise ValueError(f"`what` must name some of {', '.join(KINDS)}. Received: what={what}")
        self.log_dir = None if log_dir is None else pathlib.Path(log_dir)
        self.every = every
        self.what = what
        self.layers = [layers] if isinstance(layers, str | keras.Layer) else layers
        for pattern in self.layers or ():
            if isinstance(pattern, str):
                _check_pattern(pattern)
        self.history = []
        self._writer = self._replaced = None
        self._held = []

    def on_train_begin(self, logs=None):
        import tensorflow as tf

        self._release()  # an interrupted run of another model did not
        self._tf = tf
        self._prepare()
        if self.log_dir is not None and self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))
        self._batches = 0
        self._windows = 0
        self._replaced = Replacements(self.model, self._release)

    def _prepare(self):
        """Makes the counters, unless the last `fit` left them behind for the same model, compiled as it is now."""
        variables, watched = self._chosen(self.model.trainable_variables)
        optimizer = innermost_optimizer(self.model.optimizer)
        held = [self.model, optimizer, self.model.train_function, *variables, *(layer for _, layer in watched)]
        if len(held) == len(self._held) and all(a is b for a, b in zip(held, self._held, strict=True)):
            for tallies in self._all_tallies():
                tallies.reset()  # an interrupted run has left counts
            return
        in_step = [kind for kind in self.what if kind in ("gradients", "updates")]
        if in_step and type(optimizer).update_step is keras.optimizers.Optimizer.update_step:
            raise ValueError(
                f"Histograms: {type(optimizer).__name__} has no `update_step` of its own to count gradients and "
                "updates in. Use what=('weights', 'activations') with it."
            )
        strategy = self.model.distribute_strategy
        self._variables, self._optimizer = variables, optimizer
        self._paths = _activations.unique([v.path for v in variables])
        with strategy.scope():
            self._start = keras.Variable(0, dtype="int64", trainable=False, name="histograms_start")
            counting = _tallies.count_for_xla if self.model.jit_compile else _tallies.count
            self._counted = {kind: _tallies.Tallies(len(variables), counting) for kind in in_step if variables}
        self._activations = _activations.Activations(self.model, watched, self._counts_now) if watched else None
        self._updates = threading.local()
        # Keras passes the variable of one device to its own optimizers, and the Keras variable to ours.
        self._positions = {}
        for position, v in enumerate(variables):
            for alias in (v, v.value, *strategy.experimental_local_results(v.value)):
                self._positions[id(alias)] = position
        self._plain = None
        self._not_due = STEPS_BEFORE_THE_SECOND_TRACE if self.model.run_eagerly else 0
        self._held = held

    def _all_tallies(self):
        return [*self._counted.values(), *([self._activations.tallies] if self._activations is not None else [])]

    def on_epoch_begin(self, epoch, logs=None):
        self._start.assign(ops.cast(self._optimizer.iterations, "int64") if self.every == "epoch" else 0)
        self._first = int(ops.convert_to_numpy(self._start))
        self._batches_before_epoch = self._batches
        self._look()

    def on_train_batch_begin(self, batch, logs=None):
        # Only a step that may be counted runs the function that counts: elsewhere it would cost a tenth of a step.
        if not (self._counted or self._activations):
            return
        ahead = self._batches_before_epoch + batch + self.model.steps_per_execution - 1 - self._seen_at
        window = accumulation_steps(self.model.optimizer)
        due = self._seen + (ahead + window - 1) // window >= self._due
        if due or self._not_due < STEPS_BEFORE_THE_SECOND_TRACE:
            self._not_due += not due
            self.model.train_function = self._counting_function()

    def on_train_batch_end(self, batch, logs=None):
        # Counted here, since asking the device for its step would stop it after every batch.
        self._batches = self._batches_before_epoch + batch + 1
        if self._ran:
            self._look()
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
        if self._writer is not None:
            self._writer.flush()

    def _release(self):
        if self._replaced is not None:
            self._replaced.take_out()
            model, self._replaced = self._replaced.model, None
            if getattr(model.train_function, "counts_for", None) is self:  # interrupted before it was called
                model.train_function = self._plain

    def plot(self, path, what="gradients", variables=8):
        """Draws how the size of values moved over time, or how gradients change with depth, to a file.

        Args:
            path: File to write; its ending names the format.
            what: `"gradients"`, `"weights"`, `"updates"` or `"activations"`: one panel per variable or layer, with a
                curve of the share of values by size for each time. `"gradient_flow"`: the norm of the gradient of each
                kernel, from the input to the output. Defaults to `"gradients"`.
            variables: The most panels to draw; kernels come first, spread over the depth of the model. Defaults to `8`.

        Returns:
            `path`.

        Raises:
            ValueError: If nothing of this kind has been logged.
            ImportError: Without matplotlib.
        """
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise ImportError("`Histograms.plot` needs matplotlib: pip install 'keras_tricks[plot]'") from error
        from keras_tricks.callbacks import _pictures

        if what not in (*KINDS, "gradient_flow"):
            raise ValueError(f"`what` must be one of {', '.join(KINDS)} or gradient_flow. Received: what={what!r}")
        kind = "gradients" if what == "gradient_flow" else what
        records = [r for r in self.history if r["what"] == kind]
        if not records:
            raise ValueError(f"No {kind} have been logged: train with this callback and what=({kind!r}, ...) first.")
        if what == "gradient_flow":
            figure = _pictures.gradient_flow(records)
        else:
            figure = _pictures.ridges(records, variables, what)
        figure.savefig(path, dpi=120)
        return path

    def diagnosis(self):
        """Says in words what the records show to be wrong.

        It judges what was logged: gradients for vanishing, exploding and missing gradients; activations for dead
        channels and saturated units; weights and updates together for the size of the updates; each for values that
        are not finite. The last three records of each variable and layer count. The limits are rules of thumb.

        Returns:
            A list of findings with `kind`, `layers` (paths) and `text`, which ends with remedies. One finding of kind
            `"healthy"` if nothing is wrong, and one of kind `"nothing yet"` before anything has been recorded.
        """
        return _diagnosis.diagnose(self.history)

    def _chosen(self, variables):
        """The variables to log, and (path, layer) of the layers to log."""
        watchable = _activations.watchable(self.model) if "activations" in self.what else {}
        with_variables = set(self.what) != {"activations"}
        if self.layers is None:
            return list(variables), list(watchable.items())
        of_layer = {path: [path, *(v.path for v in layer.variables)] for path, layer in watchable.items()}
        chosen_variables, chosen_layers = set(), {}
        for pattern in self.layers:
            if isinstance(pattern, keras.Layer):
                own = {id(v) for v in pattern.variables}
                found = [v for v in variables if id(v) in own]
                layers = [path for path, layer in watchable.items() if layer is pattern]
            else:
                found = [v for v in variables if re.search(pattern, v.path)]
                layers = [path for path, names in of_layer.items() if any(re.search(pattern, name) for name in names)]
            if not (found and with_variables) and not layers:
                names = [v.path for v in variables] if with_variables else []
                paths = "\n  ".join([*names, *watchable])
                shown = f"layer {pattern.name!r}" if isinstance(pattern, keras.Layer) else repr(pattern)
                raise ValueError(
                    f"Histograms: `layers` has {shown}, which is found in none of the variables' and layers' "
                    f"paths:\n  {paths}"
                )
            chosen_variables |= {id(v) for v in found}
            chosen_layers |= dict.fromkeys(layers)
        return (
            [v for v in variables if id(v) in chosen_variables],
            [(path, layer) for path, layer in watchable.items() if path in chosen_layers],
        )

    @property
    def _stride(self):
        return EPOCH_STRIDE if self.every == "epoch" else self.every

    def _look(self):
        """Asks the device how many steps it has taken, since it may have skipped some, and sees what is due next."""
        self._ran = False
        self._seen, self._seen_at = int(ops.convert_to_numpy(self._optimizer.iterations)), self._batches
        self._due = self._first + -(-(self._seen - self._first) // self._stride) * self._stride

    def _counting_function(self):
        """A train function that counts and, when called, leaves the model as it was."""
        model = self.model
        plain = model.train_function
        if getattr(plain, "counts_for", self) is not self:
            raise ValueError("Histograms: two of these callbacks watch one `fit`. Name all of `what` in one of them.")
        if self._plain is not plain:
            with self._attached():
                model.make_train_function(force=True)
            self._plain, self._watched = plain, model.train_function

        def train_function(iterator):
            model.train_function = plain
            self._ran = True
            with self._attached():
                return self._watched(iterator)

        train_function.counts_for = self
        return train_function

    @contextlib.contextmanager
    def _attached(self):
        with contextlib.ExitStack() as stack:
            if self._activations is not None:
                stack.enter_context(self._activations)
            if self._counted:
                stack.callback(replace(self._optimizer, "update_step", self._update_step))
                stepping = stepping_optimizer(self.model.optimizer)
                stack.callback(replace(stepping, method_of_all_updates(stepping), self._all_updates))
            yield

    def _counts_now(self):
        done = ops.cast(self._optimizer.iterations, "int64") - self._start
        return ops.equal(done % self._stride, 0)

    def _all_updates(self, plain, *args, **kwargs):
        # Around all the calls of update_step that are made in one graph, whose values are counted together.
        values = self._updates.values = {kind: {} for kind in self._counted}
        try:
            plain(*args, **kwargs)
        finally:
            self._updates.values = None
        self._count(values)

    def _update_step(self, plain, gradient, variable, *args):
        # Traced into the compiled step, with the gradient that the optimizer is about to use.
        position = self._positions.get(id(variable))
        together = getattr(self._updates, "values", None)
        if position is None or (together and position in next(iter(together.values()))):  # of another device
            plain(gradient, variable, *args)
            return
        values = {kind: {} for kind in self._counted} if together is None else together
        if "gradients" in values:
            values["gradients"][position] = self._tf.convert_to_tensor(gradient)  # an embedding's is sparse
        if "updates" in values:
            before = self._tf.identity(variable)
            plain(gradient, variable, *args)
            values["updates"][position] = variable - before
        else:
            plain(gradient, variable, *args)
        if together is None:  # an optimizer with its own way of taking steps
            self._count(values)

    def _count(self, values):
        for kind, of_kind in values.items():
            if of_kind:
                self._counted[kind].add_if(self._counts_now(), list(of_kind.values()), list(of_kind))

    def _write(self):
        step = int(ops.convert_to_numpy(self._optimizer.iterations))
        records = []
        for kind in self.what:
            if kind == "activations":
                records += self._activation_records(step)
            elif self._variables:
                counts, moments = self._weights() if kind == "weights" else self._counted[kind].take()
                for i, (v, path) in enumerate(zip(self._variables, self._paths, strict=True)):
                    if counts[i].sum():
                        records.append(record_of(kind, path, v.shape, step, counts[i], moments[i]))
        self.history += records
        if self._writer is not None:
            with self._writer.as_default(step=step):
                for record in records:
                    write_summaries(record, self._tf)

    def _weights(self):
        values = [ops.convert_to_tensor(v) for v in self._variables]
        return [ops.convert_to_numpy(x) for x in _tallies.tally(values, range(len(values)), len(values))]

    def _activation_records(self, step):
        if self._activations is None:
            return []
        records = []
        taken = zip(*self._activations.tallies.take(), strict=True)
        for (path, layer), (counts, moments, (saturated, units), alive) in zip(
            self._activations.layers, taken, strict=True
        ):
            if counts.sum():
                record = record_of("activations", path, (), step, counts, moments)
                record["saturated"] = float(saturated / units) if units else None
                record["alive"] = alive
                record["is_output"] = layer is self._activations.output
                records.append(record)
        if not records and not any(r["what"] == "activations" for r in self.history):
            raise RuntimeError(
                "Histograms: no layer of those to watch ran in the training step: "
                f"{', '.join(path for path, _ in self._activations.layers)}. It sees layers that the model calls in "
                "its `call`, or that a `train_step` of its own calls directly, outside of loops. Name others in "
                "`layers`, or leave 'activations' out of `what`."
            )
        return records


def _check_pattern(pattern):
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`layers` holds an invalid regular expression: {pattern!r} ({error}).") from error
