"""Which variables a rule leaves out: regular expressions on paths, layers or variables, resolved once in `build`.

`None` leaves out every variable of rank 0 or 1 (biases, normalisation scales, ReZero's alpha), `[]` leaves out nothing.
A pattern that matches nothing is an error, since a typing mistake would otherwise go unnoticed for a whole run.
"""

import re

import keras


class Exclusion:
    """The checked value of one `exclude...` argument.

    An object of its own, because Keras would take a list of variables on an optimizer for optimizer state.
    """

    def __init__(self, value, argument):
        self.argument = argument
        self.entries = value
        if value is None:
            return
        single = isinstance(value, (str, keras.layers.Layer, keras.Variable))
        self.entries = [value] if single else list(value)
        for entry in self.entries:
            if isinstance(entry, str):
                try:
                    re.compile(entry)
                except re.error as error:
                    raise ValueError(
                        f"`{argument}` holds an invalid regular expression: {entry!r} ({error})."
                    ) from error
            elif not isinstance(entry, (keras.layers.Layer, keras.Variable)):
                raise TypeError(
                    f"`{argument}` expects None, or a list of regular expressions on variable paths, layers or "
                    f"variables. Received an entry of type {type(entry).__name__}: {entry!r}"
                )

    def of(self, variables):
        """One bool a variable: True where it is left out."""
        if self.entries is None:
            return [len(v.shape) <= 1 for v in variables]
        result = [False] * len(variables)
        for entry in self.entries:
            hits = [_matches(entry, v) for v in variables]
            if not any(hits):
                paths = "\n  ".join(_path(v) for v in variables)
                name = entry if isinstance(entry, str) else getattr(entry, "path", entry)
                raise ValueError(
                    f"`{self.argument}`: {name!r} matches none of the optimizer's variables. Expected a regular "
                    f"expression that is found in one of these paths, or one of their layers or variables:\n  {paths}"
                )
            result = [a or b for a, b in zip(result, hits, strict=True)]
        return result

    def to_config(self):
        """The argument as plain data: layers and variables become patterns on the end of their paths."""
        if self.entries is None:
            return None
        return [entry if isinstance(entry, str) else _pattern(entry) for entry in self.entries]


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
