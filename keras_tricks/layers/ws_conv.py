"""Convolutions with scaled weight standardisation, which train without batch normalisation.

    Ŵ = gain · (W - mean(W)) / sqrt(max(var(W) · fan_in, epsilon))        mean, var, gain per output channel

Qiao et al., 2019, arXiv:1903.10520 (the idea); Brock et al., 2021, arXiv:2101.08692 (the scaling by fan-in and the
gain). Equals `WSConv2D` of google-deepmind/deepmind-research, nfnets/base.py.
"""

import math

import keras
from keras import ops

from keras_tricks._arguments import check_flag, check_number
from keras_tricks.layers._signature import with_arguments_of


class _StandardizesKernel:
    """Puts weight standardisation into a Keras layer: the kernel it stores is raw, the one it uses is not."""

    # The Keras layer that this is a drop-in for, and how many of its kernel's last axes count the output units.
    plain = None
    unit_axes = 1

    def __init__(self, *args, gain=True, epsilon=1e-4, **kwargs):
        super().__init__(*args, **kwargs)
        self.use_gain = check_flag("gain", gain)
        self.epsilon = check_number("epsilon", epsilon, above=0)

    def build(self, input_shape):
        # Keras would add LoRA's weights here and then let no other weight in.
        lora_rank = getattr(self, "lora_rank", None)
        if lora_rank:
            self.lora_rank = None
        super().build(input_shape)
        shape = tuple(self.kernel.shape)
        if math.prod(shape[: -self.unit_axes]) == 1:
            raise ValueError(
                f"{self.__class__.__name__} {self.name!r}: a kernel of shape {shape} has one weight for each output "
                "unit, and standardising a single weight makes it 0. Use the plain "
                f"keras.layers.{self.plain.__name__} here."
            )
        self.gain = None
        if self.use_gain:
            # Of rank 1, even for depthwise kernels, so that optimizers leave it out of weight decay.
            units = math.prod(shape[-self.unit_axes :])
            self.gain = self.add_weight(
                name="gain", shape=(units,), initializer="ones", dtype=self.dtype, autocast=False
            )
        if lora_rank:
            self.enable_lora(lora_rank, lora_alpha=self.lora_alpha)

    def add_weight(self, *args, name=None, autocast=True, **kwargs):
        """Keras' `add_weight`; under mixed precision the kernel stays float32 until it is standardised."""
        return super().add_weight(*args, name=name, autocast=autocast and name != "kernel", **kwargs)

    def standardize(self, kernel):
        """The kernel that is used, in float32 or wider: mean 0 and, unless clamped, squares that sum to gain²."""
        kernel = ops.cast(kernel, "float32" if self.compute_dtype != "float64" else "float64")
        axes = tuple(range(len(kernel.shape) - self.unit_axes))
        mean = ops.mean(kernel, axes, keepdims=True)
        centred = kernel - mean
        variance = ops.mean(ops.square(centred), axes, keepdims=True)
        fan_in = math.prod(kernel.shape[: -self.unit_axes])
        scale = ops.rsqrt(ops.maximum(variance * fan_in, self.epsilon))
        if self.gain is not None:
            scale = scale * ops.reshape(ops.cast(self.gain, kernel.dtype), kernel.shape[-self.unit_axes :])
        return centred * scale

    def fused(self):
        """The plain Keras layer that computes the same, with the standardised kernel: a list of one, built."""
        if not self.built:
            raise ValueError(f"{self.__class__.__name__} {self.name!r} is not built yet, so it has no kernel to fuse.")
        config = super().get_config()
        config.pop("lora_rank", None)
        config.pop("lora_alpha", None)
        layer = self.plain.from_config(config)
        layer.build(self.get_build_config()["input_shape"])
        layer.set_weights([self.standardize(self.kernel)] + ([self.bias] if self.use_bias else []))
        return [layer]

    # Keras' convolutions and `Dense` save their own weights, with LoRA's merged into the kernel; `gain` comes on top.
    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.built and self.gain is not None:
            store["gain"] = self.gain

    def load_own_variables(self, store):
        super().load_own_variables(store)
        if self.built and self.gain is not None:
            self.gain.assign(store["gain"])

    def get_config(self):
        return {**super().get_config(), "gain": self.use_gain, "epsilon": self.epsilon}


class _Convolution:
    """The call of convolutions of any rank with the standardised kernel."""

    def convolution_op(self, inputs, kernel):
        return ops.conv(
            inputs,
            ops.cast(self.standardize(kernel), self.compute_dtype),
            strides=list(self.strides),
            padding="valid" if self.padding == "causal" else self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )

    def call(self, inputs):
        if self.padding == "causal":
            before = self.dilation_rate[0] * (self.kernel_size[0] - 1)
            along = 1 if self.data_format == "channels_last" else 2
            inputs = ops.pad(inputs, [[before, 0] if axis == along else [0, 0] for axis in range(3)])
        outputs = self.convolution_op(inputs, self.kernel)
        if self.use_bias and self.data_format == "channels_last":
            outputs = ops.add(outputs, self.bias)
        elif self.use_bias:
            # Not `ops.add`: on TensorFlow it adds along the last axis, if that is as long as the bias.
            outputs = outputs + ops.reshape(self.bias, (1, -1) + (1,) * self.rank)
        return self.activation(outputs)


