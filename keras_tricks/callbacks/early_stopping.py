"""Early stopping by patience, by Prechelt's three classes of criteria, or by the gap between training and validation.

The criteria and their formulas are in `_criteria`; this module has the checks, the best weights, and the state that
survives a restart. Prechelt, 1998. "patience" is the rule of `keras.callbacks.EarlyStopping`, except that NaN is never
the best.
"""

import inspect
import math
import numbers
import pathlib
import re
import warnings

import keras
import numpy as np

from keras_tricks._arguments import check_choice, check_count, check_flag, check_number
from keras_tricks.callbacks._criteria import CRITERIA, Checks
from keras_tricks.callbacks._state import assign_weights, averaging_of, load_arrays, save_arrays

FALLING = r"loss|error|mae|mse|rmse|mape|msle|logcosh|crossentropy|entropy|divergence|hinge|poisson|perplexity"
RISING = r"accuracy|acc|auc|precision|recall|f1|f1_score|fbeta_score|iou|io_u|r2|r2_score|similarity"


class EarlyStopping(keras.callbacks.Callback):
    """Stops training when validation says so, keeps the best weights, says why, and survives a restart.

    A check is an epoch in which the monitored value appears. Errors are the monitored values, negated where more is
    better. Criteria, with `E` the validation error, `T` the training error and `k` the strip:

    - `"patience"`: for `patience` checks, no `E` was lower than the lowest by more than `min_delta`, as in Keras'
      callback.
    - `"GL"`: `E` lies more than `alpha` percent above its lowest.
    - `"PQ"`: at the end of a strip, that percentage divided by the training's progress in the strip (per mille by which
      the mean of `T` lies above its lowest) exceeds `alpha`: no stop while training still makes progress.
    - `"UP"`: at the ends of `successive` strips in a row, `E(t) > E(t - k)`. Only the sign of the change counts.
    - `"gap"`: the mean of `E - T` over a strip, or 0 if it is negative, has grown by more than `min_delta`,
      `successive` strips in a row.

    A validation error that is NaN or infinite counts as worse than any other: GL stops at once, the others at their
    next check. After training: `stopped_because` (a sentence, or `None` if nothing stopped it), `stopped_epoch`,
    `best`, `best_epoch` (from 0) and `history` (epoch, validation value, training value of each check).

    Args:
        criterion: `"patience"`, `"GL"`, `"PQ"`, `"UP"` or `"gap"`. Defaults to `"patience"`.
        monitor: Name of the validation value in the logs. Defaults to `"val_loss"`.
        train_monitor: Name of the training value, for PQ and gap. Keras' `loss` is the mean over the epoch, with
            dropout and regularisation. Defaults to `"loss"`.
        alpha: Threshold of GL (percent; Prechelt tried 1 to 5) or PQ (0.5 to 3). Defaults to 5 for GL, 1 for PQ.
        strip: Checks in a strip, for PQ, UP and gap. Defaults to `5`.
        successive: Strips in a row, for UP and gap. Defaults to `2`.
        patience: Checks without improvement, for patience. Defaults to `0`.
        min_delta: What an improvement, or the growth of the gap, has to exceed, for patience and gap. Defaults to `0`.
        mode: `"min"`, `"max"`, or `"auto"`: inferred from the name, with an error if that is not possible.
        baseline: For patience: only values better than this restart the wait. Defaults to `None`.
        start_from_epoch: Epochs before this one, counted from 0, are not checks. Defaults to `0`.
        restore_best_weights: Whether training ends with the weights of the best check, which are kept in host memory
            until then. Defaults to `False`.
        validation_freq: As given to `fit`; it decides in which epochs a missing value is an error. Defaults to `1`.
        backup_dir: A folder for the state after each epoch, to resume after a crash together with
            `keras.callbacks.BackupAndRestore`. It must not be the folder of that callback, which deletes its own. The
            files are removed when training ends. Defaults to `None`.
        verbose: 1 to print why training stopped. Defaults to `0`.

    Raises:
        ValueError: For an argument that is out of range or of no use to the criterion; at the end of an epoch in which
            a value should have appeared and did not, with the names that did; for a `backup_dir` of another run.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1, kernel_initializer="zeros")])
    >>> model.compile("sgd", "mse")
    >>> stop = kt.callbacks.EarlyStopping("GL", alpha=2, restore_best_weights=True)
    >>> x, y = np.ones((8, 4)), np.ones((8, 1))
    >>> history = model.fit(x, y, validation_data=(x, -y), epochs=9, callbacks=[stop], verbose=0)  # the opposite
    >>> stop.best_epoch, stop.stopped_epoch
    (0, 1)

    Reference:
        Lutz Prechelt, "Early stopping - but when?", Neural Networks: Tricks of the Trade, Springer, 1998.
    """

    def __init__(
        self,
        criterion="patience",
        monitor="val_loss",
        train_monitor="loss",
        alpha=None,
        strip=5,
        successive=2,
        patience=0,
        min_delta=0,
        mode="auto",
        baseline=None,
        start_from_epoch=0,
        restore_best_weights=False,
        validation_freq=1,
        backup_dir=None,
        verbose=0,
    ):
        super().__init__()
        rule = CRITERIA[check_choice("criterion", criterion, CRITERIA)]
        _require_use(
            criterion,
            alpha=alpha,
            strip=strip,
            successive=successive,
            patience=patience,
            min_delta=min_delta,
            baseline=baseline,
        )
        for epochs in validation_freq if isinstance(validation_freq, list | tuple | set) else [validation_freq]:
            check_count("validation_freq", epochs)
        check_choice("mode", mode, ("auto", "min", "max"))
        if criterion == "gap" and monitor != f"val_{train_monitor}":
            raise ValueError(
                "criterion='gap' is the difference of one value on two sets: with `monitor='val_NAME'`, set "
                f"`train_monitor='NAME'`. Received: monitor={monitor!r}, train_monitor={train_monitor!r}"
            )
        self.criterion = criterion
        self.monitor = monitor
        self.train_monitor = train_monitor if rule.sees_training else None
        self.alpha = getattr(rule, "alpha", None) if alpha is None else check_number("alpha", alpha, above=0)
        self.strip = check_count("strip", strip)
        self.successive = check_count("successive", successive)
        self.patience = check_count("patience", patience, at_least=0)
        self.min_delta = check_number("min_delta", min_delta, at_least=0)
        self.baseline = None if baseline is None else check_number("baseline", baseline)
        self.start_from_epoch = check_count("start_from_epoch", start_from_epoch, at_least=0)
        self.restore_best_weights = check_flag("restore_best_weights", restore_best_weights)
        self.validation_freq = validation_freq
        self.backup_dir = None if backup_dir is None else pathlib.Path(backup_dir)
        self.verbose = verbose
        self._sign, self._train_sign = _sign(monitor, mode), None
        if self.train_monitor is not None:
            same = monitor == f"val_{train_monitor}"
            self._train_sign = self._sign if same else _sign(train_monitor, "auto")
        self._reset()

    def on_train_begin(self, logs=None):
        self._reset()
        self._first_epoch = True

    def on_epoch_begin(self, epoch, logs=None):
        if self._first_epoch:
            self._first_epoch = False
            self._resume(epoch)

    def on_epoch_end(self, epoch, logs=None):
        logs = logs or {}
        for name in (self.monitor, self.train_monitor):
            if name is not None and name not in logs:
                if self._is_due(epoch) or not name.startswith("val_"):
                    raise ValueError(_missing(name, logs))
                return
        if epoch >= self.start_from_epoch:
            value = float(logs[self.monitor])
            train = math.nan if self.train_monitor is None else float(logs[self.train_monitor])
            self.history.append((epoch, value, train))
            self._keep_if_best(epoch, value)
            reason = self._reason_to_stop()
            if reason is not None:
                self.stopped_epoch = epoch
                self.stopped_because = f"{self.criterion}, after epoch {epoch + 1}: {reason}; {self._best_in_words()}."
                self.model.stop_training = True
                if self.verbose:
                    print(f"Early stopping by {self.stopped_because}")
        self._save(epoch)

    def on_train_end(self, logs=None):
        if self.restore_best_weights and self._best_weights is not None:
            assign_weights(self.model, self._best_weights)
            averaging = averaging_of(self.model)
            if averaging is not None:
                averaging.leave_as_they_are()
        elif self.restore_best_weights and self.history:
            warnings.warn(
                f"EarlyStopping: {self.monitor} was never a number, so there are no best weights to restore; the model "
                "keeps those of the last epoch.",
                stacklevel=2,
            )
        self._best_weights = None
        for path in self._backups().values():
            path.unlink()

    def _reset(self):
        self.history = []
        self.best = None
        self.best_epoch = None
        self.stopped_epoch = None
        self.stopped_because = None
        self._best_weights = None

    def _is_due(self, epoch):
        if isinstance(self.validation_freq, numbers.Integral):
            return (epoch + 1) % self.validation_freq == 0
        return epoch + 1 in self.validation_freq

    def _keep_if_best(self, epoch, value):
        error = self._sign * value
        delta = self.min_delta if self.criterion == "patience" else 0
        if math.isnan(error) or (self.best is not None and not error + delta < self._sign * self.best):
            return
        self.best, self.best_epoch = value, epoch
        if self.restore_best_weights:
            averaging = averaging_of(self.model) if self.monitor.startswith("val_") else None
            self._best_weights = self.model.get_weights() if averaging is None else averaging.evaluated_weights()

    def _reason_to_stop(self):
        rule = CRITERIA[self.criterion]
        rule = rule(**{name: getattr(self, name) for name in rule.arguments()})
        return rule.reason(Checks(self.history, self.monitor, self.train_monitor, self._sign, self._train_sign))

    def _best_in_words(self):
        if self.best is None:
            return "no check gave a number"
        return f"the best was {self.best:.4g} in epoch {self.best_epoch + 1}"

    def _backups(self):
        """The backups by their epoch. An earlier version wrote a single one, without a number, for the last epoch."""
        if self.backup_dir is None:
            return {}
        paths = self.backup_dir.glob("early_stopping*.npz")
        numbers_of = {path: re.search(r"\d+", path.name) for path in paths}
        return {int(number[0]) if number else -1: path for path, number in sorted(numbers_of.items())}

    def _save(self, epoch):
        if self.backup_dir is None:
            return
        state = {
            "names": np.array([self.monitor, self.train_monitor or ""]),
            "history": np.array(self.history, "float64").reshape(-1, 3),
            "best": np.array([] if self.best is None else [self.best, self.best_epoch], "float64"),
        }
        state |= {f"weight_{i}": w for i, w in enumerate(self._best_weights or [])}
        save_arrays(self.backup_dir / f"early_stopping-{epoch}.npz", state)
        # A crash may come before the model's own backup of this epoch, so the state before it is kept too.
        for _, path in sorted(self._backups().items())[:-2]:
            path.unlink()

    def _resume(self, epoch):
        """Restores the state of the epochs before `epoch`, where training begins."""
        if self.backup_dir is None or epoch == 0:
            return
        earlier = [number for number in self._backups() if number < epoch]
        if earlier:
            self._load(epoch, self._backups()[max(earlier)])
        last = epoch - 1
        if last >= self.start_from_epoch and self._is_due(last) and last not in [check[0] for check in self.history]:
            warnings.warn(
                f"EarlyStopping: training goes on at epoch {epoch + 1}, but {self.backup_dir} does not know epoch "
                f"{epoch}. It may stop later than an uninterrupted run. Put it before BackupAndRestore.",
                stacklevel=2,
            )

    def _load(self, epoch, path):
        state = load_arrays(path)
        names = [self.monitor, self.train_monitor or ""]
        if list(state["names"]) != names:
            raise ValueError(
                f"EarlyStopping: {path} is of a run that monitored {list(state['names'])}, this one "
                f"monitors {names}. Delete it, or give this run another `backup_dir`."
            )
        self.history = [(int(e), value, train) for e, value, train in state["history"].tolist() if e < epoch]
        weights = [state[f"weight_{i}"] for i in range(sum(name.startswith("weight_") for name in state))]
        if len(state["best"]):
            self.best, self.best_epoch = float(state["best"][0]), int(state["best"][1])
        if self.restore_best_weights and self.best is not None:
            if [w.shape for w in weights] != [tuple(w.shape) for w in self.model.weights]:
                raise ValueError(
                    f"EarlyStopping: {path} does not hold the best weights of this model. It is of another "
                    "model or of a run without `restore_best_weights`. Delete it, or use another `backup_dir`."
                )
            self._best_weights = weights


