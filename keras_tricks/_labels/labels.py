"""Labels, as the transformations for imbalanced data take them."""

import logging
import time

import numpy as np

from keras_tricks._labels.elements import flat_values, label_of, require_dataset, tf

_PATIENCE = 60  # seconds of counting after which a dataset of unknown size is suspected to have no end
_logger = logging.getLogger("keras_tricks")


def integer_label(element, label):
    """The labels of an element as an int64 tensor of their shape; whole numbers in floating point are converted."""
    found = label_of(element, label)
    if not isinstance(found, (tf.Tensor, tf.RaggedTensor)):
        raise TypeError(f"{_not_a_label(found)}. Received: labels of type {type(found).__name__}")
    found = flat_values(found)
    if found.dtype.is_integer or found.dtype.is_bool:
        return tf.cast(found, tf.int64)
    if not found.dtype.is_floating:
        raise TypeError(
            "Labels must be integers. Map strings to them first: lookup = keras.layers.StringLookup(vocabulary=..., "
            "num_oov_indices=0), dataset.map(lambda x, y: (x, lookup(y))). Received: labels of dtype "
            f"{found.dtype.name} and shape {found.shape}"
        )
    if found.shape.rank and found.shape[-1] not in (1, None):
        raise TypeError(
            "Labels must be integers; for one-hot labels take `label=lambda x, y: tf.argmax(y, -1)`. Received: labels "
            f"of dtype {found.dtype.name} and shape {found.shape}"
        )
    labels = tf.cast(found, tf.int64)
    whole = tf.debugging.Assert(
        tf.reduce_all(tf.equal(tf.cast(labels, found.dtype), found)), ["Labels must be whole numbers. Received:", found]
    )
    with tf.control_dependencies([whole]):
        return tf.identity(labels)


def one_label(name, element, label):
    """The label of an element as an int64 scalar; it may be in a vector of length 1, as in Keras' own data sets."""
    found = integer_label(element, label)
    if found.shape.num_elements() != 1:
        raise ValueError(
            f"`{name}` needs one label an element; place it before `batch`, and for one-hot labels take "
            f"`label=lambda x, y: tf.argmax(y, -1)`. Received: labels of shape {found.shape}"
        )
    return tf.reshape(found, [])


def label_batches(dataset, label, name):
    """Yields all labels of a dataset in its order, in flat int64 arrays."""
    require_dataset(name, dataset)
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"`{name}` reads all labels, but this dataset has no end. Give it the one before `repeat()`.")

    @tf.autograph.experimental.do_not_convert
    def flat_labels(_, element):
        labels = integer_label(element, label)
        one_hot = tf.constant(False)
        if labels.shape.rank and labels.shape[-1] not in (1, None):
            one_hot = tf.reduce_all((labels >= 0) & (tf.reduce_sum(tf.abs(labels), -1, keepdims=True) == 1))
        return tf.reshape(labels, [-1]), one_hot

    # Ragged batches of labels: one call to Python for many elements, whatever the size of each.
    labels = dataset.enumerate().map(flat_labels, num_parallel_calls=tf.data.AUTOTUNE).ragged_batch(1024)
    one_hot, seen, warned, start = [], 0, False, time.monotonic()
    for batch, rows in labels.prefetch(1):
        found = flat_values(batch).numpy().ravel()
        one_hot.append(bool(tf.reduce_all(rows)))
        seen += len(rows)
        if not warned and time.monotonic() - start > _PATIENCE and int(dataset.cardinality()) < 0:
            warned = True
            _logger.warning(
                "%s: %s elements are read, and no end is known. If this dataset repeats for ever, as a generator may, "
                "interrupt this and give `dataset.take(n)`.",
                name,
                f"{seen:,}",
            )
        yield found
    if seen > 1 and np.all(one_hot):
        raise ValueError(
            f"`{name}`: each row of the labels has a single 1, so they seem to be one-hot: take `label=lambda x, y: "
            "tf.argmax(y, -1)`. If they are sequences of labels, take `label=lambda x, y: y[..., None]`."
        )


def _not_a_label(found):
    if isinstance(found, dict):
        return f'There are several labels: choose one, as `label=lambda x, y: y["{next(iter(found), "name")}"]`'
    if isinstance(found, (tuple, list)):
        return "There are several labels: choose one, as `label=lambda x, y: y[0]`"
    return "Labels must be dense or ragged, since a sparse tensor leaves out class 0: take `label=lambda x, y: " + (
        "tf.sparse.to_dense(y)`"
    )
