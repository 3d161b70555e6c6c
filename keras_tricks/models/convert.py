"""Tricks for a model that is already built: a copy of it in which layers of the chosen classes are replaced.

The graph is walked once with `keras.models.clone_model`; nested models and `TimeDistributed` are walked inside, too.
Weights are carried over where they mean the same. Whatever could not be changed is in the report, with the reason.

No paper; the counterpart of Composer's module surgery.
"""

import collections
import dataclasses
import inspect
import re

import keras

from keras_tricks._keras.replicas import scope_of
from keras_tricks.layers.ac_conv import ACConv2D
from keras_tricks.layers.extended_batch_normalization import ExtendedBatchNormalization
from keras_tricks.layers.rezero import ReZeroAdd
from keras_tricks.layers.ws_conv import WSConv1D, WSConv2D, WSConv3D, WSDense, WSDepthwiseConv2D
from keras_tricks.models._copy import ModelCopy, Other, assign, carry_nothing, copy_weights, plain_copy
from keras_tricks.models._graph import edges_of, has_other_kernel, is_graph, require_graph, trace
from keras_tricks.models._report import as_text
from keras_tricks.models._segment import Segment


def convert(model, tricks, exclude=None):
    """A copy of a built model with tricks applied to its layers, and a report of what was changed.

    `model` stays as it is. The copy has its own weights, with the values of the original; layers that are not changed
    keep names, `trainable` flags, dtype policies, regularizers and everything else. It is not compiled.

    Works inside nested models, `TimeDistributed`, `ReZero` and `Recompute`. A layer or model that is used twice is one
    layer or model in the copy too. Layers inside any other layer cannot be reached: they are copied as they are and
    listed in the report.

    Tricks by name, the layers they are for, and what happens to the weights:

    - `"ws_conv"`: `Conv1D`, `Conv2D`, `Conv3D`, `DepthwiseConv2D`, `Dense`. Kernel and bias are carried over; as the
      kernel is now standardised at each use, the function changes.
    - `"ac_conv"`: `Conv2D`. The kernel goes to the square branch and the other two are switched off (gamma 0): the
      same function at inference, until it is trained.
    - `"extended_batch_normalization"`: `BatchNormalization`. The variance becomes the mean over channels, and gamma
      absorbs the difference: the same function at inference.
    - `"rezero"`: `Add` of two tensors of the same shape, if one is computed from the other. That one is the branch and
      is multiplied by alpha. Alpha starts at 0, so the branches are off.

    Args:
        model: A built Functional or Sequential model, such as those of `keras.applications`.
        tricks: A dict. Its keys are Keras layer classes and match layers of exactly this class: `Conv2D` does not
            mean `DepthwiseConv2D`. Its values are these names; or a layer class, from which a layer is made with the
            old one's config; or a function. The function is given a new, unbuilt copy of the layer and returns the
            layer to use instead, which may wrap the copy, or `None` or the copy itself to keep it. With a class or
            function, weights of the same name and shape are carried over.
        exclude: Layers to leave as they are: regular expressions that are searched in the layers' paths
            (`"backbone/conv1"`), layers, or layer classes. Excluding a nested model excludes all of its layers.
            Defaults to `None`: no layer.

    Returns:
        A tuple `(model, report)`. `report.changed` holds tuples `(path, old class, new class)`, `report.kept` tuples
        `(path, class, reason)`; also `report.parameters_before` and `report.parameters_after`. It prints as text.

    Raises:
        TypeError: If `model` is not a Keras model; for keys, values or exclusions that are not as above.
        ValueError: If the model is subclassed or not built; for a key that is the class of no layer, an exclusion that
            matches none of the layers concerned, or if nothing is left to change.

    Example:
    >>> import keras, keras_tricks as kt
    >>> model = keras.Sequential(
    ...     [keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3, name="a"), keras.layers.Conv2D(4, 3, name="b")]
    ... )
    >>> converted, report = kt.models.convert(model, {keras.layers.Conv2D: "ws_conv"}, exclude="^b$")
    >>> print(report)
    1 layer changed, 1 kept; 260 parameters before, 264 after.
    changed:
      a: Conv2D -> WSConv2D
    kept:
      b: Conv2D, excluded by '^b$'
    """
    require_graph(
        "convert",
        model,
        "Use the tricks' layers in that code, or convert the Functional models that it holds before giving them to it.",
    )
    rules = _rules(tricks)
    with scope_of(model):
        return _Conversion(model, rules, exclude).result()


