"""Batch normalisation with one variance for all channels, which small batches estimate well.

    mean[c]  = mean of x over all axes but the channels
    variance = mean of (x - mean)² over all axes                   one number: the mean of the channels' variances
    y        = gamma · (x - mean) / sqrt(variance + epsilon) + beta

Luo et al., 2020, arXiv:2003.05569. There is no official code; the text leaves open what the variance is centred on.
Here each channel is centred on its own mean, so outputs before gamma and beta have mean square 1. Moments are taken in
two passes, across replicas too: E[x²] - E[x]² in float32 loses the variance next to a large mean.
"""

import math

import keras
from keras import ops

from keras_tricks._arguments import check_number
from keras_tricks._keras.replicas import sum_over_replicas
from keras_tricks.layers._signature import with_arguments_of


@keras.saving.register_keras_serializable(package="keras_tricks")
@with_arguments_of(keras.layers.BatchNormalization)
class ExtendedBatchNormalization(keras.layers.BatchNormalization):
    """Batch normalisation with a mean for each channel and one variance for all of them.

    In training: `y = gamma · (x - mean) / sqrt(variance + epsilon) + beta`, where `mean` is the mean of a channel and
    `variance` the mean of `(x - mean)²` over everything, channels too. At inference the moving averages take their
    place. The variance is one number from C times as many values, so it is steady at batches of 2 or 4. Channels keep
    their sizes relative to each other until `gamma` changes them. Statistics are computed in float32 or wider.

    Arguments, masks, `training` and `trainable` are those of `keras.layers.BatchNormalization`, and so are the
    weights' names. `moving_variance` is a scalar, as the variance is, so weights of a BatchNormalization do not load
    into this layer: `from_batch_normalization` converts them. `fused` goes the other way.

    Args:
        *args: Those of `BatchNormalization`, by position or keyword.
        synchronized: Whether replicas of a `tf.distribute` strategy share their statistics, which then are those of the
            whole batch. TensorFlow only. Defaults to `False`.
        **kwargs: Those of `keras.layers.BatchNormalization`. `renorm=True` is refused.

    Input shape, output shape: any rank, with the same output shape. The size of the channel axis must be known.

    Raises:
        ValueError: For `renorm=True`; for `momentum` outside [0, 1] or a negative `epsilon`; for `synchronized=True`
            on another backend; at build if there is no channel axis; if the mask's rank is not one less than the
            inputs'.

    Example:
    >>> import numpy as np, keras_tricks as kt
    >>> layer = kt.layers.ExtendedBatchNormalization()
    >>> x = np.array([[0.0, 10.0], [2.0, 16.0]], "float32")
    >>> y = np.array(layer(x, training=True))          # means 1 and 13, variance (1 + 9) / 2
    >>> [[round(float(v), 2) for v in row] for row in y]
    [[-0.45, -1.34], [0.45, 1.34]]

    Reference:
        Chunjie Luo, Jianfeng Zhan, Lei Wang, Wanling Gao, "Extended Batch Normalization", 2020, arXiv:2003.05569.
    """

    def __init__(self, *args, synchronized=False, **kwargs):
        super().__init__(*args, synchronized=synchronized, **kwargs)
        if getattr(self, "renorm", False):  # Keras has it since 3.14
            raise ValueError(
                "`ExtendedBatchNormalization` has no batch renormalisation: its correction is made for one variance a "
                "channel. Use `renorm=False`, or `keras.layers.BatchNormalization(renorm=True)`."
            )
        self.momentum = check_number("momentum", self.momentum, at_least=0, at_most=1)
        self.epsilon = check_number("epsilon", self.epsilon, at_least=0)

    @classmethod
    def from_batch_normalization(cls, layer):
        """A layer that computes what a built `keras.layers.BatchNormalization` computes at inference.

        `moving_variance` becomes the mean of the channels' variances, and `gamma` absorbs the difference:
        `gamma · sqrt(mean variance + epsilon) / sqrt(variance + epsilon)`. A layer with `scale=False` gets a `gamma`.

        Args:
            layer: A built `keras.layers.BatchNormalization`.

        Returns:
            An `ExtendedBatchNormalization` of the same name.

        Raises:
            TypeError: If `layer` is not a plain `BatchNormalization`.
            ValueError: If it is not built.
        """
        if not isinstance(layer, keras.layers.BatchNormalization) or isinstance(layer, ExtendedBatchNormalization):
            raise TypeError(f"Expected a keras.layers.BatchNormalization. Received: {layer!r}")
        _require_built(layer)
        extended = cls.from_config({**layer.get_config(), "scale": True})
        extended.build(layer.get_build_config()["input_shape"])
        variance = _float64(layer.moving_variance)
        gamma = _float64(layer.gamma) if layer.scale else 1.0
        extended.gamma.assign(gamma * ((variance.mean() + layer.epsilon) / (variance + layer.epsilon)) ** 0.5)
        if layer.center:
            extended.beta.assign(layer.beta)
        extended.moving_mean.assign(layer.moving_mean)
        extended.moving_variance.assign(variance.mean())
        return extended

    def fused(self):
        """Plain Keras layers that compute the same at inference.

        Returns:
            A list with one built `keras.layers.BatchNormalization` of the same name, whose variances are all the same.

        Raises:
            ValueError: If this layer is not built.
        """
        _require_built(self)
        plain = keras.layers.BatchNormalization.from_config(self.get_config())
        plain.build(self.get_build_config()["input_shape"])
        *others, variance = self.get_weights()
        plain.set_weights([*others, variance.repeat(plain.moving_variance.shape[0])])
        return [plain]

    def build(self, input_shape):
        rank = len(input_shape)
        if not -rank <= self.axis < rank or input_shape[self.axis] is None:
            raise ValueError(
                f"ExtendedBatchNormalization {self.name!r}: `axis` must be an axis of known size, the channels. "
                f"Received: axis={self.axis}, inputs of shape {tuple(input_shape)}"
            )
        super().build(input_shape)

    def add_weight(self, shape=None, *args, name=None, **kwargs):
        """Keras' `add_weight`, with a scalar `moving_variance`."""
        return super().add_weight(() if name == "moving_variance" else shape, *args, name=name, **kwargs)

    def call(self, inputs, training=None, mask=None):
        if mask is not None and len(mask.shape) != len(inputs.shape) - 1:
            raise ValueError(
                "The mask must have one dimension less than the inputs. "
                f"Received: mask of shape {tuple(mask.shape)}, inputs of shape {tuple(inputs.shape)}"
            )
        x = ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
        moving_mean = ops.cast(self.moving_mean, x.dtype)
        moving_variance = ops.cast(self.moving_variance, x.dtype)
        if training and self.trainable:
            mean, variance = self._statistics(x, mask)
            kept = self.momentum
            self.moving_mean.assign(moving_mean * kept + ops.reshape(mean, (-1,)) * (1.0 - kept))
            self.moving_variance.assign(moving_variance * kept + variance * (1.0 - kept))
        else:
            mean, variance = self._along_axis(moving_mean, x), moving_variance
        scale = ops.rsqrt(variance + self.epsilon)
        if self.scale:
            scale = scale * self._along_axis(self.gamma, x)
        offset = -mean * scale
        if self.center:
            offset = offset + self._along_axis(self.beta, x)
        return ops.cast(x * scale + offset, self.compute_dtype)

    def _along_axis(self, vector, x):
        shape = [1] * len(x.shape)
        shape[self.axis] = -1
        return ops.reshape(ops.cast(vector, x.dtype), shape)

    def _statistics(self, x, mask):
        """The channels' means, as axes of length 1 around the channels, and the one variance."""
        axes = [axis for axis in range(len(x.shape)) if axis != self.axis % len(x.shape)]
        counted = x
        if mask is None:
            sizes = ops.shape(x)
            count = math.prod(sizes[axis] for axis in axes)
            count = ops.cast(count, x.dtype) if ops.is_tensor(count) else ops.convert_to_tensor(count, x.dtype)
        else:
            mask = ops.broadcast_to(ops.cast(ops.expand_dims(mask, -1), "bool"), ops.shape(x))
            count = ops.sum(ops.cast(mask, x.dtype), axes, keepdims=True)
            counted = ops.where(mask, x, 0)
        # Sums and not means: the gradient of a mean divides a tensor of the inputs' size.
        total, count = self._over_replicas(ops.sum(counted, axes, keepdims=True), count)
        mean = total / ops.maximum(count, 1)
        # Around any constant c, var(x) = E[(x - c)²] - (E[x] - c)². With the mean as c the last term is 0: nothing
        # cancels, the gradient needs no further sum over the inputs, and higher derivatives are right too.
        constant = ops.stop_gradient(mean)
        difference = x - constant
        if mask is not None:
            difference = ops.where(mask, difference, 0)
        (squares,) = self._over_replicas(ops.sum(ops.square(difference), axes, keepdims=True))
        squares = squares - count * ops.square(mean - constant)
        return mean, ops.sum(squares) / ops.maximum(ops.sum(ops.broadcast_to(count, ops.shape(mean))), 1)

    def _over_replicas(self, *values):
        """The sums of the values over all replicas, if the layer is synchronized."""
        return sum_over_replicas(*values) if self.synchronized else values


def _require_built(layer):
    if not layer.built:
        raise ValueError(f"Layer {layer.name!r} has no weights yet. Call it or its model once, or use `build`.")


def _float64(variable):
    return ops.convert_to_numpy(variable).astype("float64")
