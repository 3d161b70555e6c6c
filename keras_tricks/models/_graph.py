"""Reading models: the layers that a model is made of, and their calls."""

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


def leaves(model):
    """The layers that are called in the end: those of a model, with each model inside it replaced by its layers."""
    if not runs_its_graph(model):
        return [] if isinstance(model, keras.layers.InputLayer) else [model]
    return list({id(leaf): leaf for layer in model.layers for leaf in leaves(layer)}.values())


def opens(layer):
    """Whether the copy of a layer can be put together from copies of the layers inside it."""
    if isinstance(layer, keras.Model):
        return is_graph(layer) and not own_methods(layer)
    return type(layer) in (keras.layers.TimeDistributed, ReZero, Recompute, Segment)


def is_graph(layer):
    """Whether a layer is a model whose calls of layers Keras knows."""
    if isinstance(layer, keras.Sequential):
        return hasattr(layer, "inputs")  # not if it was never built, or its first layer takes several tensors
    return isinstance(layer, keras.Function) and isinstance(layer, keras.Model)


def runs_its_graph(layer):
    """Whether the calls in its graph are all that it does when it is called."""
    return is_graph(layer) and "call" not in own_methods(layer)


def own_methods(model):
    """Those of `__init__` and `call` that are not Keras' own."""
    return [name for name in ("__init__", "call") if not is_keras(getattr(type(model), name).__module__)]


def is_keras(module):
    return (module or "").split(".")[0] == "keras"


def require_graph(name, model, instead, without=("__init__", "call")):
    """Raises unless `model` is a built Functional or Sequential model, `without` these methods of its own.

    `instead` says what to do with a subclassed one.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`{name}` expects a keras.Model. Received: {model!r}")
    if not isinstance(model, keras.Sequential | keras.Function):
        raise ValueError(
            f"`{name}` expects a Functional or Sequential model. Received: {described(model)}, which is a subclassed "
            f"model, whose `call` is code that cannot be read. {instead}"
        )
    if not model.built or not is_graph(model):
        raise ValueError(
            f"`{name}`: model {model.name!r} is not built, so its layers have no weights yet. Begin it with "
            "keras.Input(shape), and train or load it."
        )
    own = [f"`{method}`" for method in own_methods(model) if method in without]
    if own:
        raise ValueError(
            f"`{name}` expects a plain Functional or Sequential model. Received: {described(model)}, whose own "
            f"{' and '.join(own)} the new model would lose. Give its graph, as a plain model of the same layers: "
            "`keras.Model(model.input, model.output)`."
        )


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

    @property
    def input(self):
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    @property
    def takes(self):
        return edges_of((self.args, self.kwargs))

    @property
    def gives(self):
        return keras.tree.flatten(self.outputs)

    @property
    def training(self):
        return bool(self.kwargs.get("training"))


def trace(model, dtype=None, with_shapes=False):
    """The inputs of a model, in `dtype` if they are floating point, the calls of its layers in order, and its outputs.

    `clone_model` shows each call to a function that may answer with any tensor: nothing is computed, no layer called.
    Only `with_shapes=True` calls them, for tensors with shapes and dtypes.
    """
    calls = []
    edge = keras.layers.Identity(name="edge")

    def note(layer, *args, **kwargs):
        if with_shapes:
            outputs = layer(*args, **kwargs)
        else:
            outputs = keras.tree.map_structure(lambda _: edge(first), layer.output)
        calls.append(Call(layer, args, kwargs, outputs))
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
