"""Long-tailed versions of balanced data sets, for experiments: CIFAR-10-LT and its like.

    n_j = int(n_max · mu^(j / (C - 1))), mu = 1 / imbalance       "exp"
    n_j = n_max for the first half of the classes, int(n_max · mu) for the rest       "step"

Cao et al., 2019, arXiv:1906.07413, whose code gives exactly these counts (5000, 2997, ..., 50 for CIFAR-10 and an
imbalance of 100).
"""

import numpy as np

from keras_tricks._arguments import check_choice, check_count, check_number
from keras_tricks._labels.elements import require_dataset, require_tensorflow, tf
from keras_tricks._labels.labels import label_batches, one_label


def make_long_tailed(num_classes, imbalance=100, profile="exp", label=None, seed=0):
    """Keeps fewer and fewer examples from class to class; for `dataset.apply(...)` on a training set.

    Reads the labels once when it is applied, and then keeps the same examples, drawn without replacement, in every
    pass. So it needs a dataset with a fixed order: place it before any shuffle. If the order changes, the pass stops
    with an error, since each epoch would train on other examples. Leave the test set as it is.

    Args:
        num_classes: Number of classes, at least 2. Class 0 becomes the most frequent one.
        imbalance: Size of the largest class over that of the smallest, at least 1. Defaults to 100.
        profile: `"exp"` (default) for sizes that fall by the same factor from class to class, `"step"` for a first half
            of full classes and a second half of small ones.
        label: Where the label of an element is, as in `data.class_counts`. Defaults to the second part.
        seed: Int that fixes which examples stay. Defaults to 0.

    Returns:
        A function from `tf.data.Dataset` to `tf.data.Dataset`. The most frequent class keeps as many examples as the
        profile allows, given the sizes of the others; in a balanced set, all of them.

    Raises:
        TypeError: If an argument is of the wrong kind, or the labels are not integers.
        ValueError: If an argument is out of range, the dataset is batched or has no end, a label is not in
            `0..num_classes - 1`, or a class would be left without examples.
        RuntimeError: On a backend other than TensorFlow.
        tf.errors.InvalidArgumentError: In a pass, if the order of the labels has changed.

    Example:
    >>> import tensorflow as tf, keras_tricks as kt
    >>> dataset = tf.data.Dataset.from_tensor_slices(([*range(300)], [0, 1, 2] * 100))
    >>> kt.data.class_counts(dataset.apply(kt.data.make_long_tailed(3, imbalance=25)))
    array([100,  20,   4])

    Reference:
        Kaidi Cao, Colin Wei, Adrien Gaidon, Nikos Arechiga, Tengyu Ma, "Learning Imbalanced Datasets with
        Label-Distribution-Aware Margin Loss", 2019, arXiv:1906.07413.
    """
    require_tensorflow("make_long_tailed")
    num_classes = check_count("num_classes", num_classes, at_least=2)
    imbalance = check_number("imbalance", imbalance, at_least=1)
    check_choice("profile", profile, ("exp", "step"))
    seed = check_count("seed", seed, at_least=0)

    def transform(dataset):
        require_dataset("make_long_tailed", dataset)
        labels = np.concatenate([np.zeros(0, np.int64), *label_batches(dataset, label, "make_long_tailed")])
        kept = np.zeros(len(labels), bool)
        random = np.random.default_rng(seed)
        sizes = _sizes(_counted(labels, num_classes), imbalance, profile)
        for j, size in enumerate(sizes):
            kept[random.permutation(np.flatnonzero(labels == j))[:size]] = True

        @tf.autograph.experimental.do_not_convert
        def is_kept(position, element):
            found = one_label("make_long_tailed", element, label)
            as_before = (position < len(labels)) & tf.equal(
                found, tf.gather(labels, tf.minimum(position, len(labels) - 1))
            )
            same = tf.debugging.Assert(
                as_before,
                [
                    "make_long_tailed: the dataset's order has changed, so it would keep other examples in each pass. "
                    "Place it before `shuffle`, on a reader with a fixed order. First differs: element",
                    position,
                ],
            )
            with tf.control_dependencies([same]):
                return tf.gather(kept, position)

        # A filter, so that the labels are compared in order.
        chosen = dataset.enumerate().filter(is_kept)
        chosen = chosen.map(tf.autograph.experimental.do_not_convert(lambda _, element: element))
        return chosen.apply(tf.data.experimental.assert_cardinality(int(kept.sum())))

    return transform


def _counted(labels, num_classes):
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"Labels must be in 0..{num_classes - 1}. Received labels from {labels.min()} to {labels.max()}"
        )
    return np.bincount(labels, minlength=num_classes)


def _sizes(counts, imbalance, profile):
    """Examples to keep of each class."""
    num_classes = len(counts)
    mu = 1.0 / imbalance
    if profile == "exp":
        shares = [mu ** (j / (num_classes - 1.0)) for j in range(num_classes)]
    else:
        shares = [1.0 if j < num_classes // 2 else mu for j in range(num_classes)]
    # The largest size for which every class has enough. int(), not rounding, as in the published counts.
    largest = int(counts[0])
    while any(int(largest * share) > count for share, count in zip(shares, counts, strict=True)):
        largest -= 1
    sizes = [int(largest * share) for share in shares]
    if min(sizes) < 1:
        raise ValueError(
            f"With an imbalance of {imbalance}, {sizes.count(0)} of {num_classes} classes would be left without "
            f"examples: the sizes would be {sizes}, from {counts.tolist()}. Use a smaller `imbalance`."
        )
    return sizes
