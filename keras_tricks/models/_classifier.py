"""The classifier of a trained network: where it is, what does not count as one, and copies of the model around it."""

import collections

import keras

from keras_tricks._keras.replicas import scope_of
from keras_tricks.layers.normalized_dense import NormalizedDense
from keras_tricks.models._copy import ModelCopy, Other
from keras_tricks.models._graph import described, edges_of, has_other_kernel, opens, require_graph, trace, walk

INSTEAD = "Build a functional model of the same layers, keras.Model(inputs, outputs), and give that."
ADJUSTMENT = "logit_adjustment"  # the name by which a model, even a loaded one, shows that it is adjusted


# `path`: the model and those inside it that lead to the classifier, `layer`; `name`: that of the operation, for errors
_Found = collections.namedtuple("_Found", "name path layer")


def find(name, model, layer):
    """The classifier, which must be in one place only."""
    require_graph(name, model, INSTEAD)
    last = check_output(name, model)
    if layer is None:
        if not isinstance(last, _CLASSIFIERS):
            raise ValueError(
                f"`{name}`: the output of model {model.name!r} comes from {described(last)}, and a classifier is a "
                "Dense layer, a NormalizedDense or a convolution. If it is further inside, name it: `layer=`."
            )
        layer = last
    places = [p for p in walk(model) if layer is p.layer or layer in (p.path, p.layer.name)]
    layers = {id(p.layer): p.layer for p in places}
    if len(layers) != 1:
        paths = ", ".join(dict.fromkeys(p.path for p in (places or walk(model)) if p.layer.weights))
        raise ValueError(
            f"`{name}`: model {model.name!r} has {len(layers) or 'no'} layers {getattr(layer, 'name', layer)!r}. Give "
            f"the layer, or one of these paths: {paths}."
        )
    place = places[0]
    path = (model, *place.holders)
    wrapper = next(
        (holder for holder in place.holders if not (isinstance(holder, keras.Model) and opens(holder))), None
    )
    if isinstance(place.layer, keras.Model) or wrapper is not None:
        where = "is a model" if wrapper is None else f"is inside {described(wrapper)}"
        raise ValueError(
            f"`{name}`: {described(place.layer)} {where}, and the classifier must be a layer of the model, or of "
            "models inside it."
        )
    calls = [_calls_of(inner, holder) for holder, inner in zip(path, [*path[1:], place.layer], strict=True)]
    if len(places) > 1 or any(times > 1 for times in calls):
        raise ValueError(
            f"`{name}`: {described(place.layer)} is called more than once in the model, so it is not only its "
            "classifier. Use a layer of its own for the output."
        )
    return _Found(name, path, place.layer)


def _calls_of(layer, model):
    return sum(call.layer is layer for call in trace(model)[1])


def check_output(name, model):
    """The layer that the output comes from, before any linear activations; an error if that is not logits."""
    outputs = outputs_of(model)
    if len(outputs) != 1:
        raise ValueError(
            f"`{name}`: model {model.name!r} has {len(outputs)} outputs. Give the part with the classifier's, "
            "keras.Model(model.input, model.outputs[i]), which shares the layers."
        )
    if len(outputs[0].shape) < 2 or (outputs[0].shape[-1] or 0) < 2:
        raise ValueError(
            f"`{name}`: expected logits of shape (batch, ..., classes) for at least 2 classes. Model {model.name!r} "
            f"has outputs of shape {tuple(outputs[0].shape)}; for 2 classes end it with Dense(2)."
        )
    last = _last(model)
    if last is None:
        raise ValueError(f"`{name}`: the output of model {model.name!r} is one of its inputs, not a classifier's.")
    if _gives_probabilities(last):
        raise ValueError(
            f"`{name}`: {described(last)} makes probabilities, and logits are needed. Build the model without that "
            "activation, and load the weights; softmax of the result gives probabilities."
        )
    if isinstance(last, keras.layers.Rescaling) and last.name == ADJUSTMENT:
        raise ValueError(
            f"`{name}`: the logits of model {model.name!r} are adjusted by `adjust_logits` already. Give the model "
            "from before; it has the same weights."
        )
    return last


def _last(model):
    """The operation that makes the output, before what only casts it or passes it on; `None` if there is none."""
    _, calls, outputs = trace(model)
    producers = {edge: call for call in calls for edge in call.gives}
    call = producers.get(edges_of(outputs)[0])
    while call is not None:
        layer = call.layer
        if isinstance(layer, keras.Model) and opens(layer) and len(outputs_of(layer)) == 1:
            inner = _last(layer)
            if inner is not None:
                return inner
        elif type(layer) is not keras.layers.Identity and not (
            type(layer) is keras.layers.Activation and layer.activation is keras.activations.linear
        ):
            return layer
        call = producers.get(call.takes[0])
    return None


def _gives_probabilities(operation):
    activations = (keras.activations.softmax, keras.activations.sigmoid, keras.activations.hard_sigmoid)
    return (
        isinstance(operation, keras.layers.Softmax)
        or getattr(operation, "activation", None) in activations
        or type(operation).__name__ in ("Softmax", "Sigmoid", "HardSigmoid")  # of keras.ops
    )


def outputs_of(model):
    return keras.tree.flatten(model.outputs)


def ends_of(model):
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


_LINEAR = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_CLASSIFIERS = (*_LINEAR, NormalizedDense)


def require_linear(name, layer):
    """Refuses a layer that is not `x·kernel + bias` with one column per class."""
    if type(layer) not in _LINEAR or getattr(layer, "data_format", None) == "channels_first":
        raise ValueError(
            f"`{name}` works on the kernel and bias of a Dense layer, or of a convolution with the classes on its last "
            f"axis. Received: {described(layer)}. NormalizedDense has columns of equal length already; for layers "
            "that standardise their kernel, keras_tricks.fuse(model) makes plain ones first."
        )
    if not layer.built:
        raise ValueError(f"`{name}`: {described(layer)} is not built, so it has no kernel yet. Train or load it.")
    require_plain_kernel(name, layer)


def require_plain_kernel(name, layer):
    reason = has_other_kernel(layer)
    if reason:
        raise ValueError(
            f"`{name}`: {described(layer)} cannot be changed, as {reason}. Give a model without, as it was trained: a "
            "LoRA is merged by saving and loading the model."
        )


def set_weights(layer, kernel, bias):
    layer.kernel.assign(kernel)
    if bias is not None:
        layer.bias.assign(bias)


def copy_around(found, make, carry):
    """A copy of the model with the classifier from `make`; and the copied models that lead to it, followed by it.

    All other layers have the weights, seeds and flags of the originals; what the classifier gets is up to `carry`.
    """
    model, classifier = found.path[0], found.layer
    with scope_of(model):
        copy = ModelCopy(found.name, model, {id(classifier): Other(make(classifier), carry)})
        return copy.result(), [copy.copies[id(layer)] for layer in (*found.path, classifier)]
