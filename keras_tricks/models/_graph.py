"""Models taken apart: the layers in them, the calls of these, and copies of them."""

import collections
import dataclasses

import keras
import numpy as np

from keras_tricks.layers.recompute import Recompute
from keras_tricks.layers.rezero import ReZero
from keras_tricks.models._segment import Segment, input_arguments

# What a model is made of


Place = collections.namedtuple("Place", "path layer holders closed")


def walk(holder, path="", holders=(), closed=None):
    """Every layer inside, as often as it is reached: its path, what holds it, and the outermost closed one of these."""
    for layer in inside(holder):
        if layer in holders:
            continue
        where = f"{path}/{layer.name}" if path else layer.name
        yield Place(where, layer, holders, closed)
        yield from walk(layer, where, (*holders, layer), closed or (None if opens(layer) else layer))


def inside(layer):
    """The layers that a layer holds directly."""
    if isinstance(layer, keras.Model):
        return layer.layers
    held = [x for x in keras.tree.flatten(list(vars(layer).values())) if isinstance(x, keras.Layer)]
    return list({id(x): x for x in held}.values())


def opens(layer):
    """Whether the copy of a layer can be put together from copies of the layers inside it."""
    if isinstance(layer, keras.Model):
        return is_graph(layer) and builds_as_keras_does(layer)
    return type(layer) in (keras.layers.TimeDistributed, ReZero, Recompute, Segment)


def is_graph(model):
    if isinstance(model, keras.Sequential):
        return hasattr(model, "inputs")  # not if it was never built, or its first layer takes several tensors
    return is_functional(model)


def require_graph(name, model, instead):
    """Raises unless `model` is a built Functional or Sequential model; `instead` says what to do with another."""
    if not isinstance(model, keras.Model):
        raise TypeError(f"`{name}` expects a keras.Model. Received: {model!r}")
    if not isinstance(model, keras.Sequential) and not is_functional(model):
        raise ValueError(
            f"`{name}`: {type(model).__name__} {model.name!r} is a subclassed model, whose `call` is code that cannot "
            f"be read. {instead}"
        )
    if not model.built or not is_graph(model):
        raise ValueError(
            f"`{name}`: model {model.name!r} is not built, so its layers have no weights yet. Begin it with "
            "keras.Input(shape), and train or load it."
        )


def is_functional(model):
    return isinstance(getattr(type(model), "operations", None), property)


def builds_as_keras_does(model):
    plain = keras.Sequential if isinstance(model, keras.Sequential) else type(plain_functional(model))
    return type(model).__init__ is plain.__init__ and type(model).call is plain.call


def plain_functional(model):
    if isinstance(model, keras.Sequential):
        return keras.Model(model.inputs[0], model.outputs[0], name=model.name)
    return keras.Model(model.input, model.output, name=model.name)


def described(layer):
    return f"{layer.name} ({type(layer).__name__})"


# The calls of its layers. While a graph is read, a KerasTensor is no more than the name of an edge.


@dataclasses.dataclass(eq=False)
class Call:
    """One call of a layer in the graph."""

    layer: keras.Operation
    args: tuple
    kwargs: dict
    outputs: object
    owner: keras.Operation  # the layer of the model that this call comes from
    weights: dict | None = None  # float64 values by name, once something was folded into the layer

    @property
    def input(self):
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    @property
    def training(self):
        return bool(self.kwargs.get("training"))


def trace(model, dtype=None):
    """The inputs of a model, in `dtype` if they are floating point, the calls of its layers in order, and its outputs.

    `clone_model` shows each call to a function that may answer with any tensor: nothing is computed, no layer called.
    """
    calls = []
    edge = keras.layers.Identity(name="edge")

    def note(layer, *args, **kwargs):
        outputs = keras.tree.map_structure(lambda _: edge(first), layer.output)
        calls.append(Call(layer, args, kwargs, outputs, layer))
        return outputs

    not_compiled = plain_functional(model)
    inputs = new_inputs(not_compiled, dtype)
    first = keras.tree.flatten(inputs)[0]
    traced = keras.models.clone_model(
        not_compiled, input_tensors=inputs, clone_function=lambda layer: layer, call_function=note
    )
    return inputs, calls, traced.output


def new_inputs(model, dtype=None):
    """Inputs like those of a Functional model; those of floating point in `dtype`."""
    layers = {id(layer.output): layer for layer in model.layers if isinstance(layer, keras.layers.InputLayer)}

    def new(tensor):
        layer, arguments = layers.get(id(tensor), tensor), input_arguments(tensor)
        if dtype is not None and keras.backend.is_float_dtype(tensor.dtype):
            arguments["dtype"] = dtype
        return keras.Input(**arguments, name=layer.name, optional=getattr(layer, "optional", False))

    return keras.tree.map_structure(new, model.input)


def edges_of(structure):
    return [x for x in keras.tree.flatten(structure) if isinstance(x, keras.KerasTensor)]


# Weights


def has_other_kernel(layer):
    if getattr(layer, "lora_enabled", False):
        return "its kernel has a LoRA addition"
    if getattr(layer, "quantization_mode", None):
        return "its kernel is quantized"
    return None


def as_float64(variable):
    return None if variable is None else np.asarray(keras.ops.convert_to_numpy(variable)).astype("float64")
