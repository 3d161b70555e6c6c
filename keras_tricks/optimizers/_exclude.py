"""Which variables a rule leaves out: regular expressions on paths, layers or variables, resolved once in `build`.

`None` leaves out every variable of rank 0 or 1 (biases, normalisation scales, ReZero's alpha), `[]` leaves out nothing.
A pattern that matches nothing is an error, since a typing mistake would otherwise go unnoticed for a whole run.
"""

import re

import keras


def check(exclude, argument):
    """Returns `exclude` as None or a list; raises for anything that cannot name a variable."""
    if exclude is None:
        return None
    entries = [exclude] if isinstance(exclude, (str, keras.layers.Layer, keras.Variable)) else list(exclude)
    for entry in entries:
        if isinstance(entry, str):
            try:
                re.compile(entry)
            except re.error as error:
                raise ValueError(f"`{argument}` holds an invalid regular expression: {entry!r} ({error}).") from error
        elif not isinstance(entry, (keras.layers.Layer, keras.Variable)):
            raise TypeError(
                f"`{argument}` expects None, or a list of regular expressions on variable paths, layers or variables. "
                f"Received an entry of type {type(entry).__name__}: {entry!r}"
            )
    return entries


def excluded(variables, exclude, argument):
    """One bool a variable: True where `exclude`, as given by `check`, leaves it out."""
    if exclude is None:
        return [len(v.shape) <= 1 for v in variables]
    result = [False] * len(variables)
    for entry in exclude:
        hits = [_matches(entry, v) for v in variables]
        if not any(hits):
            paths = "\n  ".join(_path(v) for v in variables)
            name = entry if isinstance(entry, str) else getattr(entry, "path", entry)
            raise ValueError(
                f"`{argument}`: {name!r} matches none of the optimizer's variables. Expected a regular expression "
                f"that is found in one of these paths, or one of their layers or variables:\n  {paths}"
            )
        result = [a or b for a, b in zip(result, hits, strict=True)]
    return result


def to_config(exclude):
    """`exclude` as plain data: layers and variables become patterns on the end of their paths."""
    if exclude is None:
        return None
    return [entry if isinstance(entry, str) else _pattern(entry) for entry in exclude]


def _matches(entry, variable):
    if isinstance(entry, str):
        return re.search(entry, _path(variable)) is not None
    if isinstance(entry, keras.Variable):
        return entry is variable
    return any(variable is weight for weight in entry.weights)


def _path(variable):
    return getattr(variable, "path", variable.name)


def _pattern(entry):
    # A loaded model's paths lack the model's own name, so only the last parts are kept.
    if isinstance(entry, keras.Variable):
        return r"(^|/)" + re.escape("/".join(entry.path.split("/")[-2:])) + "$"
    return r"(^|/)" + re.escape(entry.name) + "/"