@dataclasses.dataclass(frozen=True)
class ConversionReport:
    """What `convert` did.

    Attributes:
        changed: Tuples `(path, old class, new class)`.
        kept: Tuples `(path, class, reason)`, for layers that a trick was meant for but that were left as they were.
        parameters_before: Number of parameters of the model that was given.
        parameters_after: The same of the new one.
    """

    changed: tuple
    kept: tuple
    parameters_before: int
    parameters_after: int

    def __str__(self):
        layers = f"{len(self.changed)} layer{'s' * (len(self.changed) != 1)} changed, {len(self.kept)} kept"
        parameters = f"{self.parameters_before:,} parameters before, {self.parameters_after:,} after"
        return as_text(
            [f"{layers}; {parameters}."],
            changed=[f"{path}: {old} -> {new}" for path, old, new in self.changed],
            kept=[f"{path}: {cls}, {reason}" for path, cls, reason in self.kept],
        )


@dataclasses.dataclass(frozen=True)
class _Rule:
    """How layers of one class are replaced: `make` gives the new layer, or `None` to keep the old one."""

    make: collections.abc.Callable
    carry: collections.abc.Callable
    obstacle: collections.abc.Callable = lambda layer: None  # the reason why a layer cannot be replaced, or None


class _Conversion(ModelCopy):
    def __init__(self, model, rules, exclude):
        super().__init__("convert", model)
        self.rules = rules
        self.parents = {}  # by the id of a new tensor: the tensors it was computed from
        self.kept = {}  # by the id of a layer: why it is not replaced
        self.found = {}  # the layers concerned, by id: where each is reached first
        for p in self.places:
            if type(p.layer) in rules:
                self.found.setdefault(id(p.layer), p)
        _check_keys(rules, self.places)
        excluded = _excluded(exclude, [p for p in self.places if id(p.layer) in self.found])
        layers = [model, *[p.layer for p in self.places]]
        times_called = _times_called(layers) if keras.layers.Add in rules else {}
        for place in self.found.values():
            self._decide(place, excluded, times_called)

    def _decide(self, place, excluded, times_called):
        layer = place.layer
        rule = self.rules[type(layer)]
        inside = next((h for h in place.holders if id(h) in self.others), None)
        if id(layer) in excluded:
            reason = f"excluded by {excluded[id(layer)]}"
        elif place.closed is not None:
            reason = f"inside {type(place.closed).__name__} {place.closed.name!r}, which `convert` does not open"
            if isinstance(place.closed, keras.Model) and is_graph(place.closed):
                reason += ": it has an `__init__` or `call` of its own; build on its `output`, not on a call of it"
        elif inside is not None:
            reason = f"inside {inside.name!r}, which is replaced as a whole"
        else:
            reason = rule.obstacle(layer)
        if reason is None:
            new = rule.make(layer)
            if new is None:
                reason = "kept by the function given"
            elif isinstance(new, ReZeroAdd) and times_called.get(id(layer), 1) > 1:
                reason = f"called {times_called[id(layer)]} times, so its sums would share one alpha"
            else:
                self.others[id(layer)] = Other(new, rule.carry)
        if reason is not None:
            self.kept[id(layer)] = reason

    def result(self):
        self._require_change()
        model = self.copy(self.model)
        self._require_change()
        self.carry_weights()
        found = [(p.path, type(p.layer).__name__, i) for i, p in self.found.items()]
        return model, ConversionReport(
            tuple((path, cls, type(self.others[i].layer).__name__) for path, cls, i in found if i in self.others),
            tuple((path, cls, self.kept[i]) for path, cls, i in found if i in self.kept),
            self.model.count_params(),
            model.count_params(),
        )

    def _require_change(self):
        if not self.others:
            lines = [f"{p.path}: {type(p.layer).__name__}, {self.kept[i]}" for i, p in self.found.items()]
            raise ValueError("`convert` has nothing to change. These layers were found:\n  " + "\n  ".join(lines))

    def call(self, layer, args, kwargs):
        if isinstance(layer, ReZeroAdd):
            layer, args = self._residual_sum(layer, args)
        outputs = super().call(layer, args, kwargs)
        for output in keras.tree.flatten(outputs):
            self.parents[id(output)] = edges_of((args, kwargs))
        return outputs

    def _residual_sum(self, layer, args):
        """A new ReZeroAdd with its inputs in order; if there is no telling which is which, a plain Add instead."""
        old = next((self.found[i].layer for i, other in self.others.items() if other.layer is layer), None)
        if old is None:  # it was a ReZeroAdd before
            return layer, args
        terms = args[0]
        if len(terms) != 2:
            reason = f"adds {len(terms)} tensors, not a skip connection and one branch"
        elif tuple(terms[0].shape) != tuple(terms[1].shape):
            reason = f"adds tensors of different shapes, {tuple(terms[0].shape)} and {tuple(terms[1].shape)}"
        elif self._is_ancestor(terms[0], terms[1]):
            return layer, (terms, *args[1:])
        elif self._is_ancestor(terms[1], terms[0]):
            return layer, (terms[::-1], *args[1:])
        else:
            reason = "neither of its inputs is computed from the other, so none is the skip connection"
        plain = plain_copy(old)
        del self.others[id(old)]
        self.kept[id(old)] = reason
        self.put(old, plain, copy_weights)
        return plain, args

    def _is_ancestor(self, tensor, other):
        open_ends, seen = [other], set()
        while open_ends:
            for parent in self.parents.get(id(open_ends.pop()), []):
                if parent is tensor:
                    return True
                if id(parent) not in seen:
                    seen.add(id(parent))
                    open_ends.append(parent)
        return False


