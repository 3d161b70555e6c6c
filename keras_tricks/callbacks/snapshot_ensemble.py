"""Snapshot ensembles: several networks for the training time of one, from the ends of a cyclical rate's cycles.

    save the weights after each cycle, where the rate is lowest;      prediction = mean over the last m snapshots

Huang et al., 2017, arXiv:1704.00109. Each new cycle begins with a high rate, which drives the weights out of the
minimum that the last one found, so that the snapshots differ enough for their mean to be better than any of them.
"""

import numbers
import pathlib
import re
import warnings

import keras
import numpy as np

from keras_tricks._arguments import check_count
from keras_tricks._keras.optimizers import accumulation_steps, innermost_optimizer
from keras_tricks._keras.snapshot import remember_variables, sync
from keras_tricks.callbacks._state import unfinished
from keras_tricks.schedules import CyclicalLearningRate


class SnapshotEnsemble(keras.callbacks.Callback):
    """Saves the weights at the end of each cycle of the learning rate, and predicts with the mean of the snapshots.

    The rate itself is moved by the schedule, given to the optimizer or to `keras_tricks.callbacks.CyclicLR`. A cycle is
    counted in optimizer steps (`optimizer.iterations`), so a resumed run continues where it was. With
    `steps_per_execution` a snapshot is taken at the end of the execution in which the cycle ends.

    Args:
        directory: Folder for the files, `snapshot_001.weights.h5` and so on; created if it is missing.
        schedule: The `CyclicalLearningRate` or `keras.optimizers.schedules.CosineDecayRestarts` whose cycles count, or
            the number of optimizer steps of a cycle.
        keep: How many of the newest snapshots to keep. Defaults to `None`, all.

    Raises:
        TypeError: If `schedule` has no cycles.
        ValueError: If an argument is out of range; when training starts, if it ends before the first cycle does, or if
            a new run finds snapshots of another one in `directory`; in `predict`, if there are no snapshots.

    Example:
    >>> import tempfile, keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> cycle = kt.schedules.CyclicalLearningRate(0.001, 0.1, step_size=4)
    >>> model.compile(keras.optimizers.SGD(cycle), "mse")
    >>> ensemble = kt.callbacks.SnapshotEnsemble(tempfile.mkdtemp(), cycle)
    >>> history = model.fit(np.ones((32, 4)), np.ones((32, 2)), batch_size=4, epochs=3, callbacks=[ensemble], verbose=0)
    >>> [file.name for file in ensemble.files]
    ['snapshot_001.weights.h5', 'snapshot_002.weights.h5', 'snapshot_003.weights.h5']
    >>> ensemble.predict(np.ones((5, 4)), verbose=0).shape
    (5, 2)

    Reference:
        Gao Huang, Yixuan Li, Geoff Pleiss, Zhuang Liu, John E. Hopcroft, Kilian Q. Weinberger, "Snapshot Ensembles:
        Train 1, get M for free", 2017, arXiv:1704.00109.
    """

    def __init__(self, directory, schedule, keep=None):
        super().__init__()
        self._ended = _cycles_ended(schedule)
        self.directory, self.schedule = pathlib.Path(directory), schedule
        self.keep = None if keep is None else check_count("keep", keep)

    @property
    def files(self):
        """The snapshots, oldest first."""
        return sorted(self.directory.glob("snapshot_*.weights.h5"), key=_cycle_of)

    def on_train_begin(self, logs=None):
        self._steps_read, self._since = self._steps(), 0
        self._cycle = self._ended(self._steps_read)
        if self._steps_read == 0 and self.files:
            raise ValueError(
                f"{self.directory} holds {len(self.files)} snapshots of another run. Give this one its own folder, "
                "or delete them."
            )
        batches = (self.params.get("steps") or 0) * (self.params.get("epochs") or 0)
        self._batches_per_step = accumulation_steps(self.model.optimizer)
        if batches and self._ended(self._steps_read + batches // self._batches_per_step) == self._cycle:
            raise ValueError(
                f"Training ends after {batches // self._batches_per_step} optimizer steps, before the first cycle of "
                f"{self.schedule!r} does, so there would be no snapshot. Train longer, or take shorter cycles."
            )

    def on_epoch_begin(self, epoch, logs=None):
        self._last_batch = -1

    def on_train_batch_end(self, batch, logs=None):
        self._since += batch - self._last_batch
        self._last_batch = batch
        # The counter is read from the device only where a cycle may have ended: reading waits for the step.
        if self._ended(self._steps_read + self._since) == self._cycle:
            return
        self._steps_read, self._since = self._steps(), 0
        if self._ended(self._steps_read) > self._cycle:
            self._cycle = self._ended(self._steps_read)
            self._save()

    def on_train_end(self, logs=None):
        if not self.files:
            warnings.warn(
                f"SnapshotEnsemble: training ended after {self._steps()} optimizer steps, before a cycle did: there is "
                "no snapshot.",
                stacklevel=2,
            )

    def predict(self, x, model=None, last=None, activation=None, **options):
        """The mean of the snapshots' predictions; the model's own weights are put back exactly.

        Args:
            x: As in `model.predict`.
            model: The model to predict with; by default the one that was trained. In another process, build or load it
                and give it here.
            last: How many of the newest snapshots to use. Defaults to `None`, all.
            activation: Function to apply before averaging. The paper averages probabilities, so for a model that gives
                logits take `keras.activations.softmax`. Defaults to `None`.
            **options: For `model.predict`.

        Returns:
            NumPy arrays, in the structure that `model.predict` returns.
        """
        model = self.model if model is None else model
        if last is not None:
            check_count("last", last)
        files = self.files[-last:] if last else self.files
        if not files or (last and len(files) < last):
            raise ValueError(f"There are {len(files)} snapshots in {self.directory}. Received: last={last}")
        if model is None:
            raise ValueError("There is no model yet: train with this callback, or give `model=`.")
        put_back = remember_variables(model, model.variables)
        sums = None
        try:
            for file in files:
                _load(model, file)
                outputs = keras.tree.map_structure(
                    lambda y: np.asarray(activation(y) if activation else y, "float64"), model.predict(x, **options)
                )
                sums = outputs if sums is None else keras.tree.map_structure(np.add, sums, outputs)
        finally:
            put_back()
        return keras.tree.map_structure(lambda total: (total / len(files)).astype("float32"), sums)

    def _steps(self):
        return int(keras.ops.convert_to_numpy(innermost_optimizer(self.model.optimizer).iterations))

    def _save(self):
        sync(self.model)
        self.directory.mkdir(parents=True, exist_ok=True)
        with unfinished(self.directory / f"snapshot_{self._cycle:03d}.weights.h5") as path:
            self.model.save_weights(path, overwrite=True)
        for file in self.files[: -self.keep] if self.keep else []:
            file.unlink()


def _cycle_of(file):
    return int(re.search(r"\d+", file.name)[0])


def _load(model, file):
    try:
        model.load_weights(file)
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read: it is damaged, or was cut off when the disk was full. Delete it, and predict with "
            f"the others. ({error})"
        ) from error


def _is_count(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= 1


def _cycles_ended(schedule):
    """A function from optimizer steps taken to the number of whole cycles among them."""
    if _is_count(schedule):
        return lambda steps: steps // schedule
    if isinstance(schedule, CyclicalLearningRate):
        return lambda steps: int(steps // (2 * schedule.step_size))
    if isinstance(schedule, keras.optimizers.schedules.CosineDecayRestarts):
        config = schedule.get_config()
        first, growth = config["first_decay_steps"], config["t_mul"]

        def ended(steps):
            count, end, length = 0, first, first
            while steps >= end:
                length *= growth
                count, end = count + 1, end + length
            return count

        return ended
    raise TypeError(
        "`schedule` must be a CyclicalLearningRate, a keras CosineDecayRestarts, or the optimizer steps of a cycle (an "
        f"int of at least 1). Received: schedule={schedule!r}"
    )
