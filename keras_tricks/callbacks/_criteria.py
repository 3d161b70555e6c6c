"""Criteria of early stopping: one class per criterion, with its arguments, its rule, and its reason in words.

    E(t): validation error at check t       E_opt(t) = min of E(1..t)       T(t): training error       k: strip

    GL(t) = 100 · (E(t) - E_opt(t)) / |E_opt(t)|                        generalisation loss, percent
    P(t)  = 1000 · (mean T(t-k+1..t) - min T(t-k+1..t)) / |min T(..)|   training progress in a strip, per mille

    GL   stop when GL(t) > alpha
    PQ   stop at the end of a strip when GL(t) / P(t) > alpha
    UP   stop at the end of a strip when E(t) > E(t-k), `successive` strips in a row
    gap  stop at the end of a strip when max(0, mean of E - T over the strip) has grown, `successive` strips in a row

Prechelt, 1998; with |E_opt| for errors that are below zero, equal to his for those above. A criterion looks at all
checks, so a resumed run decides as an uninterrupted one would.
"""

import dataclasses
import itertools
import math

import numpy as np


@dataclasses.dataclass(frozen=True)
class Checks:
    """The checks of a run so far.

    Attributes:
        history: Epoch, validation value and training value of each check.
        monitor: Name of the validation value.
        train_monitor: Name of the training value, or `None` for a criterion that asks for none.
        sign: 1 for a validation value that should fall, -1 for one that should rise.
        train_sign: The same for the training value.
    """

    history: list
    monitor: str
    train_monitor: str | None
    sign: int
    train_sign: int | None

    @property
    def errors(self):
        return [_nan_is_worst(self.sign * value) for _, value, _ in self.history]

    @property
    def train_errors(self):
        return [_nan_is_worst(self.train_sign * train) for _, _, train in self.history]

    def last_in_words(self):
        return f"{self.monitor} is {self.history[-1][1]:.4g}"


@dataclasses.dataclass(frozen=True)
class _Criterion:
    """A rule that tells from the checks whether to stop. Its fields are the arguments of `EarlyStopping` it uses."""

    sees_training = False

    @classmethod
    def arguments(cls):
        return [field.name for field in dataclasses.fields(cls)]

    def reason(self, checks):
        """Why to stop after the last check, or `None`."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Patience(_Criterion):
    patience: int
    min_delta: float
    baseline: float | None

    def reason(self, checks):
        best, waited = math.inf, 0
        baseline = math.inf if self.baseline is None else checks.sign * self.baseline
        for error in checks.errors:
            waited += 1
            improves = error + self.min_delta < best
            if improves:
                best = error
                if self.baseline is None or error + self.min_delta < baseline:
                    waited = 0
        if improves or waited < self.patience or checks.history[-1][0] == 0:
            return None
        return f"{waited} checks without improvement"


@dataclasses.dataclass(frozen=True)
class GL(_Criterion):
    alpha: float = 5.0

    def reason(self, checks):
        loss = _generalization_loss(checks.errors)
        if loss <= self.alpha:
            return None
        return f"{checks.last_in_words()}, {loss:.3g} % worse than the best (alpha={self.alpha:g})"


@dataclasses.dataclass(frozen=True)
class PQ(_Criterion):
    sees_training = True

    strip: int
    alpha: float = 1.0

    def reason(self, checks):
        if len(checks.history) % self.strip:
            return None
        loss = _generalization_loss(checks.errors)
        progress = _training_progress(checks.train_errors[-self.strip :])
        quotient = _ratio(loss, progress)
        if quotient <= self.alpha:
            return None
        return (
            f"{checks.last_in_words()}, {loss:.3g} % worse than the best, while {checks.train_monitor} progressed by "
            f"{progress:.3g} per mille in {self.strip} checks: quotient {quotient:.3g} (alpha={self.alpha:g})"
        )


@dataclasses.dataclass(frozen=True)
class UP(_Criterion):
    strip: int
    successive: int

    def reason(self, checks):
        ends = checks.errors[self.strip - 1 :: self.strip]
        if len(checks.history) % self.strip or not _grew(ends, self.successive):
            return None
        return (
            f"{checks.last_in_words()}; at the end of a strip of {self.strip} checks it was worse than a strip before, "
            f"{self.successive} times in a row"
        )


@dataclasses.dataclass(frozen=True)
class Gap(_Criterion):
    sees_training = True

    strip: int
    successive: int
    min_delta: float

    def reason(self, checks):
        if len(checks.history) % self.strip:
            return None
        gaps = np.subtract(_finite_or_nan(checks.errors), _finite_or_nan(checks.train_errors))
        # Below zero, where training's mean over the epoch lags behind, a gap that closes is no overfitting.
        means = [_nan_is_worst(max(m, 0.0)) for m in gaps.reshape(-1, self.strip).mean(axis=1).tolist()]
        if not _grew(means, self.successive, self.min_delta):
            return None
        shown = " to ".join(f"{m:.4g}" for m in means[-self.successive - 1 :])
        return f"the gap between {checks.train_monitor} and {checks.monitor} grew from {shown}"


CRITERIA = {"patience": Patience, "GL": GL, "PQ": PQ, "UP": UP, "gap": Gap}


def _generalization_loss(errors):
    """Prechelt's GL of the last error, percent above the lowest of all; infinite if it is not finite."""
    lowest, last = min(errors), errors[-1]
    if last == math.inf:
        return math.inf
    if last == lowest:
        return 0.0
    return 100 * _ratio(last - lowest, abs(lowest))


def _training_progress(errors):
    """Prechelt's P of the training errors in a strip: per mille by which their mean lies above the lowest."""
    lowest = min(errors)
    if not math.isfinite(lowest):
        return 0.0
    return 1000 * _ratio(sum(errors) / len(errors) - lowest, abs(lowest))


def _ratio(a, b):
    if a == 0 or (math.isinf(b) and not math.isinf(a)):
        return 0.0
    return math.inf if b == 0 or math.isinf(a) else a / b


def _grew(values, times, by=0):
    """Whether each of the last `times` values exceeds the one before it; an infinite one exceeds any."""
    pairs = list(itertools.pairwise(values))[-times:]
    return len(pairs) == times and all(new > old + by or new == math.inf for old, new in pairs)


def _nan_is_worst(error):
    return math.inf if math.isnan(error) else error


def _finite_or_nan(errors):
    return [error if math.isfinite(error) else math.nan for error in errors]
