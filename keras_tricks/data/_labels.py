"""Labels, as the transformations for imbalanced data take them."""

from keras_tricks.data._element import flat_values, label_of, require_dataset, tf


def integer_label(element, label):
    """The label of an element as an int64 tensor of its shape."""
    found = flat_values(label_of(element, label))
    if not found.dtype.is_integer:
        raise TypeError(
            "Labels must be integers; for one-hot labels take `label=lambda x, y: tf.argmax(y, -1)`. Received: labels "
            f"of dtype {found.dtype.name} and shape {found.shape}"
        )
    return tf.cast(found, tf.int64)


def label_batches(dataset, label, name):
    """Yields all labels of a dataset in its order, in flat int64 arrays."""
    require_dataset(name, dataset)
    if int(dataset.cardinality()) == tf.data.INFINITE_CARDINALITY:
        raise ValueError(f"`{name}` reads all labels, but this dataset has no end. Give it the one before `repeat()`.")

    @tf.autograph.experimental.do_not_convert
    def flat_labels(_, element):
        return tf.reshape(integer_label(element, label), [-1])

    # Ragged batches of labels: one call to Python for many elements, whatever the size of each.
    labels = dataset.enumerate().map(flat_labels, num_parallel_calls=tf.data.AUTOTUNE).ragged_batch(1024)
    for batch in labels.prefetch(1):
        yield flat_values(batch).numpy().ravel()
