"""Re-sampling of imbalanced classes.

    p_j = n_j^q / sum_i n_i^q        q = 1: as the data are (instance), 1/2: square root, 0: balanced, -1: reversed
    epoch t of T, progressive:       (1 - t/T) · n_j/N + (t/T) · p_j
    deferred to epoch s:             n_j/N before it; then p_j, or progressive with t - s

An epoch keeps its N elements: class j gives m_j of them, the p_j · N rounded so that they add up to N. The k-th
element of class j is used floor(((k + 1) · m_j + o_j) / n_j) - floor((k · m_j + o_j) / n_j) times, with a new o_j drawn
for each epoch. So the data are read once per epoch, every class gives exactly m_j, an element of a rare class is used
m_j / n_j times give or take one, and which elements of a frequent class are left out changes from epoch to epoch.
Drawing with replacement, as the papers' samplers do, has the same expectation and more variance.

Kang et al., 2020, arXiv:1910.09217 (the q, and the progressive form); repeat factors as in Gupta et al., 2019,
arXiv:1908.03195.
"""

import numpy as np

from keras_tricks._arguments import check_count, check_number
from keras_tricks._labels.class_counts import as_class_counts, count_labels
from keras_tricks._labels.elements import require_dataset, require_tensorflow, tf
from keras_tricks._labels.labels import one_label

_BATCH = 128  # the batch size for which the automatic shuffle buffer spreads the repeats


def class_counts(dataset, num_classes=None, label=None):
    """How many examples of each class a dataset has; reads it once.

    Give it the training split that is really used, and not yet echoed or re-sampled. Where reading is slow, give it
    the dataset before images are decoded.

    Args:
        dataset: A finite `tf.data.Dataset`, batched or not. Every integer in its labels is counted, even one that is
            stored as a float.
        num_classes: Number of classes, so that those without examples are counted too. Defaults to the largest label
            plus one.
        label: Where the label of an element is: an index, a dict's key, a named tuple's field, or a function of the
            element, which gets a tuple's parts as separate arguments. Defaults to the second part.

    Returns:
        An int64 array of shape `(num_classes,)`.

    Raises:
        TypeError: If the labels are not whole numbers, or there are several (choose one by `label=`).
        ValueError: If the dataset has no end or no elements, a label is negative or at least `num_classes`, or the
            labels are one-hot (take `label=lambda x, y: tf.argmax(y, -1)`).
        RuntimeError: On a backend other than TensorFlow.

    Example:
    >>> import tensorflow as tf, keras_tricks as kt
    >>> dataset = tf.data.Dataset.from_tensor_slices(([0.1, 0.2, 0.3, 0.4], [2, 0, 2, 2]))
    >>> kt.data.class_counts(dataset, num_classes=4)
    array([1, 0, 3, 0])
    """
    return count_labels(dataset, num_classes, label)