_DOC = """{what} with scaled weight standardisation: a drop-in for `keras.layers.{plain}`.

    The kernel is centred and divided by its root-mean-square size before each use, per output unit:
    `Ŵ = gain · (W - mean(W)) / sqrt(max(var(W) · fan_in, epsilon))`. With gain 1, inputs of mean 0 and variance 1 give
    outputs of variance 1, whatever the optimizer did to `W`; normalisation layers are not needed, at any batch size.
    Under mixed precision the standardisation runs in float32.

    Weights: those of `{plain}`, and `gain` of shape `{gain}`.

    Args:
        *args: Those of `{plain}`, by position or keyword.
        gain: Whether to learn a scale for each output unit, starting at 1. Defaults to `True`.
        epsilon: Lower bound of `var(W) · fan_in`: a kernel smaller than this is not blown up. Defaults to `1e-4`.
        **kwargs: Those of `{plain}`, such as `dtype` and `name`.

    Input shape, output shape: those of `{plain}`.

    Raises:
        TypeError: If `gain` is not True or False, or `epsilon` not a number.
        ValueError: If `epsilon` is not positive, and at build for a kernel with one weight per output unit.

    Example:
    >>> import numpy as np, keras_tricks as kt
    >>> layer = kt.layers.WS{plain}({args})
    >>> tuple(layer(np.ones({shape}, "float32")).shape)
    {output}

    Reference:
        Andrew Brock, Soham De, Samuel L. Smith, "Characterizing signal propagation to close the performance gap in
        unnormalized ResNets", 2021, arXiv:2101.08692.
    """


def _documented(what, gain, args, shape, output):
    """Gives a class its docstring and its signature."""

    def decorate(cls):
        cls.__doc__ = _DOC.format(what=what, plain=cls.plain.__name__, gain=gain, args=args, shape=shape, output=output)
        return with_arguments_of(cls.plain)(cls)

    return decorate


@keras.saving.register_keras_serializable(package="keras_tricks")
@_documented("1D convolution", "(filters,)", '8, 3, padding="same"', (2, 9, 4), (2, 9, 8))
class WSConv1D(_StandardizesKernel, _Convolution, keras.layers.Conv1D):
    plain = keras.layers.Conv1D


@keras.saving.register_keras_serializable(package="keras_tricks")
@_documented("2D convolution", "(filters,)", '8, 3, padding="same"', (2, 9, 9, 4), (2, 9, 9, 8))
class WSConv2D(_StandardizesKernel, _Convolution, keras.layers.Conv2D):
    plain = keras.layers.Conv2D


@keras.saving.register_keras_serializable(package="keras_tricks")
@_documented("3D convolution", "(filters,)", '8, 3, padding="same"', (2, 5, 5, 5, 4), (2, 5, 5, 5, 8))
class WSConv3D(_StandardizesKernel, _Convolution, keras.layers.Conv3D):
    plain = keras.layers.Conv3D


@keras.saving.register_keras_serializable(package="keras_tricks")
@_documented(
    "2D depthwise convolution", "(channels * depth_multiplier,)", '3, padding="same"', (2, 9, 9, 4), (2, 9, 9, 4)
)
class WSDepthwiseConv2D(_StandardizesKernel, keras.layers.DepthwiseConv2D):
    plain = keras.layers.DepthwiseConv2D
    # A kernel of shape (height, width, channels, depth_multiplier): each output sees height · width inputs.
    unit_axes = 2

    # `DepthwiseConv2D` saves all weights that it has, as any layer does.
    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables

    def call(self, inputs):
        outputs = ops.depthwise_conv(
            inputs,
            ops.cast(self.standardize(self.kernel), self.compute_dtype),
            strides=self.strides,
            padding=self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )
        if self.use_bias:
            outputs = outputs + (self.bias if self.data_format == "channels_last" else self.bias[:, None, None])
        return self.activation(outputs)


@keras.saving.register_keras_serializable(package="keras_tricks")
@_documented("Densely connected layer", "(units,)", "8", (2, 4), (2, 8))
class WSDense(_StandardizesKernel, keras.layers.Dense):
    plain = keras.layers.Dense

    def call(self, inputs, training=None):
        outputs = ops.matmul(inputs, ops.cast(self.standardize(self.kernel), self.compute_dtype))
        if self.use_bias:
            outputs = outputs + self.bias
        return self.activation(outputs)

    def quantize(self, mode=None, **kwargs):
        """Refused: what would be quantized is the raw kernel, which is not the one that is used."""
        raise ValueError(
            f"WSDense {self.name!r} cannot be quantized: its kernel is standardised at each use. Make it a plain "
            "keras.layers.Dense first: `layer.fused()`, or `keras_tricks.models.fuse(model)`."
        )
