"""Activations forgotten in the forward pass and computed again in the backward pass: less memory, more arithmetic.

    forward:    y, s' = f(x, s)               keeps x and s only; s' is assigned
    backward:   run f(x, s) again, now with its activations kept; gradient; its s' is dropped

s is what the layer changes while it runs: moving statistics and the states of seed generators. Since the second run
starts from the s of the first, Dropout draws the same mask and batch normalisation counts each batch once.

Chen et al., 2016, arXiv:1604.06174. `keras.remat` is the engine; used alone it gives Dropout a new mask in the second
run and lets batch normalisation count each batch twice.
"""

import functools
import inspect

import keras
from keras import ops, tree

from keras_tricks._keras.masks import mask_of, with_mask
from keras_tricks._keras.scopes import as_within, assigned, open_scope, pure_scope
from keras_tricks.layers._shared import serialized


@keras.saving.register_keras_serializable(package="keras_tricks")
class Recompute(keras.layers.Wrapper):
    """Runs a layer, block or model without keeping its activations; the backward pass computes them again.

    Losses, gradients, moving statistics and dropout masks are those of the wrapped layer. In training, only its inputs
    and its state `s` (moving statistics, seeds) are kept: `y, s' = f(x, s)` runs again in the backward pass. Where
    `training` is not true, the layer is simply called.

    Wrap blocks of several layers, not single layers: what lies between two wrapped layers is kept. Wrapping a whole
    model in one saves nothing. `keras_tricks.recompute` cuts a model into blocks.

    The layer's random numbers must come from a `keras.random.SeedGenerator` of its own, as in Keras' layers. Side
    effects in Python run twice.

    Args:
        layer: A `keras.Layer`, which may be a `keras.Model` or another `Recompute`, built or not.
        **kwargs: `name`, `trainable` and `activity_regularizer`, as in `keras.Layer`. The dtype is that of `layer`.

    Call arguments: those of `layer`, and `training`.

    Input shape, output shape: those of `layer`. Weights: those of `layer`.

    Raises:
        TypeError: If `layer` is not a `keras.Layer`.
        ValueError: If `dtype` is given; in a training call, if the layer assigns a trainable weight, or a variable
            that is not its own.
        RuntimeError: In a training call on a backend other than TensorFlow and JAX.

    Example:
    >>> import keras, keras_tricks as kt
    >>> block = keras.Sequential([keras.layers.Dense(64, activation="gelu"), keras.layers.Dropout(0.1)])
    >>> inputs = keras.Input((64,))
    >>> model = keras.Model(inputs, kt.layers.Recompute(block)(inputs))
    >>> model.output_shape
    (None, 64)

    Reference:
        Tianqi Chen, Bing Xu, Chiyuan Zhang, Carlos Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016,
        arXiv:1604.06174.
    """

    # Keras then builds the inner layer by a trial call, with all of its arguments.
    build = keras.Layer.build

    def __init__(self, layer, **kwargs):
        if not isinstance(layer, keras.Layer):
            raise TypeError(f"`Recompute` expects a keras.Layer. Received: {layer!r}")
        if kwargs.pop("dtype", None) is not None:
            raise ValueError(
                f"`Recompute` has the dtype of the layer that it wraps: give `dtype` to layer {layer.name!r}."
            )
        # Keras finds arguments, shapes and masks by the signature of `call`, and reads it once, in its own `__init__`.
        self.call = _with_signature_of(layer, self._call)
        # Inputs and variables reach the inner layer uncast: it has a dtype policy of its own.
        super().__init__(layer, dtype=layer.compute_dtype, autocast=False, **kwargs)
        self.supports_masking = True

    def _call(self, *args, **kwargs):
        if not kwargs.get("training") or not self.layer.built:
            return self.layer(*args, **kwargs)
        return _recomputed(self, self.layer, self.layer, args, kwargs)

    def compute_output_spec(self, *args, **kwargs):
        if "training" not in inspect.signature(self.layer.call).parameters:
            kwargs.pop("training", None)
        return self.layer.compute_output_spec(*args, **kwargs)

    def compute_output_shape(self, *args, **kwargs):
        return self.layer.compute_output_shape(*args, **kwargs)

    def compute_mask(self, inputs, previous_mask):
        return self.layer.compute_mask(inputs, previous_mask) if self.layer.supports_masking else None

    def get_config(self):
        config = keras.Layer.get_config(self)
        del config["dtype"]
        return {**config, "layer": serialized(self.layer)}


