"""Which variables a rule leaves out: regular expressions on paths, layers or variables, resolved once in `build`.

`None` leaves out every variable of rank 0 or 1 (biases, normalisation scales, ReZero's alpha), `[]` leaves out nothing.
A pattern that matches nothing is an error, since a typing mistake would otherwise go unnoticed for a whole run.

What was resolved is saved by position, with the paths beside it, so that a loaded optimizer leaves out what the saved
one did: paths lose or gain the model's name on loading, and two blocks may have equal names inside.
"""

import re
import warnings

import keras


class Exclusion:
    """The checked value of one `exclude...` argument.

    An object of its own, because Keras would take a list of variables on an optimizer for optimizer state.
    """

    def __init__(self, value, argument):
        self.argument = argument
        self.saved = value if isinstance(value, dict) and _is_saved(value) else None
        self.is_trusted = self.saved is None and not isinstance(value, FromConfig)
        self.resolved = None
        if self.saved is not None:
            value = self.saved.get("entries", ())
        self.entries = value
        if value is None:
            return
        single = isinstance(value, (str, keras.layers.Layer, keras.Variable))
        self.entries = [value] if single else list(value)
        for entry in self.entries:
            if isinstance(entry, str):
                self._check_pattern(entry)
            elif not isinstance(entry, (keras.layers.Layer, keras.Variable)):
                raise TypeError(
                    f"`{argument}` expects None, or a list of regular expressions on variable paths, layers or "
                    f"variables. Received an entry of type {type(entry).__name__}: {entry!r}"
                )

    def _check_pattern(self, pattern):
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(
                f"`{self.argument}` holds an invalid regular expression: {pattern!r} ({error})."
            ) from error

    def of(self, variables):
        """One bool per variable: True where it is left out."""
        if self.entries is None:
            return [len(v.shape) <= 1 for v in variables]
        paths = [_path(v) for v in variables]
        if self.saved is None:
            excluded = self._by_entries(variables, self.entries)
        elif "paths" in self.saved:
            excluded = self._as_saved(variables, paths)
        else:
            excluded = self._by_entries(variables, [*self.entries, *self._at_saved_paths(variables)])
        self.resolved = {
            "entries": [entry for entry in self.entries if isinstance(entry, str)],
            "positions": [position for position, out in enumerate(excluded) if out],
            "paths": _below_the_root(paths),
        }
        return excluded

    def _by_entries(self, variables, entries):
        result = [False] * len(variables)
        for entry in entries:
            hits = self._hits(entry, variables)
            if not any(hits):
                paths = "\n  ".join(_path(v) for v in variables)
                name = entry if isinstance(entry, str) else getattr(entry, "path", entry)
                raise ValueError(
                    f"`{self.argument}`: {name!r} matches none of the optimizer's variables. Expected a regular "
                    f"expression that is found in one of these paths, or one of their layers or variables:\n  {paths}"
                )
            result = [a or b for a, b in zip(result, hits, strict=True)]
        return result

    def _hits(self, entry, variables):
        if not isinstance(entry, str):
            ids = {id(v) for v in ([entry] if isinstance(entry, keras.Variable) else entry.weights)}
            return [id(v) in ids for v in variables]
        if not (self.is_trusted or _is_quick(entry)):
            raise ValueError(
                f"`{self.argument}` of a saved optimizer holds the regular expression {entry!r}. It repeats too much "
                "to be run on paths that come with it, since that may never end. Load the model with `compile=False` "
                "and compile it with an optimizer of your own."
            )
        paths = [_path(v) for v in variables]
        hits = [re.search(entry, path) is not None for path in paths]
        # The whole path of a variable, of the time when it began with the model's name.
        return hits if any(hits) else ["/" in path and entry.endswith("/" + path) for path in paths]

    def _as_saved(self, variables, paths):
        """What the saved optimizer left out: by position, or by path if this one has other variables."""
        saved, out = self.saved["paths"], set(self.saved["positions"])
        if len(saved) == len(paths) and all(_are_alike(*pair) for pair in zip(saved, paths, strict=True)):
            return [position in out for position in range(len(paths))]
        found = _found_again(saved, paths)
        for path in {saved[position] for position in out}:
            alike = [position for position, other in enumerate(saved) if other == path]
            if not out.issuperset(alike) and len(alike) != sum(_end_alike(path, other) for other in paths):
                raise ValueError(
                    f"`{self.argument}` was resolved for other variables, and of {len(alike)} with the path {path!r} "
                    "some were left out: which of them the optimizer has now is not known. Make a new optimizer with "
                    "the constructor; to load a model without its optimizer, use `compile=False`."
                )
        if out and all(position is None for position in found):
            raise ValueError(
                f"`{self.argument}` was resolved for variables of which the optimizer has none now, so what it leaves "
                "out is not known. Make a new optimizer with the constructor. Expected variables such as "
                f"{saved[min(out)]!r}, received:\n  " + "\n  ".join(paths)
            )
        excluded = [position in out for position in found]
        unknown = [i for i, position in enumerate(found) if position is None]
        for entry in self.entries:
            hits = self._hits(entry, [variables[i] for i in unknown])
            for i, hit in zip(unknown, hits, strict=True):
                excluded[i] = excluded[i] or hit
        left_out = [path for path, out in zip(paths, excluded, strict=True) if out]
        warnings.warn(
            f"`{self.argument}` was resolved for {len(saved)} variables, and the optimizer has {len(paths)} now, or "
            "others. What it leaves out was found by path, and by the patterns where a variable is new: "
            f"{', '.join(left_out) or 'nothing'}. If that is not what you mean, make a new optimizer.",
            stacklevel=2,
        )
        return excluded

    def _at_saved_paths(self, variables):
        """The variables of an optimizer that was saved before it was built; some may not be trained here."""
        found = []
        for path in self.saved["excluded"]:
            hits = [v for v in variables if _path(v) == path] or [v for v in variables if _end_alike(_path(v), path)]
            if len(hits) > 1:
                raise ValueError(
                    f"`{self.argument}`: an optimizer that was saved before it was built leaves out {path!r}, and "
                    f"{len(hits)} variables have that path: {', '.join(_path(v) for v in hits)}. Load the model with "
                    "`compile=False` and compile it with a new optimizer; or call "
                    "`model.optimizer.build(model.trainable_variables)` before it is saved."
                )
            found += hits
        return found or self.saved["excluded"][:1]

    def to_config(self):
        """The argument as plain data: None, patterns, or what they and layers and variables were resolved to."""
        if not self.entries and self.saved is None:
            return self.entries
        if self.resolved or self.saved:
            return self.resolved or self.saved
        patterns = [entry for entry in self.entries if isinstance(entry, str)]
        excluded = []
        for entry in self.entries:
            if isinstance(entry, keras.Variable):
                excluded.append(entry.path)
            elif not isinstance(entry, str) and entry.weights:
                excluded += [v.path for v in entry.trainable_weights]
            elif not isinstance(entry, str):  # a layer that is not built has no more than its name
                patterns.append(rf"(^|/){re.escape(entry.name)}/")
        return {"entries": patterns, "excluded": excluded} if excluded else patterns


