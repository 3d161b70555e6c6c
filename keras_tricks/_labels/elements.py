"""What the transformations of `data` share: TensorFlow where it is the backend, and the parts of an element."""

import keras

# None on another backend, where `require_tensorflow` says so when a transformation is used.
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
else:
    tf = None


def require_tensorflow(name):
    """Raises RuntimeError on a backend that has no tf.data."""
    if tf is None:
        raise RuntimeError(
            f"`{name}` is a tf.data transformation for the TensorFlow backend; this is {keras.backend.backend()}."
        )


def require_dataset(name, dataset):
    """Raises TypeError unless `dataset` is a `tf.data.Dataset`."""
    if not isinstance(dataset, tf.data.Dataset):
        raise TypeError(
            f"`{name}` works on a tf.data.Dataset, as `dataset.apply({name}(...))`. Received: {dataset!r} of type "
            f"{type(dataset).__name__}"
        )


def called_with(function, element):
    """`function` of an element, called as `Dataset.map` does: a tuple's parts are separate arguments."""
    # tf.function, so that AutoGraph converts what users write, even from within code that is not converted.
    function = tf.function(function)
    return function(*element) if type(element) is tuple else function(element)


def picked(element, part, argument="part"):
    """The part of an element that an index, a key, a field's name or a function names."""
    if callable(part):
        return called_with(part, element)
    try:
        if isinstance(part, str) and not hasattr(element, "keys"):
            return getattr(element, part)
        if isinstance(element, (tuple, dict)):
            return element[part]
    except (KeyError, IndexError, AttributeError):
        pass
    structure = tf.nest.map_structure(lambda t: f"{t.dtype.name}{t.shape}", element)
    raise ValueError(
        f"`{argument}` is the index, key or field of a part of an element, or a function from an element to it. "
        f"Received: {argument}={part!r}, for elements {structure}"
    )


def label_of(element, label):
    """The label of an element: by default its second part."""
    return picked(element, 1 if label is None else label, "label")


def flat_values(part):
    """The numbers or strings of a dense, ragged or sparse tensor, as a dense one."""
    if isinstance(part, tf.RaggedTensor):
        return part.flat_values
    return part.values if isinstance(part, tf.SparseTensor) else part
