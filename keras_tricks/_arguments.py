"""Checks of arguments, with messages that say what was expected and what was received."""

import math
import numbers
import operator

import numpy as np


def check_number(name, value, at_least=None, above=None, below=None, at_most=None, finite=True, hint=""):
    """Returns `value` as a plain float, which a config can hold, if it is a real number within the bounds.

    It must be finite, unless `finite=False`, and within its bounds in float32 too, in which models compute: there
    1e-320 is not above 0. Raises TypeError or ValueError otherwise.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r} ({type(value).__name__})")
    bounds = [
        (at_least, f"at least {at_least}", operator.ge),
        (above, f"greater than {above}", operator.gt),
        (below, f"less than {below}", operator.lt),
        (at_most, f"at most {at_most}", operator.le),
        (0 if finite else None, "finite", lambda x, _: math.isfinite(x)),
    ]
    bounds = [(limit, words, holds) for limit, words, holds in bounds if limit is not None]
    for dtype in (np.float64, np.float32):
        with np.errstate(over="ignore", under="ignore"):
            rounded = dtype(value)
            valid = rounded == rounded and all(holds(rounded, dtype(limit)) for limit, _, holds in bounds)
        if not valid:
            wanted = " and ".join(words for _, words, _ in bounds) or "a number"
            received = f"{name}={value}" + (f", which is {rounded} in float32" if dtype is np.float32 else "")
            raise ValueError(f"`{name}` must be {wanted}. Received: {received}.{hint}")
    return float(value)


def check_count(name, value, at_least=1, hint=""):
    """Returns `value` if it is a whole number of at least `at_least`; raises TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer. Received: {name}={value!r} ({type(value).__name__}).{hint}")
    if value < at_least:
        raise ValueError(f"`{name}` must be at least {at_least}. Received: {name}={value}.{hint}")
    return int(value)


def check_choice(name, value, choices):
    """Returns `value` if it is one of `choices`; raises a ValueError that lists them otherwise."""
    choices = list(choices)
    if value not in choices:
        *others, last = map(repr, choices)
        raise ValueError(f"`{name}` must be {', '.join(others)} or {last}. Received: {name}={value!r}")
    return value


def check_flag(name, value):
    """Returns `value` if it is True or False; raises TypeError otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r} ({type(value).__name__})")
    return value
