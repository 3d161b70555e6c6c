"""What the losses of this folder share: labels of both forms, float32 inside, and weights of the classes."""

import keras
import numpy as np
from keras import ops

from keras_tricks._keras.masks import mask_of, with_mask
from keras_tricks._labels.class_counts import as_class_counts
from keras_tricks._labels.targets import Targets, at_the_labels, label_tensor, weights_of
from keras_tricks.losses._logits import logits_of


class ClassLoss(keras.losses.Loss):
    """A loss on logits of shape `(..., classes)`, for labels that are integers or class probabilities.

    Where the outputs come from a softmax or sigmoid, it takes the logits behind them, with a warning.

    It is computed in float32, or float64 if that is Keras' float type. A label that is none of the classes raises
    ValueError in eager mode; in a compiled step its loss is NaN, and its gradient 0. Where the weight is 0, labels may
    be anything.

    A subclass has `losses(targets, logits)`, the loss of each example.
    """

    applies = "Softmax"  # to the logits

    def __init__(self, from_logits, reduction, name):
        # In half precision labels above 2048 could not be told apart.
        super().__init__(name, reduction, "float64" if keras.config.floatx() == "float64" else "float32")
        if from_logits is not True:
            raise ValueError(
                f"{type(self).__name__} works on logits: leave out the last layer's softmax. Received: "
                f"from_logits={from_logits!r}"
            )

    def __call__(self, y_true, y_pred, sample_weight=None):
        y_true, y_pred = label_tensor(y_true), ops.convert_to_tensor(y_pred)
        self.check_logits(y_pred)
        targets, mask = Targets(y_true, y_pred), mask_of(y_pred)
        weights = weights_of(targets, sample_weight, mask)
        targets.check(weights)
        if sample_weight is not None:
            sample_weight = at_the_labels(targets, sample_weight)
        logits = logits_of(y_pred, weights, type(self).__name__, self.applies)
        if mask is not None and logits is not y_pred:
            logits = with_mask(logits, mask=mask)
        # What does not count may be anything, as a label that marks padding.
        return super().__call__(targets.replaced(weights == 0), logits, sample_weight)

    def check_logits(self, y_pred):
        if len(y_pred.shape) < 2 or y_pred.shape[-1] is None:
            raise ValueError(
                f"{type(self).__name__} expects logits of shape (batch, ..., classes). Received: {tuple(y_pred.shape)}"
            )

    def call(self, y_true, y_pred):
        targets = Targets(y_true, y_pred)
        return ops.where(targets.valid, self.weighted_losses(targets, y_pred), float("nan"))

    def weighted_losses(self, targets, logits):
        return self.losses(targets, logits)

    def losses(self, targets, logits):
        raise NotImplementedError


class ClassCountsLoss(ClassLoss):
    """A `ClassLoss` that knows the classes' numbers of examples, and has a weight for each class.

    Attributes:
        class_counts: int64 array of shape `(classes,)`.
        class_weights: float64 array of shape `(classes,)`; an example's loss is multiplied by the weight of its class.
            `callbacks.DeferredReweighting` puts a variable in its place while it runs.
    """

    def __init__(self, class_counts, from_logits, reduction, name):
        super().__init__(from_logits, reduction, name)
        self.class_counts = as_class_counts(class_counts)
        self.class_weights = self.starting_class_weights()

    def starting_class_weights(self):
        return np.ones(len(self.class_counts))

    def check_logits(self, y_pred):
        super().check_logits(y_pred)
        if y_pred.shape[-1] != len(self.class_counts):
            raise ValueError(
                f"{type(self).__name__} has counts of {len(self.class_counts)} classes, but logits of shape "
                f"{tuple(y_pred.shape)}. The last layer needs one output a class."
            )

    def weighted_losses(self, targets, logits):
        return self.losses(targets, logits) * targets.mean(ops.convert_to_tensor(self.class_weights, logits.dtype))

    def get_config(self):
        return {**super().get_config(), "class_counts": self.class_counts.tolist()}
