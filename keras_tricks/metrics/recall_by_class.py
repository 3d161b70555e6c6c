"""Recall of each class next to its number of training examples: as figures, as a table, and as a picture.

    recall_j = right_j / examples_j        precision_j = right_j / (examples that are predicted as j)

One number for a long-tailed test hides what a method for it changes: which classes gain, and which pay for it. The
groups are those of `ShotAccuracy`. Equal to scikit-learn's `recall_score` and `precision_score` with `average=None`,
but NaN, and not 0, for a class that does not occur or is never predicted.
"""

import dataclasses

import keras
import numpy as np
from keras import ops

from keras_tricks._keras.masks import mask_of
from keras_tricks._labels.class_counts import as_class_counts
from keras_tricks.metrics._picture import LOOKS, recalls_over_counts, shortened
from keras_tricks.metrics._recalls import check_outputs, examine
from keras_tricks.metrics.shot_accuracy import bounds_in_words, check_bounds, groups_of

ROWS = 30  # of a table that is printed whole; a longer one shows its head and its tail


@dataclasses.dataclass(frozen=True, eq=False)
class RecallByClass:
    """What `recall_by_class` found; as a string, it is a table of the classes, the most frequent in training first.

    Attributes:
        recall: Of each class, (classes,); NaN for a class that does not occur in the data.
        precision: Of each class, (classes,); NaN for a class that is never predicted.
        support: Examples of each class in the data, (classes,); sums of weights where there are weights.
        class_counts: Training examples of each class, (classes,).
        class_names: A name for each class.
        accuracy: Share of all examples that are predicted right.
        balanced_accuracy: Mean recall of the classes that occur.
        groups: Mean recall of the classes that occur, for `"many"`, `"medium"` and `"few"`; without the groups that no
            class is in. NaN for one whose classes do not occur.
        many: Bound above which a class is in `"many"`.
        few: Bound below which a class is in `"few"`.
    """

    recall: np.ndarray
    precision: np.ndarray
    support: np.ndarray
    class_counts: np.ndarray
    class_names: tuple
    accuracy: float
    balanced_accuracy: float
    groups: dict
    many: int
    few: int

    def __str__(self):
        classes_of = groups_of(self.class_counts, self.many, self.few)
        group = np.select(list(classes_of.values()), list(classes_of), "")
        order = np.argsort(-self.class_counts, kind="stable")
        half = ROWS // 2
        shown, left_out = order, order[:0]
        if len(order) > ROWS:
            shown, left_out = np.concatenate([order[:half], order[-half:]]), order[half:-half]
        names = [shortened(name, 24) for name in self.class_names]
        width = max(5, *(len(names[j]) for j in shown))
        lines = [f"{'class':{width}}  training  group     test  recall  precision"]
        lines += [
            f"{names[j]:{width}}  {self.class_counts[j]:8d}  {group[j]:6}  {self.support[j]:6g}  "
            f"{_figure(self.recall[j])}  {_figure(self.precision[j]):>9}  {_bar(self.recall[j])}".rstrip()
            for j in shown
        ]
        if len(left_out):
            more = f"... {len(left_out)} more classes with a mean recall of {_mean(self.recall[left_out]):.3f} ..."
            lines.insert(1 + half, more)
        lines += ["", f"{'accuracy':18}{self.accuracy:.3f}", f"{'balanced accuracy':18}{self.balanced_accuracy:.3f}"]
        for name, recall in self.groups.items():
            classes = classes_of[name].sum()
            bounds = f"{classes} class{'' if classes == 1 else 'es'} with {bounds_in_words(self.many, self.few)[name]}"
            lines.append(f"{name:18}{recall:.3f}  mean recall of {bounds} training examples")
        return "\n".join(lines)

    def plot(self, path=None):
        """Draws recall against the number of training examples; `plot_recalls` does it for several results.

        Args:
            path: File to write; its ending names the format. Defaults to `None`, for no file.

        Returns:
            The `matplotlib.figure.Figure`.

        Raises:
            ImportError: Without matplotlib.
        """
        return plot_recalls({"": self}, path)


