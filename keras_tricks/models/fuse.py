"""A trained model rewritten for deployment: the tricks of training folded into the weights of plain Keras layers.

    gamma · (conv(x, K) + b - mean) / sqrt(variance + epsilon) + beta  =  conv(x, K·s) + (b - mean)·s + beta
    s = gamma / sqrt(variance + epsilon)                  for each output channel
    x + alpha · (W·h + b)                              =  x + (alpha·W)·h + alpha·b

A layer with a method `fused()`, which returns plain Keras layers that compute the same at inference, gives way to
these. Then each batch normalisation is folded into the convolution before it, where that is exact: the two are called
once, nothing else sees what is between them, and the convolution has no activation. Arithmetic is in float64. Both
models then run on a probe batch, and a difference that rounding does not explain is an error.

No paper; folding batch normalisation is common knowledge, that of asymmetric branches is Ding et al., 2019,
arXiv:1908.03930.
"""

import collections
import dataclasses

import keras

from keras_tricks.layers.recompute import Recompute
from keras_tricks.layers.rezero import ReZero, ReZeroAdd
from keras_tricks.models._comparison import compare
from keras_tricks.models._config import float_policy, foreign, in_policy, is_float_policy, without_foreign_training
from keras_tricks.models._copy import copy_weights, enter, plain_copy, rerun
from keras_tricks.models._folding import SCALE_FREELY, FusedCall, fold, folded_config, target_of
from keras_tricks.models._graph import described, edges_of, is_keras, leaves, require_graph, runs_its_graph, trace
from keras_tricks.models._report import as_text
from keras_tricks.models._segment import Segment


def fuse(model, return_report=False, probe=None, dtype=None):
    """A copy of a model for deployment, in plain Keras layers that compute the same with less work.

    Folds `ACConv2D`, weight-standardised convolutions and dense layers, `ExtendedBatchNormalization`,
    `ScaledActivation`, `NormalizedDense` and any layer of yours that has a `fused()` method into plain Keras layers;
    `BatchNormalization` into the convolution or dense layer before it; the `alpha` of `ReZero` into the last linear
    layer of its branch, or into a `Rescaling`. `Recompute` is unwrapped. Models inside the model are fused in place.

    The result is a functional `keras.Model`, not compiled, with the same inputs, outputs, precision (but for `dtype`)
    and, for the layers that remain, names. Its file loads where this package is not installed. It computes what the
    model computes at inference; to train on, keep the model itself, which is not changed. Initializers, regularizers
    and constraints that are not Keras' own are left out.

    Args:
        model: A built Functional or Sequential `keras.Model`.
        return_report: Whether to return the report too. It is also `fused.fuse_report`. Print it to read it.
        probe: Inputs to compare the two models on, with a batch axis, as the model takes them. Defaults to two random
            examples: normal numbers, or 0 and 1 for integer inputs; axes of unknown size get 32.
        dtype: A dtype policy for the fused model to compute in, such as `"float32"`: LiteRT takes no model in mixed
            precision. Layers that do not compute in floating point, or are quantized, keep theirs. Defaults to `None`:
            each layer keeps its policy.

    Returns:
        The fused model; with `return_report=True`, the pair `(fused, report)`. The report is a frozen dataclass with
        `folded` (pairs of what and into what), `kept` (pairs of what and why), `layers` and `parameters` (before,
        after), and the largest difference of outputs, `absolute_difference` and `relative_difference` (to the largest
        output). A model with nothing to fold is copied, and its report says so.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
        ValueError: If the model is not built, or a subclassed one whose graph Keras does not know; if `dtype` is no
            policy that computes in floating point; if a layer of this package cannot be folded; if the model cannot run
            on the probe; if the outputs differ by more than five times (with `dtype`, 25 times) as much as they change
            when each weight is rounded in another way.

    Example:
    >>> import keras, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((8, 8, 3)), kt.layers.WSConv2D(4, 3), keras.layers.BatchNormalization()])
    >>> fused, report = kt.models.fuse(model, return_report=True)
    >>> [type(layer).__name__ for layer in fused.layers]
    ['InputLayer', 'Conv2D']
    >>> report.relative_difference < 1e-5
    True

    Reference:
        Xiaohan Ding, Yuchen Guo, Guiguang Ding, Jungong Han, "ACNet: Strengthening the Kernel Skeletons for Powerful
        CNN via Asymmetric Convolution Blocks", 2019, arXiv:1908.03930.
    """
    require_graph("fuse", model, "Build a functional model of the same layers, and fuse that.", without=("call",))
    fusion = _Fusion(None if dtype is None else float_policy(dtype))
    fused = fusion.fuse(model, model.name, None)
    _note_what_is_not_keras(fused, fusion.kept)
    # Rounding of activations in half precision, which the fused model does not do, came to up to eight times that
    # change.
    absolute, relative = compare(model, fused, probe, 5 if dtype is None else 25)
    report = FuseReport(
        folded=tuple(dict.fromkeys(fusion.folded)),
        kept=tuple(dict.fromkeys(fusion.kept)),
        layers=(len(leaves(model)), len(leaves(fused))),
        parameters=(model.count_params(), fused.count_params()),
        absolute_difference=absolute,
        relative_difference=relative,
    )
    fused.fuse_report = report
    return (fused, report) if return_report else fused