def recompute_call(call):
    """`Recompute` as a decorator of a layer's `call`: its activations are computed again in the backward pass.

    For a layer of your own that should always forget its activations. Losses, gradients, moving statistics, masks and
    dropout are those of the layer without it, as with `Recompute`; the layer stays what it is, so its files and weights
    do not change.

    Args:
        call: The method `call` of a `keras.Layer`, with or without an argument `training`.

    Returns:
        The method to use instead.

    Raises:
        ValueError: In a training call, if the layer assigns a trainable weight, or a variable that is not its own.
        RuntimeError: In a training call on a backend other than TensorFlow and JAX.

    Example:
    >>> import keras, keras_tricks as kt
    >>> class FeedForward(keras.layers.Layer):
    ...     def __init__(self, **kwargs):
    ...         super().__init__(**kwargs)
    ...         self.inner, self.outer = keras.layers.Dense(256, activation="gelu"), keras.layers.Dense(64)
    ...
    ...     @kt.layers.recompute_call
    ...     def call(self, x):
    ...         return x + self.outer(self.inner(x))
    >>> model = keras.Sequential([keras.Input((64,)), FeedForward(), FeedForward()])

    Reference:
        Tianqi Chen, Bing Xu, Chiyuan Zhang, Carlos Guestrin, "Training Deep Nets with Sublinear Memory Cost", 2016,
        arXiv:1604.06174.
    """
    signature = inspect.signature(call)
    takes_training = "training" in signature.parameters
    if not takes_training:  # Keras passes it to a `call` that has it
        parameters = list(signature.parameters.values())
        at = len(parameters) - (parameters[-1].kind is inspect.Parameter.VAR_KEYWORD)
        parameters.insert(at, inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY, default=None))
        signature = signature.replace(parameters=parameters)

    @functools.wraps(call)
    def recomputing_call(self, *args, **kwargs):
        training = signature.bind(self, *args, **kwargs).arguments.get("training")
        if not takes_training:
            kwargs.pop("training", None)
        symbols = any(isinstance(x, keras.KerasTensor) for x in tree.flatten((args, kwargs)))
        if symbols or not training or not self.built:
            return call(self, *args, **kwargs)

        def run(*args, **kwargs):
            return as_within(self, functools.partial(call, self, *args, **kwargs), training)

        return _recomputed(self, self, run, args, kwargs)

    recomputing_call.__signature__ = signature
    return recomputing_call


def _recomputed(holder, layer, call, args, kwargs):
    """`call(*args, **kwargs)` of a layer, run again in the backward pass; its losses become those of `holder`."""
    if keras.backend.backend() not in ("tensorflow", "jax"):
        raise RuntimeError(f"`Recompute` trains on TensorFlow and JAX; this is {keras.backend.backend()}.")
    inputs = tree.flatten((args, kwargs))
    masks = [mask_of(x) if ops.is_tensor(x) else None for x in inputs]
    variables = [*layer.variables, *layer.metrics_variables]
    state = [v for v in variables if not _is_watched(v)]
    leaves = [*inputs, *masks, *(_read(v) for v in state)]
    outer = open_scope()
    form = {}

    def run(token, *floats):
        floats = iter(floats)
        now = [next(floats) if _is_float(x) else _after(token, x) for x in leaves]
        xs, ms, values = now[: len(inputs)], now[len(inputs) : 2 * len(inputs)], now[2 * len(inputs) :]
        xs = [x if m is None else with_mask(x, mask=m) for x, m in zip(xs, ms, strict=True)]
        scope = pure_scope(zip(state, values, strict=True), outer)
        before = dict(scope.state_mapping)
        with scope:
            given_args, given_kwargs = tree.pack_sequence_as((args, kwargs), xs)
            result = call(*given_args, **given_kwargs)
        outputs = tree.flatten(result)
        form.setdefault("structure", tree.map_structure(lambda y: 0, result))
        form.setdefault("inner_losses", scope.losses)
        form["is_float"] = [_is_float(y) for y in outputs]
        others = {
            "outputs": [None if _is_float(y) else y for y in outputs],
            "masks": [mask_of(y) if ops.is_tensor(y) else None for y in outputs],
            "state": _assigned(layer, scope, before, variables),
        }
        return [y for y in outputs if _is_float(y)] + scope.losses, others

    floats, others = _remat(run)(ops.zeros((), "float32"), *(x for x in leaves if _is_float(x)))
    for index, value in others["state"].items():
        variables[index].assign(value)
    floats = iter(floats)
    outputs = [next(floats) if f else y for f, y in zip(form["is_float"], others["outputs"], strict=True)]
    if outer is not None:
        # Keras identifies losses by `id`: while the scope that gets the outer ones is open, no other loss may get
        # the `id` of an inner one that is gone.
        outer.losses_of_recompute = [*getattr(outer, "losses_of_recompute", ()), form["inner_losses"]]
    for loss in floats:
        holder.add_loss(loss)
    outputs = [y if m is None else with_mask(y, mask=m) for y, m in zip(outputs, others["masks"], strict=True)]
    return tree.pack_sequence_as(form["structure"], outputs)


