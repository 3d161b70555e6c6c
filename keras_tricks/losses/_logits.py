"""The logits of outputs that are probabilities, since many networks end in a softmax.

    in a graph that ends in it      the activation's own input, as Keras' losses take it
    anywhere else                   log p, which softmax turns into p again, where each row is at least 0 and sums to 1

What a sigmoid has made cannot be told from logits by looking at it, so outside a graph there is only a warning.
"""

import math
import warnings

import keras
from keras import ops

SAME_VALUES = ("Cast", "Identity")
NO_PROBABILITIES = ("BiasAdd", "MatMul", "Conv2D")  # ends of a network whose values need not be checked
ENOUGH = 16  # this many logits are hardly all between 0 and 1 by chance


def logits_of(outputs, weights, name, kind):
    """The outputs, or, if they are probabilities, the logits behind them, with a warning.

    Args:
        outputs: Tensor of shape `(..., classes)`.
        weights: Of shape `(...)`; rows of weight 0 may be anything.
        name: Of the loss, for the warning.
        kind: `"Softmax"` or `"Sigmoid"`: which of them the loss applies to its logits.
    """
    op = _producer(outputs)
    if op is not None and op.type in ("Softmax", "Sigmoid"):
        _warn(name, f"come from a {op.type.lower()}. Its input is used")
        return _log(outputs, kind) if (op.type, kind) == ("Softmax", "Sigmoid") else op.inputs[0]
    if op is not None and op.type == "Transpose" and _producer(op.inputs[0]).type == "Softmax":
        raise ValueError(
            f"{name} works on logits of shape (batch, ..., classes), but the outputs come from a softmax over another "
            "axis than the last. Leave the softmax out, and have the classes on the last axis."
        )
    if outputs.shape[-1] == 1 or (op is not None and op.type in NO_PROBABILITIES):
        return outputs
    half = keras.backend.standardize_dtype(outputs.dtype) in ("float16", "bfloat16")
    x = ops.cast(outputs, "float32")
    rows = (ops.min(x, -1) >= 0) & (ops.abs(ops.sum(x, -1) - 1) < (1e-2 if half else 1e-4))
    are_probabilities = ops.all(rows | (weights == 0))
    all_between = ops.all((x > 0) & (x < 1))
    try:  # of the answers only: JAX shows them, but not the numbers, while it takes a gradient
        visible, between = (bool(ops.convert_to_numpy(answer)) for answer in (are_probabilities, all_between))
    except (AttributeError, NotImplementedError, TypeError, ValueError):  # while traced; backends differ
        return ops.where(are_probabilities, _log(outputs, kind), ops.cast(outputs, _wide(outputs)))
    if not visible:
        if between and math.prod(x.shape) >= ENOUGH:
            _warn(name, "are all between 0 and 1, as a sigmoid makes them. If one did, this loss is wrong")
        return outputs
    _warn(name, "are probabilities, with a sum of 1. Their logarithm is used")
    return _log(outputs, kind)


def _producer(outputs):
    """The operation of a graph that the values come from, or `None` where there is no graph."""
    op = getattr(outputs, "op", None)
    while op is not None and op.type in SAME_VALUES:
        op = op.inputs[0].op
    return op


def _log(probabilities, kind):
    """Logits that softmax, or sigmoid, turns into the probabilities."""
    p = ops.cast(probabilities, _wide(probabilities))
    logits = ops.log(ops.maximum(p, 1e-37))  # the smallest normal numbers of float32
    return logits if kind == "Softmax" else logits - ops.log1p(-ops.minimum(p, 1 - 1e-7))


def _wide(x):
    return "float64" if keras.backend.standardize_dtype(x.dtype) == "float64" else "float32"


def _warn(name, what):
    warnings.warn(
        f"{name} works on logits, but the outputs {what}. Leave the activation out of the model's last layer.",
        stacklevel=2,
    )
