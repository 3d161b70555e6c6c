"""Which axes of a variable belong to one output unit, for every layout of kernels in Keras.

Dense, Conv, LSTM, GRU   (..., in, out)                all axes but the last
depthwise convolution    (k, ..., in, multiplier)      the k axes
transposed convolution   (k, ..., out, in)             the k axes and the last
Embedding                (vocabulary, features)        the last (reverse kernel, LoRA's b: the first)
EinsumDense, attention   by its equation               those that are not in its output
vectors and scalars, also with axes of length 1        all
"""

import gc
import warnings

import keras


def unit_axes(variables):
    """For each variable a tuple with the axes over which one unit's norm is taken."""
    layers = _layers_of(variables)
    return [_axes(v, layers.get(id(v))) for v in variables]


def _axes(variable, layer):
    rank = len(variable.shape)
    every = tuple(range(rank))
    if sum(n > 1 for n in variable.shape) <= 1 or variable.name == "bias":
        return every
    if isinstance(layer, keras.layers.Embedding) and variable.name in ("embeddings", "lora_embeddings_a"):
        return every[1:]
    if _is_depthwise(variable, layer):
        return every[:-2]
    if isinstance(layer, _TRANSPOSED):
        return (*every[:-2], rank - 1)
    if isinstance(layer, keras.layers.EinsumDense):
        return _contracted(layer.equation, rank) or every[:-1]
    return every[:-1]


_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_TRANSPOSED = (keras.layers.Conv1DTranspose, keras.layers.Conv2DTranspose, keras.layers.Conv3DTranspose)


def _is_depthwise(variable, layer):
    return isinstance(layer, _DEPTHWISE) or (
        isinstance(layer, _SEPARABLE) and variable is getattr(layer, "depthwise_kernel", None)
    )


def _contracted(equation, rank):
    """The axes of the kernel in "input,kernel->output" that the output does not have."""
    kernel, output = equation.replace(" ", "").replace("...", "").split(",")[1].split("->")
    if len(kernel) != rank:  # LoRA factors and biases
        return None
    return tuple(axis for axis, label in enumerate(kernel) if label not in output)


def _layers_of(variables):
    """The layer that owns each variable, by `id(variable)`.

    A variable does not know its layer, and an optimizer is given nothing but variables. So the layers that are alive
    are asked, once, when the optimizer is built.
    """
    wanted = {id(v) for v in variables}
    owners, are_layers = {}, {}
    for candidate in gc.get_objects():
        kind = type(candidate)  # isinstance would ask proxies what they pretend to be
        if kind not in are_layers:  # millions of objects, of a few thousand classes
            are_layers[kind] = issubclass(kind, keras.layers.Layer)
        if are_layers[kind]:
            owners |= {id(value): candidate for value in vars(candidate).values() if id(value) in wanted}
    if gc.get_freeze_count() and any(id(v) not in owners and len(v.shape) > 1 for v in variables):
        warnings.warn(
            "`gc.freeze()` hides layers from the optimizer, so a variable counts as a dense layer's kernel where no "
            "layer was found for it. Build the optimizer before, or call `gc.unfreeze()` first.",
            stacklevel=2,
        )
    return owners
