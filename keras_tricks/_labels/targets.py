"""Labels as losses and metrics take them: integers or class probabilities."""

import keras
from keras import ops

CLOSE_TO_ONE = 1e-2  # for the sum of probabilities, which may come in half precision


class Targets:
    """The labels that belong to outputs of shape `(..., classes)`, in one of two forms.

    Attributes:
        labels: int32 of shape `(...)`, 0 where the label is none of the classes; or `None` for probabilities.
        probabilities: Class probabilities of the shape of the outputs; or `None` for integers.
        valid: Bool of shape `(...)`: where a label is one of the classes, or its probabilities are at least 0 and sum
            to 1.
    """

    def __init__(self, y_true, y_pred):
        self.num_classes = y_pred.shape[-1]
        self.labels = self.probabilities = None
        if _are_probabilities(tuple(y_true.shape), tuple(y_pred.shape)):
            self.probabilities = self._given = t = ops.cast(y_true, _float(y_pred))
            self.valid = (ops.min(t, -1) >= 0) & (ops.abs(ops.sum(t, -1) - 1) < CLOSE_TO_ONE)
            return
        self._given = ops.squeeze(y_true, -1) if len(y_true.shape) == len(y_pred.shape) else y_true
        labels = ops.cast(self._given, "int32")
        is_whole = ops.cast(labels, self._given.dtype) == self._given
        self.valid = (labels >= 0) & (labels < self.num_classes) & is_whole
        self.labels = ops.where(self.valid, labels, 0)

    def crossentropy(self, logits):
        """-sum_j t_j log softmax(logits)_j, of shape `(...)`."""
        if self.probabilities is None:
            return ops.sparse_categorical_crossentropy(self.labels, logits, from_logits=True)
        return ops.categorical_crossentropy(self.probabilities, logits, from_logits=True)

    def mean(self, values):
        """sum_j t_j values_j of one value per class: `(classes,)` to `(...)`."""
        if self.probabilities is None:
            return ops.take(values, self.labels, axis=0)
        return ops.matmul(self.probabilities, values)

    def as_probabilities(self, dtype):
        """Class probabilities, one-hot for integers, of the shape of the outputs."""
        if self.probabilities is None:
            return ops.one_hot(self.labels, self.num_classes, dtype=dtype)
        return self.probabilities

    def check(self, weights):
        """Where values can be seen, raises ValueError for a label that has a weight but is none of the classes.

        Returns:
            Whether there is such a label, as a bool tensor for steps in which values cannot be seen.
        """
        wrong = ops.logical_not(self.valid) & (weights != 0)
        try:
            wrong_values = ops.convert_to_numpy(wrong)
        except (AttributeError, NotImplementedError, TypeError, ValueError):  # while traced; backends differ
            return ops.any(wrong)
        if wrong_values.any():
            self._refuse(wrong_values)
        return ops.any(wrong)

    def replaced(self, where):
        """Labels in which those at `where` are replaced by valid ones."""
        if self.probabilities is None:
            return ops.where(where, ops.zeros_like(self._given), self._given)
        return ops.where(ops.expand_dims(where, -1), 1 / self.num_classes, self.probabilities)

    def _refuse(self, wrong):
        values = ops.convert_to_numpy(self._given)[wrong]
        if self.probabilities is not None:
            raise ValueError(
                "Labels of the outputs' shape are class probabilities, at least 0, with a sum of 1 over the last axis. "
                f"Received: {values[0]} among them. A row of zeros is what one-hot encoding makes of a label that is "
                "none of the classes; several classes at once are another problem, for "
                "keras.losses.BinaryCrossentropy."
            )
        raise ValueError(
            f"Labels must be whole numbers in 0..{self.num_classes - 1}. Received: {len(values)} others, from "
            f"{values.min()} to {values.max()}. Give labels that mark padding a `sample_weight` of 0: then they do not "
            "count."
        )


def label_tensor(y_true):
    """Labels as a dense tensor of numbers; raises TypeError for what cannot be one."""
    if isinstance(y_true, dict):
        raise TypeError(
            f"Labels must be one tensor; of several, each output takes its own. Received: a dict of {list(y_true)}"
        )
    if hasattr(y_true, "row_splits") or hasattr(y_true, "dense_shape"):  # TensorFlow's ragged and sparse tensors
        raise TypeError(
            "Labels must be dense: pad ragged ones, `dataset.padded_batch(...)`, and give the padding a "
            f"`sample_weight` of 0. Received: labels of type {type(y_true).__name__}"
        )
    labels = ops.convert_to_tensor(y_true)
    if keras.backend.standardize_dtype(labels.dtype) == "string":
        raise TypeError(
            "Labels must be whole numbers or class probabilities. Map strings to whole numbers first: "
            "keras.layers.StringLookup(vocabulary=..., num_oov_indices=0). Received: labels of dtype string"
        )
    return labels


def weights_of(targets, sample_weight, mask):
    """The weight of each label, of their shape; either may be `None`."""
    weights = ops.ones(ops.shape(targets.valid), "float32")
    if sample_weight is not None:
        weights = weights * ops.cast(at_the_labels(targets, sample_weight), weights.dtype)
    if mask is not None:
        weights = weights * ops.cast(at_the_labels(targets, mask, "mask"), weights.dtype)
    return weights


def at_the_labels(targets, sample_weight, name="sample_weight"):
    """Weights with an axis of size 1 in place of each axis that they lack.

    Keras multiplies weights `(batch,)` into losses `(batch, time)` as they are, along the wrong axis.
    """
    weights = ops.convert_to_tensor(sample_weight)
    wanted, given = tuple(targets.valid.shape), tuple(weights.shape)
    if len(given) == len(wanted) + 1 and given[-1] == 1:
        weights, given = ops.squeeze(weights, -1), given[:-1]
    fits = all(w == g or g == 1 or None in (w, g) for w, g in zip(wanted, given, strict=False))
    if len(given) > len(wanted) or not fits:
        raise ValueError(
            f"`{name}` must have the shape of the labels, {wanted}, or of their first axes. Received: {name} of shape "
            f"{given}"
        )
    return ops.reshape(weights, (*ops.shape(weights), *[1] * (len(wanted) - len(given))))


def _are_probabilities(labels, outputs):
    """Whether labels of this shape are class probabilities, judging by the shape of the outputs."""
    probabilities = len(labels) == len(outputs) and labels[-1] != 1 and labels[-1] in (outputs[-1], None)
    integers = len(labels) == len(outputs) - 1 or (len(labels) == len(outputs) and labels[-1] == 1)
    paired = all(n == m or None in (n, m) for n, m in zip(labels, outputs[:-1], strict=False))
    if not (probabilities or integers) or not paired:
        raise ValueError(
            f"There must be a prediction for each label. For outputs of shape {outputs}, labels are integers of shape "
            f"{outputs[:-1]} or {(*outputs[:-1], 1)}, or class probabilities of shape {outputs}. Received: labels of "
            f"shape {labels}"
        )
    return probabilities


def _float(x):
    """`x` in float32, or in its own dtype if that is wider."""
    return "float64" if keras.backend.standardize_dtype(x.dtype) == "float64" else "float32"