def recall_by_class(y_true, y_pred, class_counts, class_names=None, many=100, few=20, sample_weight=None):
    """Recall and precision of each class, next to its number of training examples.

    Takes labels and predictions, or a model and the data to test it on:

    `recall_by_class(labels, model.predict(images), class_counts)`

    `recall_by_class(model, test_data, class_counts)`

    The second form reads inputs and labels in the same pass, so that `test_data` may be shuffled, and takes the model's
    masks into account. It calls the model batch by batch, without recompiling it.

    Args:
        y_true: Labels: integers of shape `(examples,)`, with more axes for sequences and images, or rows of class
            probabilities, of which the largest counts. Or a Keras model with one output.
        y_pred: Logits or probabilities of shape `(examples, ..., classes)`, or predicted classes as integers of the
            labels' shape. Or, with a model, its data: a `tf.data.Dataset`, a `keras.utils.PyDataset` or another
            iterable, of batches `(x, y)` or `(x, y, sample_weight)`.
        class_counts: Number of *training* examples of each class, of shape `(classes,)`, or the training dataset,
            which is then read once.
        class_names: A name for each class. Defaults to `None`, for their numbers.
        many: Classes with more training examples than this are in the group `"many"`. Defaults to 100.
        few: Classes with fewer training examples than this are in the group `"few"`. Defaults to 20.
        sample_weight: With labels, weights of their shape or of the shape of their first axes. Defaults to `None`.

    Returns:
        A `RecallByClass` with `recall`, `precision`, `support`, `accuracy`, `balanced_accuracy`, `groups` and
        `plot(path)`; as a string, it is a table.

    Raises:
        TypeError, ValueError: If an argument is out of range, shapes do not fit, a label or a prediction is none of the
            classes, outputs are NaN, or there is no example.

    Example:
    >>> import keras_tricks as kt
    >>> found = kt.metrics.recall_by_class([0, 0, 1, 1, 2, 2], [0, 0, 1, 0, 0, 2], [500, 50, 5], ["cat", "dog", "emu"])
    >>> found.recall, {group: float(recall) for group, recall in found.groups.items()}
    (array([1. , 0.5, 0.5]), {'many': 1.0, 'medium': 0.5, 'few': 0.5})
    >>> print(found)
    class  training  group     test  recall  precision
    cat         500  many         2   1.000      0.500  ████████████████████
    dog          50  medium       2   0.500      1.000  ██████████
    emu           5  few          2   0.500      1.000  ██████████
    <BLANKLINE>
    accuracy          0.667
    balanced accuracy 0.667
    many              1.000  mean recall of 1 class with more than 100 training examples
    medium            0.500  mean recall of 1 class with 20 to 100 training examples
    few               0.500  mean recall of 1 class with fewer than 20 training examples
    """
    counts = as_class_counts(class_counts)
    many, few = check_bounds(many, few)
    names = tuple(str(j) for j in range(len(counts))) if class_names is None else tuple(map(str, class_names))
    if len(names) != len(counts):
        raise ValueError(
            f"`class_names` must have a name for each of the {len(counts)} classes of `class_counts`. Received: "
            f"{len(names)} names"
        )
    if isinstance(y_true, keras.Model):
        if sample_weight is not None:
            raise ValueError("With a model, weights come with the data, as the third part of a batch.")
        batches = _outputs(y_true, y_pred)
    else:
        batches = [(y_true, np.asarray(y_pred), sample_weight, None)]
    sums = np.zeros((3, len(counts)))
    weighted = False
    for labels, outputs, weights, mask in batches:
        sums += _sums(labels, outputs, weights, mask, len(counts))
        weighted |= weights is not None
    support, predicted, right = sums
    if not support.any():
        raise ValueError("There is no example to judge by: the data is empty, or all of its weights are 0.")
    recall, precision = _ratio(right, support), _ratio(right, predicted)
    return RecallByClass(
        recall=recall,
        precision=precision,
        support=support if weighted else support.astype("int64"),
        class_counts=counts,
        class_names=names,
        accuracy=float(right.sum() / support.sum()),
        balanced_accuracy=_mean(recall),
        groups={name: _mean(recall[of]) for name, of in groups_of(counts, many, few).items() if of.any()},
        many=many,
        few=few,
    )