def _assigned(layer, scope, before, variables):
    """What the run assigned, by the variable's position in `variables`."""
    values = assigned(scope, before, variables)
    if None in values:
        raise ValueError(
            f"`Recompute`: layer {layer.name!r} assigns a variable that it does not own, so its second "
            "run would differ from the first. Random numbers do this without a seed generator: set "
            "`self.seed = keras.random.SeedGenerator()` in the layer and pass `seed=self.seed`. A stateful "
            "recurrent layer does it too: leave it outside. Other variables must be attributes of the layer."
        )
    for v in (variables[position] for position in values):
        if v.trainable or _is_watched(v):
            raise ValueError(
                f"`Recompute`: layer {layer.name!r} assigns its trainable weight {v.path!r} while it is "
                "called (spectral normalisation does so). Its gradient cannot be recomputed: leave this layer "
                "outside of `Recompute`."
            )
    return values


def _with_signature_of(layer, function):
    signature = inspect.signature(layer.call)
    parameters = list(signature.parameters.values())
    names = [p.name for p in parameters]
    stars = {p.kind: p.name for p in parameters if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if "training" not in names:
        at = len(names) - (inspect.Parameter.VAR_KEYWORD in stars)
        parameters.insert(at, inspect.Parameter("training", inspect.Parameter.KEYWORD_ONLY, default=None))

    def call(*args, **kwargs):
        # Keras' trial call names every argument, `args` and `kwargs` too.
        for kind, name in stars.items():
            if name in kwargs and kind == inspect.Parameter.VAR_POSITIONAL:
                rest = kwargs.pop(name)
                args = (*(kwargs.pop(n) for n in names[: names.index(name)] if n in kwargs), *rest)
            elif name in kwargs:
                kwargs.update(kwargs.pop(name))
        return function(*args, **kwargs)

    call.__signature__ = signature.replace(parameters=parameters)
    return call


def _remat(function):
    """`keras.remat` of `function`, which returns what has a gradient and what has none."""
    if keras.backend.backend() != "tensorflow":
        return keras.remat(function)

    def run(*tensors):
        # TensorFlow would ask for the gradient of every output, even of integers: outputs without one go around it.
        aside = []

        def with_gradient(*tensors):
            outputs, others = function(*tensors)
            if not aside:
                aside.append(others)
            return outputs

        return keras.remat(with_gradient)(*tensors), aside[0]

    return run


def _is_watched(v):
    """Whether TensorFlow finds this weight's gradient by itself, which it does for its own variables only."""
    return getattr(v.value, "trainable", False)


def _read(v):
    return ops.copy(v.value) if hasattr(v.value, "assign") else v.value


def _is_float(x):
    return ops.is_tensor(x) and not _is_sparse(x) and keras.backend.is_float_dtype(x.dtype)


def _is_sparse(x):
    return hasattr(x, "values")


def _after(token, x):
    """`x`, which the second run cannot use before the gradient has come this far: `token` is 0, but known only then."""
    if not ops.is_tensor(x) or _is_sparse(x) or keras.backend.standardize_dtype(x.dtype) == "string":
        return x
    if keras.backend.standardize_dtype(x.dtype) == "bool":
        return ops.logical_or(x, token != 0)
    return x + ops.cast(token, x.dtype)