def class_balanced(class_counts, q=0.0, label=None, seed=None, epochs=None, start_epoch=0, shuffle_buffer="auto"):
    """Re-samples the classes of a dataset of examples; for `dataset.apply(...)`.

    An epoch keeps its number of elements, read in one pass; elements of rare classes are repeated, and elements of
    frequent classes take turns being left out. Place it before augmentation (so that repeats differ), `batch` and
    `repeat`, and after a shuffle of the data. The cardinality stays known. Never re-sample validation data.

    Args:
        class_counts: Number of examples of each class in exactly this dataset: an array of shape `(num_classes,)`, as
            `data.class_counts` gives. Classes without examples are left alone.
        q: Exponent: 0 (default) draws all classes equally often, 0.5 is square-root sampling, 1 leaves the data as
            they are, negative ones favour rare classes.
        label: Where the label of an element is, as in `data.class_counts`. Defaults to the second part.
        seed: Int. Fixes, with the epoch's number, which elements are left out, and the order of the shuffle, so that a
            resumed run continues in the same order. Defaults to a number drawn from NumPy, which
            `keras.utils.set_random_seed` fixes.
        epochs: If given, balances progressively: the first epoch draws classes as often as the data have them, and the
            weight of `q` grows by `1 / epochs` each epoch, to 1. Defaults to `None`, which is `q` from the start.
        start_epoch: First epoch that is re-sampled, counted from 0 (deferred re-sampling): before it, each element is
            used once. Defaults to 0.
        shuffle_buffer: Elements to shuffle the repeats with. `"auto"` (default) takes 128 times the largest number of
            repeats, at most an epoch, so that a batch of 128 has about one repeat of any element; `None` does not
            shuffle. The buffer is all the memory it takes, so place it before images are decoded.

    Returns:
        A function from `tf.data.Dataset` to `tf.data.Dataset`, with `draws(epoch)`, the elements of each class in an
        epoch, and `epoch`, the number of epochs read so far; set it to resume a run. A pass counts as an epoch once
        half of it has been read, so a look at the first batch does not count.

    Raises:
        TypeError: If an argument is of the wrong kind, or the labels are not integers.
        ValueError: If an argument is out of range, or the dataset's size, known or found in the pass, is not the sum of
            the counts.
        RuntimeError: On a backend other than TensorFlow.
        tf.errors.InvalidArgumentError: In the pass, if a class does not have as many examples as its count says.

    Example:
    >>> import tensorflow as tf, keras_tricks as kt
    >>> dataset = tf.data.Dataset.from_tensor_slices(([*range(8)], [0, 0, 0, 0, 0, 0, 1, 1]))
    >>> balanced = dataset.apply(kt.data.class_balanced([6, 2]))
    >>> sorted(int(label) for _, label in balanced)
    [0, 0, 0, 0, 1, 1, 1, 1]

    Reference:
        Bingyi Kang, Saining Xie, Marcus Rohrbach, Zhicheng Yan, Albert Gordo, Jiashi Feng, Yannis Kalantidis,
        "Decoupling Representation and Classifier for Long-Tailed Recognition", 2020, arXiv:1910.09217.
    """
    require_tensorflow("class_balanced")
    counts = as_class_counts(class_counts)
    q = check_number("q", q)
    start_epoch = check_count("start_epoch", start_epoch, at_least=0)
    epochs = None if epochs is None else check_count("epochs", epochs)
    seed = None if seed is None else check_count("seed", seed, at_least=0)
    if shuffle_buffer is not None and not (isinstance(shuffle_buffer, str) and shuffle_buffer == "auto"):
        shuffle_buffer = check_count("shuffle_buffer", shuffle_buffer)
    return _Balancing(counts, q, label, seed, epochs, start_epoch, shuffle_buffer)


