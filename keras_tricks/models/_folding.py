"""What comes after a linear layer, `x·scale + shift`, folded into its weights, where that is exact."""

import collections.abc
import dataclasses

import keras
import numpy as np

from keras_tricks.models._graph import Call, as_float64, described


@dataclasses.dataclass(eq=False)
class FusedCall(Call):
    """A call in the graph that is fused."""

    owner: keras.Operation  # the layer of the model that this call comes from
    weights: dict | None = None  # float64 values by name, once something was folded into the layer


@dataclasses.dataclass(frozen=True)
class _Linear:
    """Where the weights of a kind of layer are, and how its kernel is laid out."""

    kernel: str = "kernel"
    bias: str = "bias"
    uses_bias: str = "use_bias"  # the argument that says whether there is one
    others: tuple = ()
    config: dict = dataclasses.field(default_factory=dict)  # arguments that a layer with folded weights needs
    channels: collections.abc.Callable = lambda kernel: kernel.shape[-1:]  # the axes of output channels, (…, out)


_plain = _Linear()
_transposed = _Linear(channels=lambda kernel: (kernel.shape[-2], 1))  # kernel (..., out, in)
_depthwise = _Linear(channels=lambda kernel: kernel.shape[-2:])  # kernel (..., in, multiplier)
_separable = _Linear("pointwise_kernel", others=("depthwise_kernel",))
_normalization = _Linear(
    "gamma", "beta", "center", ("moving_mean", "moving_variance"), {"scale": True, "renorm": False}
)
_LINEAR = {
    keras.layers.Dense: _plain,
    keras.layers.Conv1D: _plain,
    keras.layers.Conv2D: _plain,
    keras.layers.Conv3D: _plain,
    keras.layers.Conv1DTranspose: _transposed,
    keras.layers.Conv2DTranspose: _transposed,
    keras.layers.Conv3DTranspose: _transposed,
    keras.layers.DepthwiseConv1D: _depthwise,
    keras.layers.DepthwiseConv2D: _depthwise,
    keras.layers.SeparableConv1D: _separable,
    keras.layers.SeparableConv2D: _separable,
    keras.layers.BatchNormalization: _normalization,
}
# Layers through which a scale may move.
SCALE_FREELY = (
    keras.layers.Dropout,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
    keras.layers.Flatten,
    keras.layers.Reshape,
    keras.layers.Permute,
    keras.layers.Identity,
)


def target_of(call, producers, uses, times, through, precision):
    """The call that can absorb a normalisation or an alpha; if there is none, `None` and why."""
    if times[call.layer] > 1:
        return None, "it is called several times"
    if call.training:
        return None, "it is called with training=True"
    edge = call.input
    while True:
        target = producers.get(edge)
        if target is None:
            return None, "it stands at an input of the model"
        layer = target.layer
        if type(layer) not in _LINEAR and type(layer) not in through:
            return None, f"it follows {described(layer)}, not a convolution or dense layer"
        if uses[edge] > 1:
            return None, f"the output of {described(layer)} is used elsewhere too"
        if times[layer] > 1:
            return None, f"{described(layer)} is called several times"
        if precision(layer) != precision(call.layer):
            return None, f"it computes in {call.layer.compute_dtype}, {described(layer)} in {layer.compute_dtype}"
        if type(layer) in _LINEAR:
            break
        edge = target.input
    if getattr(layer, "activation", None) not in (None, keras.activations.linear):
        return None, f"{described(layer)} has an activation"
    if layer.quantization_mode is not None:
        return None, f"{described(layer)} is quantized"
    if isinstance(call.layer, keras.layers.BatchNormalization):
        if _bias_would_be_elsewhere(call.layer):
            return None, f"Keras would add the bias of {described(layer)} along the last axis, which is as long"
        rank = call.layer.input_spec.ndim
        first = getattr(layer, "data_format", None) == "channels_first"
        axis = getattr(layer, "axis", 1 if first else -1)
        if call.layer.axis % rank != axis % rank:
            return None, f"its axis is not that of the channels of {described(layer)}"
    return target, None


def _bias_would_be_elsewhere(normalization):
    """Whether Keras may add a bias along the last axis, not the channels: on TensorFlow, if both are equally long."""
    shape = normalization.get_build_config()["input_shape"]
    channels = shape[normalization.axis]
    return (
        keras.backend.backend() == "tensorflow"
        and normalization.axis % len(shape) != len(shape) - 1
        and shape[-1] in (None, channels)
    )


def fold(call, target):
    """Folds `call`, which is x·scale + shift, into the weights of `target`."""
    linear = _LINEAR[type(target.layer)]
    if target.weights is None:
        names = (linear.kernel, linear.bias, *linear.others)
        weights = {name: as_float64(getattr(target.layer, name)) for name in names}
        if weights[linear.kernel] is None:  # a normalisation without gamma
            weights[linear.kernel] = np.ones_like(weights["moving_mean"])
        target.weights = weights
    scale, shift = _affine(call.layer)
    kernel, bias = target.weights[linear.kernel], target.weights[linear.bias]
    channels = linear.channels(kernel)
    scale = np.broadcast_to(scale, int(np.prod(channels)))
    target.weights[linear.kernel] = kernel * scale.reshape(channels)
    if bias is not None or np.any(shift):
        target.weights[linear.bias] = (0.0 if bias is None else bias) * scale + shift


def _affine(layer):
    if isinstance(layer, keras.layers.Rescaling):
        return layer.scale, 0.0
    scale = 1 / np.sqrt(as_float64(layer.moving_variance) + layer.epsilon)
    if layer.gamma is not None:
        scale = scale * as_float64(layer.gamma)
    shift = -as_float64(layer.moving_mean) * scale
    if layer.beta is not None:
        shift = shift + as_float64(layer.beta)
    return scale, shift


def folded_config(call, name):
    linear = _LINEAR[type(call.layer)]
    # LoRA is merged into the kernel already.
    config = {key: value for key, value in call.layer.get_config().items() if not key.startswith("lora_")}
    return config | {**linear.config, linear.uses_bias: call.weights[linear.bias] is not None, "name": name}
