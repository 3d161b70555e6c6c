"""Arithmetic of the criteria of early stopping."""

import itertools
import math


def generalization_loss(errors):
    """Prechelt's GL of the last error, percent above the lowest of all; infinite if it is not finite."""
    lowest, last = min(errors), errors[-1]
    if last == math.inf:
        return math.inf
    if last == lowest:
        return 0.0
    return 100 * ratio(last - lowest, abs(lowest))


def training_progress(errors):
    """Prechelt's P of the training errors in a strip: per mille by which their mean lies above the lowest."""
    lowest = min(errors)
    if not math.isfinite(lowest):
        return 0.0
    return 1000 * ratio(sum(errors) / len(errors) - lowest, abs(lowest))


def ratio(a, b):
    if a == 0 or (math.isinf(b) and not math.isinf(a)):
        return 0.0
    return math.inf if b == 0 or math.isinf(a) else a / b


def grew(values, times, by=0):
    """Whether each of the last `times` values exceeds the one before it; an infinite one exceeds any."""
    pairs = list(itertools.pairwise(values))[-times:]
    return len(pairs) == times and all(new > old + by or new == math.inf for old, new in pairs)


def nan_is_worst(error):
    return math.inf if math.isnan(error) else error


def finite_or_nan(errors):
    return [error if math.isfinite(error) else math.nan for error in errors]
