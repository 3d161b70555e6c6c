"""Arithmetic of Adam-like rules: the dtype to compute in, and the corrections of averages that begin at 0."""

import math
import numbers

import keras
from keras import ops

LOW_PRECISION = ("float16", "bfloat16")


def accumulation_dtype(dtype):
    """The dtype to compute in for a variable of `dtype`: float32, or float64 for float64."""
    dtype = keras.backend.standardize_dtype(dtype)
    return "float32" if dtype in LOW_PRECISION else dtype


def one_minus_power(beta, step):
    """1 - beta^step, the correction of an average that began at 0, in the widest float of the backend.

    Written without the cancellation that costs float32 four digits at beta = 0.999 and small steps.
    """
    dtype = "float64" if keras.backend.backend() == "tensorflow" else "float32"
    if isinstance(beta, numbers.Real):
        log_beta = math.log(beta) if beta else -math.inf
    else:
        log_beta = ops.log(ops.cast(beta, dtype))
    return -ops.expm1(ops.cast(step, dtype) * log_beta)


def moment_constants(optimizer, dtype, bias_correction=True):
    """What Adam-like rules share: the weight of a new gradient, and what makes their direction from both moments.

    m̂ / (√v̂ + ε) = `factor` · m / (√v + `epsilon`) spares two passes over memory for each variable.
    """
    step = optimizer.iterations + 1
    first = second = 1.0
    if bias_correction:
        first, second = one_minus_power(optimizer.beta_1, step), ops.sqrt(one_minus_power(optimizer.beta_2, step))
    return {
        "new": ops.cast(1 - optimizer.beta_1, dtype),
        "factor": ops.cast(second / first, dtype),
        "epsilon": ops.cast(optimizer.epsilon * second, dtype),
    }