class _Balancing:
    """See `class_balanced`."""

    def __init__(self, counts, q, label, seed, epochs, start_epoch, shuffle_buffer):
        self._counts, self._q, self._label, self._epochs, self._start_epoch = counts, q, label, epochs, start_epoch
        self._seed = int(np.random.randint(2**31)) if seed is None else seed
        self.epoch = 0
        if shuffle_buffer == "auto":
            used = counts > 0
            repeats = max(np.max(-(-self.draws(e)[used] // counts[used])) for e in (0, start_epoch + (epochs or 0)))
            shuffle_buffer = min(int(counts.sum()), _BATCH * int(repeats)) if repeats > 1 else None
        self._shuffle_buffer = shuffle_buffer

    def draws(self, epoch=None):
        """How many elements each class gives in an epoch, by default the next: int64, summing to the dataset's size."""
        epoch = self.epoch if epoch is None else epoch
        counts, total = self._counts, self._counts.sum()
        # Relative to the largest count, so that no power overflows.
        powers = np.where(counts > 0, (np.maximum(counts, 1) / counts.max()) ** self._q, 0.0)
        share = powers / powers.sum()
        passed = epoch - self._start_epoch
        weight = float(passed >= 0) if self._epochs is None else min(max(passed, 0) / self._epochs, 1.0)
        share = (1 - weight) * counts / total + weight * share
        exact = share * total
        draws = np.floor(exact + 1e-9).astype(np.int64)
        largest_rests = np.argsort(draws - exact, kind="stable")[: total - draws.sum()]
        draws[largest_rests] += 1
        return draws

    def __call__(self, dataset):
        require_dataset("class_balanced", dataset)
        total = int(self._counts.sum())
        cardinality = int(dataset.cardinality())
        if cardinality == tf.data.INFINITE_CARDINALITY:
            raise ValueError("`class_balanced` counts a pass over the data: place it before `repeat()`.")
        if cardinality not in (total, tf.data.UNKNOWN_CARDINALITY):
            raise ValueError(
                f"`class_counts` add up to {total:,}, but the dataset has {cardinality:,} elements. Count the split "
                "that is used, unbatched: `data.class_counts(dataset)`."
            )

        @tf.autograph.experimental.do_not_convert
        def numbered(seen, element):
            label = one_label("class_balanced", element, self._label)
            known = tf.debugging.Assert(
                (label >= 0) & (label < len(self._counts)),
                [f"class_balanced: a label outside of the {len(self._counts)} classes of `class_counts`:", label],
            )
            with tf.control_dependencies([known]):  # both, or TensorFlow's own error would sometimes come first
                place = tf.gather(seen, label)
                seen = tf.tensor_scatter_nd_add(seen, [[label]], tf.constant([1], tf.int64))
            return seen, (label, place, element)

        elements = dataset.scan(tf.zeros(len(self._counts), tf.int64), numbered)

        @tf.autograph.experimental.do_not_convert
        def one_epoch(_):
            draws, offsets, seed = tf.numpy_function(self._plan, [], (tf.int64, tf.int64, tf.int64))

            @tf.autograph.experimental.do_not_convert
            def repeated(label, place, element):
                count, drawn, offset = (tf.gather(x, label) for x in (self._counts, draws, offsets))
                fewer = tf.debugging.Assert(
                    place < count,
                    ["class_balanced: more examples than `class_counts` says of class", label, ":", count],
                )
                with tf.control_dependencies([fewer]):
                    before, after = ((k * drawn + offset) // count for k in (place, place + 1))
                return tf.data.Dataset.from_tensors(element).repeat(after - before)

            drawn = elements.flat_map(repeated)
            if self._shuffle_buffer is None:
                return drawn
            # The order depends on the epoch, not on the number of passes in this process or on TensorFlow's global
            # seed.
            tf.compat.v1.get_default_graph().seed = 1
            seed.set_shape(())
            return drawn.shuffle(self._shuffle_buffer, seed=seed, reshuffle_each_iteration=False)

        balanced = tf.data.Dataset.from_tensors(0).flat_map(one_epoch)
        balanced = balanced.apply(tf.data.experimental.assert_cardinality(total))

        @tf.autograph.experimental.do_not_convert
        def watched(position, element):
            halfway = tf.equal(position, total // 2)
            told = tf.cond(
                halfway, lambda: tf.numpy_function(self._half_read, [], tf.int64), lambda: tf.constant(0, tf.int64)
            )
            with tf.control_dependencies([told]):
                return tf.nest.map_structure(tf.identity, element, expand_composites=True)

        return balanced.enumerate().map(watched)

    def _plan(self):
        """Draws, offsets and the shuffle's seed of an epoch: always the same, so that a peek changes nothing."""
        random = np.random.default_rng([self._seed, self.epoch])
        offsets = random.integers(0, np.maximum(self._counts, 1))
        return self.draws(), offsets, random.integers(2**31 - 1)

    def _half_read(self):
        self.epoch += 1
        return np.int64(self.epoch)