class FromConfig(list):
    """Patterns that come from a config, perhaps of a file that somebody else made."""


def from_config(config):
    """The config of an optimizer, with its patterns marked as those of a config."""
    return {
        name: FromConfig(value) if name.startswith("exclude") and isinstance(value, list) else value
        for name, value in config.items()
    }


def _is_saved(value):
    """Whether it is what `Exclusion.to_config` returns where patterns alone would not find the same variables."""
    return set(value) in ({"entries", "excluded"}, {"entries", "positions", "paths"})


def _is_quick(pattern):
    """Whether the time of a search is bounded by a small power of the path's length."""
    plain = re.sub(r"\\.|\[\^?\]?[^\]]*\]", "x", pattern, flags=re.DOTALL)
    plain = re.sub(r"\(\?", "(", plain)
    repeats = re.findall(r"[*+?{][?+]?", plain)
    return len(repeats) <= 3 and not re.search(r"\)[*+{]", plain)


def _path(variable):
    return getattr(variable, "path", variable.name)


def _below_the_root(paths):
    """The paths without the model's name, where they all begin with it."""
    parts = [path.split("/") for path in paths]
    if len({p[0] for p in parts}) == 1 and all(len(p) > 2 for p in parts):
        parts = [p[1:] for p in parts]
    return ["/".join(p) for p in parts]


def _end_alike(a, b):
    return a == b or a.endswith("/" + b) or b.endswith("/" + a)


def _are_alike(a, b):
    """Whether two paths are one but for the model's name and the numbers that Keras gives to layers without a name."""
    return _end_alike(*(re.sub(r"_\d+(?=/|$)", "", path) for path in (a, b)))


def _found_again(saved, paths):
    """For each path its position in `saved`, or None; the first of equal ones first."""
    found = [None] * len(paths)
    unused = dict(enumerate(saved))
    for is_same in (str.__eq__, _end_alike):
        for i, path in enumerate(paths):
            if found[i] is not None:
                continue
            hits = [position for position, other in unused.items() if is_same(other, path)]
            if hits:
                found[i] = max(hits, key=lambda position: len(saved[position]))
                del unused[found[i]]
    return found
