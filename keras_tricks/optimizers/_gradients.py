"""What a step asks of its gradients before it is taken."""

import contextlib
import math

import keras


def once_there_is(grads):
    """The context to take a step in: it runs only after a gradient has been computed.

    With a dataset of unknown size Keras begins one step more than there are batches. What needs no gradient (the count,
    the decay) would still be done in it, before the missing batch ends it. The last layer's gradient is ready first.
    """
    if keras.backend.backend() != "tensorflow" or not grads:
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.control_dependencies(grads[-1:])


def of_some_size(grads, variables):
    """Leaves out variables that have no elements: they have no mean, and there is nothing to train."""
    pairs = [(g, v) for g, v in zip(grads, variables, strict=True) if math.prod(v.shape)]
    return [g for g, _ in pairs], [v for _, v in pairs]


def of_the_shape(gradient, variable):
    """The gradient with the static shape of its variable, of which a trace may know only a part."""
    if not keras.backend.is_float_dtype(variable.dtype):
        raise TypeError(
            f"Only variables of a floating dtype can be trained. {getattr(variable, 'path', variable.name)} has a "
            f"gradient, and is of dtype {keras.backend.standardize_dtype(variable.dtype)}."
        )
    shape = tuple(variable.shape)
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        if gradient.shape.is_fully_defined() and tuple(gradient.shape) == shape:
            return gradient
        if gradient.shape.is_compatible_with(shape):
            return tf.ensure_shape(gradient, shape)
    elif tuple(gradient.shape) == shape:
        return gradient
    raise ValueError(
        f"A gradient must have the shape of its variable. {getattr(variable, 'path', variable.name)} has shape "
        f"{shape}, its gradient {tuple(gradient.shape)}."
    )