def _require_use(criterion, **arguments):
    """Raises ValueError for an argument that is set but would do nothing."""
    defaults = inspect.signature(EarlyStopping).parameters
    for name, value in arguments.items():
        if name not in CRITERIA[criterion].arguments() and value != defaults[name].default:
            users = [other for other in CRITERIA if name in CRITERIA[other].arguments()]
            raise ValueError(
                f"`{name}` has no effect on criterion={criterion!r}; it is for {', '.join(users)}. "
                f"Received: {name}={value!r}"
            )


def _sign(monitor, mode):
    """1 for a value that should fall, -1 for one that should rise."""
    if mode != "auto":
        return 1 if mode == "min" else -1
    falls, rises = (re.search(rf"(^|_)({words})(_|$|\d)", monitor.lower()) for words in (FALLING, RISING))
    if bool(falls) == bool(rises):
        raise ValueError(
            f"Whether {monitor!r} should fall or rise cannot be told by its name. Pass `mode='min'` or `mode='max'`."
        )
    return 1 if falls else -1


def _missing(name, logs):
    hint = ""
    if name.startswith("val_"):
        hint = " Give `fit` validation data; if it validates only in some epochs, pass its `validation_freq` here too."
    return (
        f"EarlyStopping monitors {name!r}, which is not in the logs at the end of the epoch. There are: "
        f"{', '.join(sorted(logs)) or 'none'}.{hint}"
    )