@dataclasses.dataclass(frozen=True)
class FuseReport:
    """What `fuse` did. Pairs of words: what was folded and into what; what stayed and why."""

    folded: tuple
    kept: tuple
    layers: tuple
    parameters: tuple
    absolute_difference: float
    relative_difference: float

    def __str__(self):
        (layers, left), (parameters, fewer) = self.layers, self.parameters
        summary = [
            f"layers {layers} -> {left}, parameters {parameters:,} -> {fewer:,}",
            f"largest difference of outputs {self.absolute_difference:.2g}, {self.relative_difference:.2g} of the "
            "largest output",
        ]
        if not self.folded:
            summary.append("nothing to fold: the result is a copy")
        return as_text(
            summary,
            folded=[f"{what} -> {into}" for what, into in self.folded],
            kept=[f"{what}: {why}" for what, why in self.kept],
        )


class _Fusion:
    """What a model and the models inside it share: a layer used in both has one copy."""

    def __init__(self, policy=None):
        self.policy = policy
        self.plain = {}
        self.copies = {}
        self.folded = []
        self.kept = []

    def fuse(self, model, name, input_dtype):
        inputs, calls, outputs = trace(model, input_dtype)
        graph = _Graph(self)
        outputs = graph.run(calls, {}, outputs)
        graph.fold(outputs)
        fused = graph.rebuild(inputs, outputs, {call.layer.name: call.layer for call in calls}, name)
        fused.dtype_policy = self.policy or model.dtype_policy
        return fused

    def inner(self, model, name):
        """A model inside the model, fused. Its inputs would cast what comes in to their own dtype."""
        return self.fuse(model, name, self.policy and self.policy.compute_dtype)

    def plain_layers(self, layer):
        if layer not in self.plain:
            plain = layer.fused()
            if not isinstance(plain, list) or not plain or not all(isinstance(p, keras.Layer) for p in plain):
                raise TypeError(
                    f"`fused()` of {described(layer)} must return a list of built Keras layers. Received: {plain!r}"
                )
            self.plain[layer] = plain
            self.folded.append((described(layer), ", ".join(described(p) for p in plain)))
        return self.plain[layer]

    def distributed(self, layer):
        """The layers for a `TimeDistributed`, with what is inside in plain layers."""
        if layer not in self.plain:
            inner = layer.layer
            if isinstance(inner, ReZero | Recompute):
                shape = layer.get_build_config()["input_shape"]
                x = keras.Input(batch_shape=(None, *shape[2:]), dtype=inner.compute_dtype)
                plain = [self.inner(keras.Model(x, inner(x), name=inner.name), inner.name)]
            elif isinstance(inner, keras.Layer) and callable(getattr(inner, "fused", None)):
                plain = self.plain_layers(inner)
            else:
                plain = [self.inner(inner, inner.name)] if runs_its_graph(inner) else [inner]
            names = [f"{layer.name}_{p.name}" for p in plain] if plain[1:] else [layer.name]
            self.plain[layer] = (
                [layer]
                if plain == [inner]
                else [keras.layers.TimeDistributed(p, name=name) for p, name in zip(plain, names, strict=True)]
            )
        return self.plain[layer]

    def copy(self, call, name):
        """A new layer for a call, the same one for each call of a shared layer; and whether it has its weights."""
        layer = call.layer
        if call.weights is not None:
            return self.new(layer, folded_config(call, name)), False
        nested = runs_its_graph(layer) and not call.training
        if runs_its_graph(layer) and call.training:
            self.kept.append((described(layer), "it is called with training=True, so nothing in it can be folded"))
        known = (layer, nested) in self.copies
        if not known:
            copy = self.inner(layer, name) if nested else self.new(layer, {**layer.get_config(), "name": name})
            self.copies[layer, nested] = copy
        return self.copies[layer, nested], known or nested

    def new(self, layer, config):
        if is_keras(type(layer).__module__):
            config = without_foreign_training(config)
        return plain_copy(layer, config if self.policy is None else in_policy(config, self.policy))

    def precision(self, layer):
        """What a layer will compute in."""
        policy = getattr(layer, "dtype_policy", None)
        return layer.compute_dtype if self.policy is None or not is_float_policy(policy) else self.policy.compute_dtype


