"""How much memory an optimizer's state takes."""

import keras
import numpy as np


def state_bytes(optimizer):
    """Bytes of all variables of a built optimizer: slots, averages, accumulators and counters; on one replica.

    Args:
        optimizer: A Keras optimizer that has been built (by `fit`, or by `optimizer.build(model.trainable_variables)`).

    Returns:
        The number of bytes, an int.

    Raises:
        TypeError: If `optimizer` is not a Keras optimizer.
        ValueError: If it is not built.

    Example:
    >>> import keras, keras_tricks as kt
    >>> optimizer = kt.LAMB()
    >>> optimizer.build([keras.Variable(np.ones((10, 10), "float32"))])
    >>> kt.state_bytes(optimizer)
    820
    """
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(f"Expected a Keras optimizer. Received: {optimizer!r}")
    if not optimizer.built:
        raise ValueError(
            "The optimizer has no state yet. Build it first: `optimizer.build(model.trainable_variables)`, or train."
        )
    return sum(int(np.prod(v.shape)) * np.dtype(_numpy_name(v.dtype)).itemsize for v in optimizer.variables)


def _numpy_name(dtype):
    name = keras.backend.standardize_dtype(dtype)
    return "float16" if name == "bfloat16" else name  # NumPy has no bfloat16 of its own; the size is the same