def plot_recalls(results, path=None):
    """Draws the recall of each class against its number of training examples, for one or several models.

    Each class is a mark; the line of a group is its mean recall. Where there are few classes they are named.

    Args:
        results: A dictionary of results of `recall_by_class` by the names to show. They must be of the same classes,
            with the same counts and bounds.
        path: File to write; its ending names the format. Defaults to `None`, for no file.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        TypeError, ValueError: If `results` is not such a dictionary, or has more than 7 entries.
        ImportError: Without matplotlib.

    Example:
    >>> import keras_tricks as kt
    >>> labels, counts = [0, 0, 1, 1, 2, 2], [500, 50, 5]
    >>> plain = kt.metrics.recall_by_class(labels, [0, 0, 1, 0, 0, 0], counts)
    >>> balanced = kt.metrics.recall_by_class(labels, [0, 1, 1, 1, 2, 0], counts)
    >>> figure = kt.metrics.plot_recalls({"plain": plain, "balanced": balanced})
    >>> figure.axes[0].get_ylabel()
    'recall'
    """
    _check_comparable(results)
    figure = recalls_over_counts(results)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _outputs(model, data):
    """Yields labels, outputs, weights and masks of batches."""
    if isinstance(data, keras.utils.PyDataset):
        if data.num_batches is None:
            raise ValueError("This PyDataset has no end: its `num_batches` is None.")
        batches = map(data.__getitem__, range(data.num_batches))
    elif hasattr(data, "cardinality") and int(data.cardinality()) == -1:  # tf.data.INFINITE_CARDINALITY
        raise ValueError("The dataset has no end. Give the one before `repeat()`.")
    elif isinstance(data, (tuple, np.ndarray)) or not hasattr(data, "__iter__"):
        raise TypeError(
            "With a model, the second argument is its data: a tf.data.Dataset, a keras.utils.PyDataset or another "
            "iterable of batches `(x, y)`. For arrays, write recall_by_class(y, model.predict(x), class_counts). "
            f"Received: {type(data).__name__}"
        )
    else:
        batches = data
    for batch in batches:
        x, labels, weights = keras.utils.unpack_x_y_sample_weight(batch)
        if labels is None:
            raise ValueError("The batches of the data have no labels: they must be `(x, y)`, or with weights.")
        outputs = model(keras.tree.map_structure(ops.convert_to_tensor, x), training=False)
        if not hasattr(outputs, "shape"):
            raise TypeError(
                "The model must have one output. For one of several, give labels and predictions instead of the model. "
                f"Received: outputs as {type(outputs).__name__}"
            )
        yield labels, ops.convert_to_numpy(outputs), weights, mask_of(outputs)


def _sums(y_true, y_pred, sample_weight, mask, num_classes):
    """Sums of weights of each class: of its examples, of those predicted as it, and of those that are both."""
    y_true = ops.convert_to_numpy(y_true)
    y_pred = y_pred if y_pred.dtype.kind in "biuf" else y_pred.astype("float32")  # NumPy knows bfloat16 by name only
    if y_pred.dtype.kind != "f" and y_pred.ndim <= y_true.ndim + 1 and not _are_one_hot(y_true, y_pred, num_classes):
        y_pred = y_pred.reshape(y_true.shape) if y_pred.shape == (*y_true.shape, 1) else y_pred
        classes, shape = y_pred.astype("int64"), (*y_pred.shape, num_classes)
    else:
        check_outputs("recall_by_class", y_pred.shape, num_classes)
        classes, shape = y_pred.argmax(-1), y_pred.shape
    labels, weights, _ = examine(y_true, keras.KerasTensor(shape, "float32"), sample_weight, mask)
    labels, weights = ops.convert_to_numpy(labels), ops.convert_to_numpy(weights).astype("float64")
    classes = classes.ravel()
    if y_pred.dtype.kind == "f" and np.isnan(y_pred.reshape(-1, num_classes)[weights != 0]).any():
        raise ValueError("`y_pred` has NaN: the model's weights or its input are not finite, so it predicts no class.")
    wrong = (weights != 0) & ((classes < 0) | (classes >= num_classes))
    if wrong.any():
        raise ValueError(
            f"Predicted classes must be in 0..{num_classes - 1}. Received: {wrong.sum()} others, from "
            f"{classes[wrong].min()} to {classes[wrong].max()}"
        )
    classes = np.where(weights != 0, classes, 0)
    right = weights * (labels == classes)
    return [np.bincount(at, of, num_classes) for at, of in ((labels, weights), (classes, weights), (labels, right))]


def _are_one_hot(y_true, y_pred, num_classes):
    """Whether predictions that are whole numbers are scores of the classes rather than classes."""
    if y_pred.ndim == y_true.ndim + 1:
        return y_pred.shape[-1] == num_classes
    rows = y_true.shape == y_pred.shape and y_true.ndim > 1 and y_true.shape[-1] == num_classes
    return rows and bool((y_true >= 0).all() and (y_true.sum(-1) == 1).all())


def _ratio(part, whole):
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(recalls):
    """The mean over the classes that occur, NaN if there are none."""
    known = recalls[~np.isnan(recalls)]
    return float(known.mean()) if len(known) else float("nan")


def _figure(value):
    return "     -" if np.isnan(value) else f"{value:6.3f}"


def _bar(value):
    return "" if np.isnan(value) else "█" * round(20 * value)


def _check_comparable(results):
    if not isinstance(results, dict) or not all(isinstance(result, RecallByClass) for result in results.values()):
        raise TypeError(f"`results` must be a dictionary of results of `recall_by_class`. Received: {results!r}")
    if not 0 < len(results) <= len(LOOKS):
        raise ValueError(f"`results` must be 1 to {len(LOOKS)} results. Received: {len(results)}")
    first, *others = results.values()
    for other in others:
        same = np.array_equal(first.class_counts, other.class_counts)
        if not same or (first.many, first.few) != (other.many, other.few):
            raise ValueError(
                "The results must be of the same classes: give `recall_by_class` the same `class_counts`, `many` and "
                f"`few` for all. Received: {list(results)}"
            )