class _Graph:
    """The calls of one model: collected with the tricks taken apart, then folded, then rebuilt."""

    def __init__(self, fusion):
        self.fusion = fusion
        self.calls = []
        self.owner = None
        self.alphas = []

    def run(self, calls, tensors, outputs, owner=None):
        """Takes over the calls of a model and returns its outputs; `tensors` says what stands for its inputs."""

        def apply(call, args, kwargs):
            self.owner = owner or call.layer
            return self.apply(call.layer, args, kwargs, call.outputs)

        return rerun(calls, outputs, apply, tensors)

    def apply(self, layer, args, kwargs, like=None):
        """Adds the calls that compute `layer(*args, **kwargs)`, whose outputs have the structure of `like`."""
        if type(layer) is keras.layers.TimeDistributed:
            first, *others = self.fusion.distributed(layer)
            made = self.add(first, args, kwargs, like)
            for other in others:
                made = self.add(other, (made,), {}, like)
            return made
        own = isinstance(layer, ReZero | ReZeroAdd | Recompute)
        if not own and not (isinstance(layer, keras.Layer) and callable(getattr(layer, "fused", None))):
            return self.add(layer, args, kwargs, like)
        if kwargs.get("training"):
            raise ValueError(
                f"{described(layer)} is called with training=True, so what it computes cannot be folded into fixed "
                "weights. Build the model without that argument and copy the weights over."
            )
        kwargs = {name: value for name, value in kwargs.items() if name != "training"}
        first = args[0] if args else kwargs.get("inputs")
        if isinstance(layer, Recompute):
            self.fusion.folded.append((described(layer), f"{described(layer.layer)}, unwrapped"))
            return self.inside(layer.layer, args, kwargs, like)
        if isinstance(layer, ReZero):
            return self.residual(layer, first, self.inside(layer.layer, args, kwargs, like))
        if isinstance(layer, ReZeroAdd):
            return self.residual(layer, *first)
        plain = self.fusion.plain_layers(layer)
        made = self.apply(plain[0], args, kwargs)
        for other in plain[1:]:
            made = self.apply(other, (made,), {})
        return made

    def inside(self, layer, args, kwargs, like):
        """The calls of a wrapped layer. Those of a wrapped model take its place."""
        if isinstance(layer, Segment):
            layer = layer.as_model()
        kwargs = {name: value for name, value in kwargs.items() if value is not None}
        if not runs_its_graph(layer) or kwargs.keys() - {"inputs"}:  # a mask, for example, is for the model as a whole
            return self.apply(layer, args, kwargs, like)
        inputs, calls, outputs = trace(layer)
        tensors = {}
        enter(tensors, inputs, args or kwargs)
        return self.run(calls, tensors, outputs, self.owner)

    def residual(self, layer, skip, branch):
        alpha = float(keras.ops.convert_to_numpy(layer.alpha))
        scale = keras.layers.Rescaling(alpha, name=f"{layer.name}_alpha", dtype=layer.dtype_policy)
        add = keras.layers.Add(name=layer.name, dtype=layer.dtype_policy)
        self.alphas.append(scale)
        self.fusion.folded.append((described(layer), f"{described(scale)}, {described(add)}"))
        return self.add(add, ([skip, self.add(scale, (branch,), {})],), {})

    def add(self, layer, args, kwargs, like=None):
        outputs = keras.tree.map_structure(lambda _: keras.KerasTensor(()), like)
        self.calls.append(FusedCall(layer, args, kwargs, outputs, self.owner))
        return outputs

    def fold(self, outputs):
        """Moves normalisations and alphas into the linear layers before them."""
        producers = {edge: call for call in self.calls for edge in call.gives}
        uses = collections.Counter([*edges_of(outputs), *(edge for call in self.calls for edge in call.takes)])
        times = collections.Counter(call.layer for call in self.calls)
        for call in list(self.calls):
            alpha = call.layer in self.alphas
            if not alpha and type(call.layer) is not keras.layers.BatchNormalization:
                continue
            through = SCALE_FREELY if alpha else ()
            target, why_not = target_of(call, producers, uses, times, through, self.fusion.precision)
            if why_not:
                self.fusion.kept.append((described(call.layer), why_not))
                continue
            fold(call, target)
            last = producers[call.input]
            last.outputs = call.outputs
            producers[call.outputs] = last
            self.calls.remove(call)
            self.fusion.folded.append((described(call.layer), described(target.layer)))

    def rebuild(self, inputs, outputs, names, model_name):
        """The model of these calls, every layer of it new. `names` says which name is kept for which layer."""
        layers = {}

        def make(call, args, kwargs):
            name = call.layer.name
            while layers.get(name, call.layer) is not call.layer or names.get(name, call.owner) is not call.owner:
                name = f"{call.owner.name}_{name}"
            layers[name] = call.layer
            layer, has_weights = self.fusion.copy(call, name)
            made = layer(*args, **kwargs)
            if not has_weights:
                _set_weights(layer, call)
            return made

        return keras.Model(inputs, rerun(self.calls, outputs, make), name=model_name)


def _set_weights(layer, call):
    if call.weights is None:
        if isinstance(call.layer, keras.Layer):
            copy_weights(call.layer, layer)
        return
    for name, value in call.weights.items():
        if value is not None:
            getattr(layer, name).assign(value)


def _note_what_is_not_keras(fused, kept):
    for layer in leaves(fused):
        for name in dict.fromkeys(foreign(keras.saving.serialize_keras_object(layer))):
            if name.startswith("keras_tricks"):
                raise ValueError(
                    f"{described(layer)} holds {name}, which `fuse` cannot turn into plain Keras layers there. Take "
                    "it out of the layer around it; or give that layer, if it is yours, a method `fused()` that "
                    "returns plain, built Keras layers."
                )
            where = "with safe_mode=False" if name == "a lambda" else "where it is registered"
            kept.append((described(layer), f"{name} is not Keras' own: the file loads {where}"))