def _times_called(layers):
    """How often each layer is called in the models and segments among these, by id."""
    calls = collections.Counter()
    for layer in {id(layer): layer for layer in layers}.values():
        if isinstance(layer, Segment):
            layer = layer.as_model()
        if is_graph(layer):
            calls.update(id(call.layer) for call in trace(layer)[1])
    return calls


# What is put in a layer's place, and how weights are carried over


def _rules(tricks):
    if not isinstance(tricks, dict) or not tricks:
        raise TypeError(
            "`convert` expects a dict from Keras layer classes to tricks, such as "
            f"{{keras.layers.Conv2D: 'ws_conv'}}. Received: {tricks!r}"
        )
    return {key: _rule(key, value) for key, value in tricks.items()}


def _rule(key, value):
    if not (inspect.isclass(key) and issubclass(key, keras.Layer)):
        raise TypeError(f"The keys of `tricks` are classes of Keras layers. Received: {key!r}")
    if isinstance(value, str):
        if value not in _NAMED:
            raise ValueError(f"There is no trick called {value!r}; there are {', '.join(map(repr, _NAMED))}.")
        classes, carry, obstacle, arguments = _NAMED[value]
        if key not in classes:
            names = ", ".join(cls.__name__ for cls in classes)
            raise ValueError(f"{value!r} is a trick for layers of class {names}. Received: {key.__name__}")
        return _Rule(lambda layer: classes[key].from_config({**layer.get_config(), **arguments}), carry, obstacle)
    if inspect.isclass(value) and issubclass(value, keras.Layer):
        return _Rule(lambda layer: _from_config_of(value, layer), _carry_by_name)
    if callable(value) and not inspect.isclass(value) and not isinstance(value, keras.Layer):
        return _Rule(lambda layer: _from_function(value, layer), _carry_by_name)
    raise TypeError(
        f"The values of `tricks` are names ({', '.join(map(repr, _NAMED))}), classes of Keras layers, or functions "
        f"from layer to layer. Received for {key.__name__}: {value!r}"
    )


def _from_config_of(cls, layer):
    try:
        return cls.from_config(layer.get_config())
    except (TypeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{cls.__name__} cannot be made from the config of {type(layer).__name__} {layer.name!r}. Give a function "
            "from layer to layer instead of the class."
        ) from error


def _from_function(function, layer):
    copy = plain_copy(layer)
    new = function(copy)
    if new is None or new is copy:
        return None
    if not isinstance(new, keras.Layer):
        raise TypeError(
            f"The function for {type(layer).__name__} has to return a Keras layer or None. It gave: {new!r}"
        )
    return new


def _carry_by_name(old, new):
    names = collections.Counter(v.name for v in [*old.variables, *new.variables])
    variables = {v.name: v for v in old.variables}
    for v in new.variables:
        if v.name in variables and names[v.name] == 2 and tuple(v.shape) == tuple(variables[v.name].shape):
            assign(v, variables[v.name])


def _carry_extended(old, new):
    _carry_by_name(old, new)
    equal = ExtendedBatchNormalization.from_batch_normalization(old)
    for v, value in zip(new.variables, equal.variables, strict=True):
        v.assign(keras.ops.convert_to_numpy(value))


