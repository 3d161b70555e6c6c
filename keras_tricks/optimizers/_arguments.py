"""Checks of hyper-parameters, with messages that say what was expected and what was received."""

import numbers


def check_number(name, value, at_least=None, above=None, below=None, at_most=None):
    """Returns `value` if it is a real number within the bounds; raises TypeError or ValueError otherwise."""
    bounds = (
        [
            (f"at least {at_least}", at_least is None or value >= at_least),
            (f"greater than {above}", above is None or value > above),
            (f"less than {below}", below is None or value < below),
            (f"at most {at_most}", at_most is None or value <= at_most),
        ]
        if _is_number(value)
        else []
    )
    if not bounds:
        raise TypeError(f"`{name}` must be a number. Received: {name}={value!r} ({type(value).__name__})")
    if not all(holds for _, holds in bounds) or value != value:
        limits = zip((at_least, above, below, at_most), bounds, strict=True)
        wanted = " and ".join(words for limit, (words, _) in limits if limit is not None) or "a number"
        raise ValueError(f"`{name}` must be {wanted}. Received: {name}={value}")
    return value


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


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
