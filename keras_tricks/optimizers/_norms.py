"""Sums over whole tensors that run at the speed of memory.

XLA on CPUs adds the numbers of a sum one after the other, each waiting for the last: 18 ms for 25 million of them,
where reading them takes 5 ms. Cut into pieces that are added to each other first, the same sum is vectorised.
"""

import math

import keras
from keras import ops

PIECES = 4

# Below so many elements the pieces only cost time to compile.
WORTH_CUTTING = 2**16


def sum_of_squares(x, compiled=False):
    """The sum of all squares of `x`, a scalar; `compiled` where XLA compiles it."""
    if keras.backend.backend() != "tensorflow":
        return ops.sum(ops.square(x))
    if compiled:
        return total(ops.square(x))
    import tensorflow as tf

    return 2 * tf.nn.l2_loss(x)  # a fused kernel: no squares are written to memory


def sums_of_squares(x, axes, compiled=False):
    """The sums of squares of `x` over `axes`, which stay as axes of length 1."""
    if len(axes) == len(x.shape):
        return ops.reshape(sum_of_squares(x, compiled), (1,) * len(x.shape))
    return ops.sum(ops.square(x), axis=axes, keepdims=True)


def total(x):
    """The sum of all elements of `x`, written so that XLA vectorises it."""
    count = math.prod(x.shape)
    if count < WORTH_CUTTING or keras.backend.backend() != "tensorflow":
        return ops.sum(x)
    x = ops.reshape(x, (-1,))
    length = count // PIECES
    pieces = [x[i * length : (i + 1) * length] for i in range(PIECES)]
    result = ops.sum(sum(pieces[1:], start=pieces[0]))
    if PIECES * length < count:
        result = result + ops.sum(x[PIECES * length :])
    return result
