"""Models rebuilt: a copy in which some layers are replaced, and calls that are run again."""

import collections
import tempfile

import keras

from keras_tricks.models._graph import described, inside, is_keras, opens, trace, walk
from keras_tricks.models._segment import Segment

Other = collections.namedtuple("Other", "layer carry")


class ModelCopy:
    """A copy of a model in which some layers are replaced. What is shared stays shared.

    Args:
        name: The name of the operation, for errors.
        model: The model.
        others: By the id of a layer, its replacement: an `Other`, whose `carry(old, new)` carries the weights over.
    """

    def __init__(self, name, model, others=()):
        self.model = model
        self.others = dict(others)
        self.copies = {}  # by the id of the original
        self.places = list(walk(model))
        self._carries = []  # (original, copy, how its weights go over, whether the copy is trainable)
        _check_sharing(name, self.places)

    def result(self):
        """The copy of the model, with its weights."""
        model = self.copy(self.model)
        self.carry_weights()
        return model

    def copy(self, layer):
        """The layer's counterpart in the new model, always the same one for the same layer."""
        if id(layer) not in self.copies:
            carry = carry_nothing
            if id(layer) in self.others:
                new, carry = self.others[id(layer)]
            elif not opens(layer):
                new, carry = plain_copy(layer), copy_weights
            elif isinstance(layer, keras.Model):
                new = self._sequential(layer) if isinstance(layer, keras.Sequential) else self._functional(layer)
                new.dtype_policy = layer.dtype_policy
            elif isinstance(layer, Segment):
                inputs, calls, output = trace(self._functional(layer.as_model()))
                new = Segment.of_calls(keras.tree.flatten(inputs), calls, output, name=layer.name)
            else:
                config = {k: v for k, v in layer.get_config().items() if k != "layer"}
                new, carry = type(layer)(self.copy(layer.layer), **config), _copy_weights_around
            self.put(layer, new, carry)
        return self.copies[id(layer)]

    def put(self, layer, new, carry):
        self.copies[id(layer)] = new
        if isinstance(layer, keras.Layer):
            # A layer that replaces another has the flag from its config, unless a function wanted it otherwise.
            self._carries.append((layer, new, carry, (new if id(layer) in self.others else layer).trainable))

    def call(self, layer, args, kwargs):
        """The call of a new layer in the new model."""
        return layer(*args, **kwargs)

    def carry_weights(self):
        for _, new, _, trainable in reversed(self._carries):  # holders before what they hold
            if new.trainable != trainable:
                new.trainable = trainable
        for old, new, carry, _ in self._carries:
            carry(old, new)

    def _sequential(self, model):
        input_layer = keras.layers.deserialize(model.get_config()["layers"][0])
        return type(model)([input_layer, *map(self.copy, model.layers)], name=model.name)

    def _functional(self, model):
        inputs, calls, outputs = trace(model)
        outputs = rerun(calls, outputs, lambda call, args, kwargs: self.call(self.copy(call.layer), args, kwargs))
        return type(model)(inputs, outputs, name=model.name)


def _check_sharing(name, places):
    """Refuses a closed layer that shares something with the rest: copied from its config, it could not keep sharing."""
    closed = {}
    for p in places:
        if isinstance(p.layer, keras.layers.InputLayer):
            continue  # it has no weights: a separate copy does not matter
        other = closed.setdefault(id(p.layer), p.closed)
        if other is not p.closed:
            holder = next(c.name for c in (p.closed, other) if c is not None)
            raise ValueError(
                f"`{name}`: layer {p.path!r} is also used outside of {holder!r}, which `{name}` does not open, so it "
                f"would not stay shared. Share no layer there, or use `{name}` before building this model."
            )


def rerun(calls, outputs, run, tensors=None):
    """Runs traced calls again: `run(call, args, kwargs)` gives the outputs of each. Returns the new `outputs`.

    `tensors` says what stands for tensors of the trace; the others, such as its inputs, stand for themselves.
    """
    tensors = {} if tensors is None else tensors
    for call in calls:
        args, kwargs = _filled((call.args, call.kwargs), tensors)
        enter(tensors, call.outputs, run(call, args, kwargs))
    return _filled(outputs, tensors)


def enter(tensors, edges, values):
    tensors.update(zip(keras.tree.flatten(edges), keras.tree.flatten(values), strict=True))


def _filled(structure, tensors):
    return keras.tree.map_structure(lambda x: tensors.get(x, x) if isinstance(x, keras.KerasTensor) else x, structure)


def plain_copy(layer, config=None):
    """A new, unbuilt layer of the same config, or of another one."""
    try:
        config = unbuilt(layer.get_config() if config is None else config)
        if isinstance(layer, keras.layers.Lambda):
            copy = type(layer).from_config(config, safe_mode=False)  # its code is already in this process
            copy.function, copy.mask = layer.function, layer.mask  # those of the config have lost their globals
        else:
            copy = type(layer).from_config(config)
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"Each layer is copied, and {type(layer).__name__} {layer.name!r} cannot be made from its "
            "config, as saving and loading would need too. Let its `get_config` return all arguments of its `__init__`."
        ) from error
    if hasattr(layer, "save_assets"):  # a vocabulary, which decides the output's shape
        if is_keras(type(layer).__module__):
            store = {}
            layer.save_own_variables(store)
            copy.load_own_variables(store)
        with tempfile.TemporaryDirectory() as folder:
            layer.save_assets(folder)
            copy.load_assets(folder)
    return copy


def unbuilt(config):
    """Lets the copy build what is inside it, as the original did; otherwise the weights' paths would be shorter."""
    if isinstance(config, dict):
        return {k: unbuilt(v) for k, v in config.items() if k != "build_config"}
    return [unbuilt(v) for v in config] if isinstance(config, list) else config


def carry_nothing(old, new):
    pass


def copy_weights(old, new):
    """The weights of a layer and all layers inside it, with their `trainable` flags."""
    for a, b in zip(inside(old), inside(new), strict=True):
        b.trainable = a.trainable
        copy_weights(a, b)
    if [v.shape for v in old.variables] != [v.shape for v in new.variables]:
        raise ValueError(
            f"A copy of {described(old)}, made by its `get_config` and `from_config`, has other weights than the "
            f"layer: {[v.name for v in new.variables]} instead of {[v.name for v in old.variables]}."
        )
    for a, b in zip(old.variables, new.variables, strict=True):
        assign(b, a)
    if isinstance(new, keras.layers.Normalization):
        new.finalize_state()  # it uses tensors that it made from its weights earlier


def _copy_weights_around(old, new):
    """The weights of a wrapper, without those of the layer in it."""
    own = [[v for v in x.variables if not any(v is inner for inner in x.layer.variables)] for x in (old, new)]
    for a, b in zip(*own, strict=True):
        assign(b, a)


def assign(variable, value):
    variable.assign(keras.ops.convert_to_numpy(value))
    if not value.trainable:
        variable.trainable = False
