"""Checks of arguments, with messages that say what was expected and what was received."""

import math
import numbers


def check_number(name, value, at_least=None, above=None, below=None, at_most=None, finite=False, hint=""):
    """Returns `value` if it is a real number within the bounds; raises TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r} ({type(value).__name__})")
    bounds = [
        (at_least, f"at least {at_least}", lambda: value >= at_least),
        (above, f"greater than {above}", lambda: value > above),
        (below, f"less than {below}", lambda: value < below),
        (at_most, f"at most {at_most}", lambda: value <= at_most),
        (finite or None, "finite", lambda: math.isfinite(value)),
    ]
    bounds = [(words, holds) for limit, words, holds in bounds if limit is not None]
    if value != value or not all(holds() for _, holds in bounds):
        wanted = " and ".join(words for words, _ in bounds) or "a number"
        raise ValueError(f"`{name}` must be {wanted}. Received: {name}={value}.{hint}")
    return value


def check_finite_number(name, value, **bounds):
    """The same for a number that must be finite; returns a plain float, which a config can hold."""
    return float(check_number(name, value, finite=True, **bounds))


def check_count(name, value, at_least=1):
    """Returns `value` if it is a whole number of at least `at_least`; raises TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer. Received: {name}={value!r} ({type(value).__name__})")
    if value < at_least:
        raise ValueError(f"`{name}` must be at least {at_least}. Received: {name}={value}")
    return int(value)


def check_flag(name, value):
    """Returns `value` if it is True or False; raises TypeError otherwise."""
    if not isinstance(value, bool):
        raise TypeError(f"`{name}` must be True or False. Received: {name}={value!r} ({type(value).__name__})")
    return value
