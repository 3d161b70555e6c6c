"""Convolutions with scaled weight standardisation, which train without batch normalisation.

    Ŵ = gain · (W - mean(W)) / sqrt(max(var(W) · fan_in, epsilon))        mean, var, gain per output channel

Qiao et al., 2019, arXiv:1903.10520 (the idea); Brock et al., 2021, arXiv:2101.08692 (the scaling by fan-in and the
gain). Equals `WSConv2D` of google-deepmind/deepmind-research, nfnets/base.py.
"""

import math

import keras
from keras import ops


class _StandardizesKernel:
    """Puts weight standardisation into a Keras convolution: the kernel it stores is raw, the one it uses is not."""

    def __init__(self, *args, gain=True, epsilon=1e-4, **kwargs):
        if not epsilon > 0:
            raise ValueError(f"`epsilon` must be positive. Received: epsilon={epsilon}")
        super().__init__(*args, **kwargs)
        self.use_gain = bool(gain)
        self.epsilon = epsilon

    def build(self, input_shape):
        channels = input_shape[-1 if self.data_format == "channels_last" else 1]
        self.fan_in = math.prod(self.kernel_size) * channels // self.groups
        if self.fan_in == 1:
            raise ValueError(
                f"{self.__class__.__name__} {self.name!r}: a kernel of size {self.kernel_size} on {channels} input "
                f"channels in {self.groups} groups has one weight for each output channel, and standardising a single "
                "weight makes it 0. Use the plain Keras convolution here."
            )
        # Keras would add LoRA's weights here and then let no other weight in.
        lora_rank, self.lora_rank = self.lora_rank, None
        super().build(input_shape)
        self.gain = None
        if self.use_gain:
            self.gain = self.add_weight(
                name="gain", shape=(self.filters,), initializer="ones", dtype=self.dtype, autocast=False
            )
        if lora_rank:
            self.enable_lora(lora_rank, lora_alpha=self.lora_alpha)

    def add_weight(self, *args, name=None, autocast=True, **kwargs):
        """Keras' `add_weight`; under mixed precision the kernel stays float32 until it is standardised."""
        return super().add_weight(*args, name=name, autocast=autocast and name != "kernel", **kwargs)

    def convolution_op(self, inputs, kernel):
        return ops.conv(
            inputs,
            ops.cast(self.standardize(kernel), self.compute_dtype),
            strides=list(self.strides),
            padding="valid" if self.padding == "causal" else self.padding,
            dilation_rate=self.dilation_rate,
            data_format=self.data_format,
        )

    def standardize(self, kernel):
        """The kernel that convolves, in float32 or wider: mean 0 and, unless clamped, squares that sum to gain²."""
        kernel = ops.cast(kernel, "float32" if self.compute_dtype != "float64" else "float64")
        axes = tuple(range(len(kernel.shape) - 1))
        mean = ops.mean(kernel, axes, keepdims=True)
        centred = kernel - mean
        variance = ops.mean(ops.square(centred), axes, keepdims=True)
        scale = ops.rsqrt(ops.maximum(variance * self.fan_in, self.epsilon))
        if self.gain is not None:
            scale = scale * ops.cast(self.gain, kernel.dtype)
        return centred * scale

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


_DOC = """{rank}D convolution with scaled weight standardisation: a drop-in for `keras.layers.Conv{rank}D`.

    The kernel is centred and divided by its root-mean-square size before each use, per output channel:
    `Ŵ = gain · (W - mean(W)) / sqrt(max(var(W) · fan_in, epsilon))`. With gain 1, inputs of mean 0 and variance 1 give
    outputs of variance 1, whatever the optimizer did to `W`; normalisation layers are not needed, at any batch size.
    Under mixed precision the standardisation runs in float32.

    Weights: those of `Conv{rank}D`, and `gain` of shape `(filters,)`.

    Args:
        *args: Those of `keras.layers.Conv{rank}D`, by position or keyword.
        gain: Whether to learn a scale for each output channel, starting at 1. Defaults to `True`.
        epsilon: Lower bound of `var(W) · fan_in`: a kernel smaller than this is not blown up. Defaults to `1e-4`.
        **kwargs: Those of `keras.layers.Conv{rank}D`.

    Input shape, output shape: those of `Conv{rank}D`.

    Raises:
        ValueError: If `epsilon` is not positive, and at build for a kernel with one weight an output channel.

    Example:

    >>> import numpy as np, keras_tricks as kt
    >>> layer = kt.layers.WSConv{rank}D(8, 3, padding="same")
    >>> tuple(layer(np.ones({shape}, "float32")).shape)
    {output}

    Reference:
        Andrew Brock, Soham De, Samuel L. Smith, "Characterizing signal propagation to close the performance gap in
        unnormalized ResNets", 2021, arXiv:2101.08692.
    """


@keras.saving.register_keras_serializable(package="keras_tricks")
class WSConv1D(_StandardizesKernel, keras.layers.Conv1D):
    __doc__ = _DOC.format(rank=1, shape=(2, 9, 4), output=(2, 9, 8))

    def call(self, inputs):
        # Conv1D convolves in its own `call`; the one that it overrides goes through `convolution_op`, as 2D and 3D do.
        if self.padding == "causal":
            padding = [[0, 0], [0, 0], [0, 0]]
            padding[1 if self.data_format == "channels_last" else 2][0] = self.dilation_rate[0] * (
                self.kernel_size[0] - 1
            )
            inputs = ops.pad(inputs, padding)
        return super(keras.layers.Conv1D, self).call(inputs)


@keras.saving.register_keras_serializable(package="keras_tricks")
class WSConv2D(_StandardizesKernel, keras.layers.Conv2D):
    __doc__ = _DOC.format(rank=2, shape=(2, 9, 9, 4), output=(2, 9, 9, 8))


@keras.saving.register_keras_serializable(package="keras_tricks")
class WSConv3D(_StandardizesKernel, keras.layers.Conv3D):
    __doc__ = _DOC.format(rank=3, shape=(2, 5, 5, 5, 4), output=(2, 5, 5, 5, 8))
