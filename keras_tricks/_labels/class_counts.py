"""Class counts, the number of examples of each class, as losses, metrics, models and data take them."""

import numpy as np

from keras_tricks._arguments import check_count
from keras_tricks._labels.elements import require_tensorflow
from keras_tricks._labels.labels import label_batches


def as_class_counts(class_counts):
    """Counts as an int64 array, checked. A `tf.data.Dataset` is counted."""
    if hasattr(class_counts, "element_spec"):
        class_counts = count_labels(class_counts)
    counts = np.asarray(class_counts)
    # Sums of one-hot rows are whole numbers in floating point. Above 2^53 those are not exact.
    numbers = counts.dtype.kind in "iu" or (counts.dtype.kind == "f" and (np.abs(counts) <= 2**53).all())
    if counts.ndim != 1 or not numbers or (counts % 1 != 0).any() or (counts < 0).any() or not counts.any():
        raise ValueError(
            "`class_counts` must be whole numbers, one a class, not negative and not all 0, as `data.class_counts` "
            f"gives. Received: {class_counts!r}"
        )
    return counts.astype(np.int64)


def log_priors(counts):
    """log(n_j / N) in float64. An empty class counts as one example, so that it stays finite."""
    return np.log(np.maximum(counts, 1)) - np.log(counts.sum())


def count_labels(dataset, num_classes=None, label=None):
    """What `data.class_counts` returns."""
    require_tensorflow("class_counts")
    num_classes = None if num_classes is None else check_count("num_classes", num_classes)
    counts = np.zeros(0, np.int64)
    for labels in label_batches(dataset, label, "class_counts"):
        if labels.size and (labels.min() < 0 or (num_classes is not None and labels.max() >= num_classes)):
            wrong = labels.min() if labels.min() < 0 else labels.max()
            hint = " If it marks padding, leave it out: `label=lambda x, y: y[y >= 0]`." if wrong < 0 else ""
            allowed = f"0..{'' if num_classes is None else num_classes - 1}"
            raise ValueError(f"Labels must be in {allowed}. Received a label {wrong}.{hint}")
        more = np.bincount(labels, minlength=max(len(counts), num_classes or 0))
        more[: len(counts)] += counts
        counts = more
    if not counts.sum():
        raise ValueError("The dataset has no elements to count.")
    return counts
