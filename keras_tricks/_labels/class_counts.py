"""Numbers of examples of the classes, as losses, metrics, models and data take them."""

import numpy as np


def as_class_counts(class_counts):
    """Counts as an int64 array, checked. A `tf.data.Dataset` is counted."""
    if hasattr(class_counts, "element_spec"):
        from keras_tricks import data

        class_counts = data.class_counts(class_counts)
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