def _carry_to_square_branch(old, new):
    assign(new.kernel, old.kernel)
    # Until it has seen data, the normalisation only divides by sqrt(1 + epsilon).
    square = new.square_normalization
    square.gamma.assign(keras.ops.full(square.gamma.shape, (1 + square.epsilon) ** 0.5, square.gamma.dtype))
    if old.use_bias:
        assign(square.beta, old.bias)


def _cannot_standardize(layer):
    shape = tuple(layer.kernel.shape)
    unit_axes = 2 if isinstance(layer, keras.layers.DepthwiseConv2D) else 1
    if all(size == 1 for size in shape[:-unit_axes]):
        return f"its kernel of shape {shape} has one weight for each output unit, and standardising that makes it 0"
    return has_other_kernel(layer)


def _cannot_be_asymmetric(layer):
    if any(size % 2 == 0 or size == 1 for size in layer.kernel_size):
        return f"its kernel of size {layer.kernel_size} has no middle row and column: sides must be odd and 3 or more"
    return has_other_kernel(layer)


def _cannot_extend(layer):
    renorm = getattr(layer, "renorm", False)  # Keras has it since 3.14
    return "it has renorm=True, which ExtendedBatchNormalization does not have" if renorm else None


_Named = collections.namedtuple("_Named", "classes carry obstacle arguments")

_NAMED = {
    "ws_conv": _Named(
        {
            keras.layers.Conv1D: WSConv1D,
            keras.layers.Conv2D: WSConv2D,
            keras.layers.Conv3D: WSConv3D,
            keras.layers.DepthwiseConv2D: WSDepthwiseConv2D,
            keras.layers.Dense: WSDense,
        },
        _carry_by_name,
        _cannot_standardize,
        {},
    ),
    "ac_conv": _Named(
        {keras.layers.Conv2D: ACConv2D},
        _carry_to_square_branch,
        _cannot_be_asymmetric,
        {"gamma": "single"},
    ),
    "extended_batch_normalization": _Named(
        {keras.layers.BatchNormalization: ExtendedBatchNormalization},
        _carry_extended,
        _cannot_extend,
        {"scale": True},  # gamma absorbs the difference of the variances
    ),
    "rezero": _Named({keras.layers.Add: ReZeroAdd}, carry_nothing, lambda layer: None, {}),
}


# What is refused


def _check_keys(rules, places):
    counts = collections.Counter(type(layer) for layer in {id(p.layer): p.layer for p in places}.values())
    for key in rules:
        if not counts[key]:
            there = ", ".join(f"{n} {cls.__name__}" for cls, n in counts.most_common())
            raise ValueError(
                f"`convert`: no layer of the model is of class {key.__name__}; subclasses do not count. "
                f"Its layers are: {there}."
            )


def _excluded(exclude, places):
    """What excludes a layer, in words, by the layer's id."""
    if exclude is None:
        return {}
    single = isinstance(exclude, str | keras.Layer) or inspect.isclass(exclude)
    result = {}
    for entry in [exclude] if single else exclude:
        word, hits = _matcher(entry)
        found = {id(p.layer): word for p in places if hits(p)}
        if not found:
            paths = "\n  ".join(dict.fromkeys(p.path for p in places))
            raise ValueError(
                f"`exclude`: {word} matches none of the layers that would be changed. Expected a regular expression "
                f"that is found in one of these paths, or one of their layers or classes:\n  {paths}"
            )
        result = {**found, **result}
    return result


def _matcher(entry):
    if isinstance(entry, str):
        try:
            pattern = re.compile(entry)
        except re.error as error:
            raise ValueError(f"`exclude` holds an invalid regular expression: {entry!r} ({error}).") from error
        return repr(entry), lambda p: pattern.search(p.path)
    if isinstance(entry, keras.Layer):
        return f"layer {entry.name!r}", lambda p: any(x is entry for x in (p.layer, *p.holders))
    if inspect.isclass(entry) and issubclass(entry, keras.Layer):
        return f"class {entry.__name__}", lambda p: any(isinstance(x, entry) for x in (p.layer, *p.holders))
    raise TypeError(
        "`exclude` expects None, or a list of regular expressions on layer paths, layers or layer classes. "
        f"Received an entry of type {type(entry).__name__}: {entry!r}"
    )
