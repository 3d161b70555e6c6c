"""What the metrics of this folder share: which labels count and how much, and the mean of classes' recalls."""

import math

import keras
import numpy as np
from keras import ops

from keras_tricks._keras.masks import mask_of
from keras_tricks._labels.targets import Targets, label_tensor, weights_of

SUMS = 4096  # over all classes; see MeanRecall


class MeanRecall(keras.metrics.Metric):
    """Mean of the recalls of some classes, over those of them that occur.

    A float32 sum stands still at 2^24: adding 1 to it changes nothing. Therefore each class has several sums, too many
    for any batch that fits in memory to fill, and next to each sum is kept what its rounding lost. So counts are exact
    to 2^48 on every backend. Replicas add them up.

    Args:
        averaged: Bool of shape `(classes,)`: the classes to average over.
        name: Name of the metric.
        dtype: Dtype of the result. The sums are float32, or float64 if this is.
    """

    def __init__(self, averaged, name, dtype):
        super().__init__(name=name, dtype=dtype)
        self.averaged = np.asarray(averaged, "bool")
        shape = (2, math.ceil(SUMS / len(self.averaged)), len(self.averaged))
        sums_dtype = "float64" if self.dtype == "float64" else "float32"
        self.seen = self.add_variable(shape, "zeros", dtype=sums_dtype, aggregation="sum", name="seen")
        self.right = self.add_variable(shape, "zeros", dtype=sums_dtype, aggregation="sum", name="right")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Adds a batch.

        Args:
            y_true: Integer labels, or class probabilities of the shape of `y_pred`.
            y_pred: Logits or probabilities of shape `(batch, ..., classes)`.
            sample_weight: Weights of the labels' shape, or of the shape of its first axes. Defaults to `None`.
        """
        y_pred = ops.convert_to_tensor(y_pred)
        check_outputs(type(self).__name__, tuple(y_pred.shape), len(self.averaged))
        labels, weights, wrong = examine(y_true, y_pred, sample_weight, mask_of(y_pred))
        right = weights * ops.cast(ops.equal(labels, ops.reshape(_argmax(y_pred), (-1,))), weights.dtype)
        _, sums, classes = self.seen.shape
        # The examples take the sums of their class in turn.
        places = labels + classes * (ops.arange(ops.shape(labels)[0], dtype="int32") % sums)
        for variable, values in ((self.seen, weights), (self.right, right)):
            values = ops.cast(values, variable.dtype)
            added = ops.reshape(ops.segment_sum(values, places, sums * classes), (sums, classes))
            variable.assign(_plus(variable, ops.where(wrong, np.nan, added)))

    def result(self):
        seen, right = (ops.sum(ops.convert_to_tensor(v), axis=(0, 1)) for v in (self.seen, self.right))
        occurs = seen > 0
        recalls = ops.where(occurs, right / ops.where(occurs, seen, 1.0), 0.0)
        counted = ops.cast(occurs & ops.convert_to_tensor(self.averaged), recalls.dtype)
        classes = ops.sum(counted)
        mean = ops.sum(recalls * counted) / ops.maximum(classes, 1.0)
        known = (classes > 0) & ops.logical_not(ops.isnan(ops.sum(seen)))
        return ops.cast(ops.where(known, mean, np.nan), self.dtype)


def check_outputs(name, shape, num_classes):
    """Raises ValueError if `shape` is not that of one output per class."""
    if len(shape) < 2 or shape[-1] != num_classes:
        hint = " A single output for two classes has to become two." if shape[-1:] == (1,) else ""
        raise ValueError(
            f"{name} is for {num_classes} classes, and expects logits or probabilities of shape (batch, ..., "
            f"{num_classes}). Received: outputs of shape {shape}.{hint}"
        )


def examine(y_true, y_pred, sample_weight=None, mask=None):
    """Labels and their weights, flat, and whether any label that has a weight is none of the classes.

    Raises:
        ValueError: For shapes that do not fit, and, where values can be seen, for labels that are none of the classes.
    """
    targets = Targets(label_tensor(y_true), y_pred)
    weights = weights_of(targets, sample_weight, mask)
    wrong = targets.check(weights)
    labels = targets.labels if targets.probabilities is None else _argmax(targets.probabilities)
    return ops.reshape(labels, (-1,)), ops.reshape(weights, (-1,)), wrong


def _argmax(x):
    return ops.cast(ops.argmax(x, axis=-1), "int32")


def _plus(variable, added):
    """The new sums and their remainders: the rounding error of an addition is itself a float (Knuth's two-sum)."""
    value = ops.convert_to_tensor(variable)
    before, rest = value[0], value[1]
    after = before + added
    share = after - before
    return ops.stack([after, rest + ((before - (after - share)) + (added - share))])
