"""Checks of schedules' arguments; what they return is a plain Python number, which a config can hold."""

import math
import numbers


def check_number(name, value, above=None, at_least=None, at_most=None, hint=""):
    """Returns `value` as a float if it is finite and within the bounds; raises TypeError or ValueError otherwise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r} ({type(value).__name__})")
    wanted = ["a finite number"]
    wanted += [f"greater than {above:g}"] if above is not None else []
    wanted += [f"at least {at_least:g}"] if at_least is not None else []
    wanted += [f"at most {at_most:g}"] if at_most is not None else []
    if not (
        math.isfinite(value)
        and (above is None or value > above)
        and (at_least is None or value >= at_least)
        and (at_most is None or value <= at_most)
    ):
        raise ValueError(f"`{name}` must be {' and '.join(wanted)}. Received: {name}={value}.{hint}")
    return float(value)


def check_count(name, value, at_least=1):
    """Returns `value` as an int if it is a whole number of at least `at_least`; raises otherwise."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"`{name}` must be an integer. Received: {name}={value!r} ({type(value).__name__})")
    if value < at_least:
        raise ValueError(f"`{name}` must be at least {at_least}. Received: {name}={value}")
    return int(value)
