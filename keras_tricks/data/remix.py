"""Remix: mixup whose labels favour the rarer class.

    image  = lam · x_i + (1 - lam) · x_j                    lam ~ Beta(alpha, alpha), one for each example
    label  = w · y_i + (1 - w) · y_j
    w      = 0 if n_i / n_j >= kappa and lam < tau;  1 if n_i / n_j <= 1 / kappa and 1 - lam < tau;  else lam

Chou et al., 2020, arXiv:2007.03943. Plain mixup and CutMix are `keras.layers.MixUp` and `keras.layers.CutMix`.
"""

import numpy as np

from keras_tricks._arguments import check_count, check_number
from keras_tricks._labels.class_counts import as_class_counts
from keras_tricks._labels.elements import require_dataset, require_tensorflow, tf


def remix(class_counts, alpha=1.0, kappa=3.0, tau=0.5, seed=None):
    """Mixes each example of a batch with another, in favour of rare classes; for `dataset.apply(...)`.

    A mixture of a frequent and a rare class is labelled as the rare one alone if the rare one has a share above `1 -
    tau` in the image. Place it after `batch` and augmentation, on training data only. The cardinality and all shapes
    stay; the labels become one-hot, so use `keras.losses.CategoricalCrossentropy`.

    Args:
        class_counts: Number of training examples of each class, an array of shape `(num_classes,)`.
        alpha: Both parameters of the Beta distribution that the mixing weights are drawn from, above 0. Defaults to 1,
            which makes it uniform.
        kappa: How many times more frequent one class has to be than the other for the label to favour the rare one; at
            least 1. Defaults to 3. Infinity is plain mixup.
        tau: The share of the frequent class up to which the label is the rare class alone, in 0..1. Defaults to 0.5.
        seed: Int that fixes all draws; they still change from epoch to epoch. Defaults to `None`.

    Returns:
        A function from `tf.data.Dataset` to `tf.data.Dataset`, for batches `(x, y)`: `x` a tensor or a structure of
        them with the batch as first axis, of a floating-point dtype; `y` integers of shape `(batch,)` or `(batch, 1)`,
        or one-hot of shape `(batch, num_classes)`.

    Raises:
        ValueError: If an argument is out of range, or the elements are not such batches.
        TypeError: If an argument is not a number, or `x` is of an integer dtype, ragged or sparse.
        RuntimeError: On a backend other than TensorFlow.

    Example:
    >>> import tensorflow as tf, keras_tricks as kt
    >>> batches = tf.data.Dataset.from_tensor_slices((tf.ones((4, 8, 8, 1)), [0, 0, 0, 1])).batch(4)
    >>> mixed = batches.apply(kt.data.remix([300, 10], seed=0))
    >>> [labels.shape for _, labels in mixed]
    [TensorShape([4, 2])]

    Reference:
        Hsin-Ping Chou, Shih-Chieh Chang, Jia-Yu Pan, Wei Wei, Da-Cheng Juan, "Remix: Rebalanced Mixup", 2020,
        arXiv:2007.03943.
    """
    require_tensorflow("remix")
    counts = as_class_counts(class_counts).astype(np.float32)
    alpha = check_number("alpha", alpha, above=0)
    kappa = check_number("kappa", kappa, at_least=1, finite=False)
    tau = check_number("tau", tau, at_least=0, at_most=1)
    seed = None if seed is None else check_count("seed", seed, at_least=0)

    def transform(dataset):
        require_dataset("remix", dataset)
        if type(dataset.element_spec) is not tuple or len(dataset.element_spec) != 2:
            raise ValueError(
                "`remix` works on batches `(x, y)`; with sample weights it is not clear what a mixture weighs. "
                f"Received elements {dataset.element_spec}"
            )

        @tf.autograph.experimental.do_not_convert
        def mixed(batch, seeds):
            x, y = batch
            one_hot = _one_hot(y, len(counts))
            size = tf.shape(one_hot)[0]
            partner = tf.random.experimental.stateless_shuffle(tf.range(size), seed=seeds)
            a, b = tf.unstack(tf.random.stateless_gamma([2, size], seed=seeds + 1, alpha=alpha), num=2)
            # Both are 0 where a small alpha underflows; then one of the two examples is taken as it is.
            lam = tf.math.divide_no_nan(a, a + b)
            frequency = tf.linalg.matvec(one_hot, counts)
            ratio = tf.math.divide_no_nan(frequency, tf.gather(frequency, partner))
            weight = tf.where((ratio >= kappa) & (lam < tau), 0.0, lam)
            weight = tf.where((ratio <= 1 / kappa) & (1 - lam < tau), 1.0, weight)
            x = tf.nest.map_structure(lambda t: _blend(t, partner, lam), x)
            return x, _blend(one_hot, partner, weight)

        seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2, drop_remainder=True)
        return tf.data.Dataset.zip((dataset, seeds)).map(mixed, num_parallel_calls=tf.data.AUTOTUNE)

    return transform


def _one_hot(y, num_classes):
    if not isinstance(y, tf.Tensor):
        raise ValueError(
            "`remix` needs one dense tensor of labels; of several, choose one: `dataset.map(lambda x, y: (x, "
            f'y["name"]))`. Received: labels {y}'
        )
    if y.dtype.is_integer or y.dtype.is_floating or y.dtype.is_bool:
        if y.shape.rank == 1 or (y.shape.rank == 2 and y.shape[1] == 1):
            given, y = y, tf.cast(tf.reshape(y, [-1]), tf.int64)
            whole = (
                y == tf.cast(given, tf.int64)
                if given.dtype.is_bool
                else tf.cast(y, given.dtype) == tf.reshape(given, [-1])
            )
            known = tf.debugging.Assert(
                tf.reduce_all((y >= 0) & (y < num_classes) & whole),
                [f"remix: labels outside of the {num_classes} classes of `class_counts`:", given],
            )
            with tf.control_dependencies([known]):
                return tf.one_hot(y, num_classes)
        if y.shape.rank == 2 and y.shape[1] == num_classes:
            return tf.cast(y, tf.float32)
    raise ValueError(
        f"`remix` needs batches of integer labels, (batch,), or one-hot ones, (batch, {num_classes}); place it after "
        f"`batch`. Received: labels {y.dtype.name} of shape {y.shape}"
    )


def _blend(x, partner, weight):
    """Gives `weight · x + (1 - weight) · x[partner]`, one weight for each example."""
    if not isinstance(x, tf.Tensor):
        raise TypeError(f"`remix` mixes dense tensors; ragged and sparse ones have no shape in common. Received: {x}")
    if not x.dtype.is_floating:
        raise TypeError(f"`remix` mixes floating-point numbers; convert {x.dtype.name} by `dataset.map` before it.")
    w = tf.cast(tf.reshape(weight, [-1] + [1] * (x.shape.rank - 1)), x.dtype)
    return tf.ensure_shape(w * x + (1 - w) * tf.gather(x, partner), x.shape)
