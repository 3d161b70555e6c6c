"""Asymmetric convolution block: in training three branches, afterwards one plain convolution.

    y = activation(BN(conv(x, K)) + BN(conv(x, K₁ₖ)) + BN(conv(x, Kₖ₁)))          K of size kxk, 1xk and kx1

The short kernels cover the middle row and the middle column of the kxk one. Convolution and normalisation at inference
are linear, so the three add up to one kernel and one bias. That holds only if all branches share the same centres. At
stride 2 on even sizes, TensorFlow's padding "same" puts a 1-tap axis elsewhere. So the inputs of the short kernels are
cropped, until their 1-tap axis takes the middles of the kxk kernel's windows.

Ding et al., 2019, arXiv:1908.03930. Equals `ACBlock` of DingXiaoH/ACNet, acnet/acb.py, with Keras' padding and Keras'
defaults of batch normalisation (momentum 0.99, epsilon 1e-3; there 0.9 and 1e-5).
"""

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_choice, check_flag, check_number
from keras_tricks.layers._signature import with_arguments_of
from keras_tricks.layers.extended_batch_normalization import ExtendedBatchNormalization

_NORMALIZATIONS = {"batch": keras.layers.BatchNormalization, "extended_batch": ExtendedBatchNormalization}

# What the gammas start at: that of the kxk branch, and those of the two others.
_GAMMAS = {"ones": (1.0, 1.0), "thirds": (1 / 3, 1 / 3), "single": (1.0, 0.0)}


@keras.saving.register_keras_serializable(package="keras_tricks")
@with_arguments_of(keras.layers.Conv2D)
class ACConv2D(keras.layers.Conv2D):
    """2D convolution plus a 1xk and a kx1 convolution, each normalised, folded into one for deployment.

    In training `y = activation(BN(conv(x, K)) + BN(conv(x, row)) + BN(conv(x, column)))`, where `row` of size (1, k)
    and `column` of size (k, 1) lie through the middle of `K`. It strengthens the middle row and column of the kernel.
    `fused` gives the plain `Conv2D` that computes the same at inference, so the block costs nothing once deployed. The
    fold is exact for every size, stride, dilation, padding and number of groups.

    Weights: `kernel` of shape `(k, k, channels / groups, filters)`, `row_kernel`, whose first axis has length 1,
    `column_kernel`, whose second axis has, and those of three normalisations. There is no bias: the betas take its
    place.

    Args:
        filters: Number of output channels.
        kernel_size: One or two odd integers, 3 or more, such as 3 or (3, 5).
        strides: As in `Conv2D`. Defaults to 1.
        padding: `"valid"` or `"same"`. Defaults to `"valid"`.
        normalization: `"batch"` for `keras.layers.BatchNormalization`, or `"extended_batch"` for
            `ExtendedBatchNormalization`, which has one variance for all channels. Defaults to `"batch"`.
        gamma: What the normalisations' gammas start at: `"ones"`; `"thirds"`, 1/3 each, so that the sum starts at the
            size of a single branch; or `"single"`, 1 for the kxk branch and 0 for the two others. Defaults to
            `"ones"`.
        momentum: Of the moving statistics. Defaults to 0.99.
        epsilon: Added to each variance. Defaults to 1e-3.
        synchronized: Whether replicas share the statistics of a batch; TensorFlow only. Defaults to `False`.
        **kwargs: The other arguments of `Conv2D`. `use_bias=False` makes normalisations without beta. Initializer,
            regularizer and constraint of the kernel are applied to each of the three kernels, the initializer with a
            different seed each time. Those of the bias are applied to the betas, but only the kxk branch's beta starts
            at `bias_initializer`, so that their sum does.

    Input shape, output shape: those of `Conv2D`.

    Raises:
        TypeError: If `momentum` or `epsilon` is not a number, or `synchronized` not True or False.
        ValueError: For a kernel side that is even, which has no middle, or 1, where branches would be the same; for
            unknown names in `normalization` and `gamma`; for `momentum` outside [0, 1] or a negative `epsilon`; for
            LoRA; for groups that do not divide `filters` or, at build, the input channels; for inputs that are not of
            rank 4.

    Example:
    >>> import numpy as np, keras_tricks as kt
    >>> layer = kt.layers.ACConv2D(8, 3, padding="same", activation="relu")
    >>> x = np.ones((2, 9, 9, 4), "float32")
    >>> tuple(layer(x, training=True).shape)
    (2, 9, 9, 8)
    >>> (plain,) = layer.fused()
    >>> type(plain).__name__, bool(np.abs(np.array(plain(x)) - np.array(layer(x))).max() < 1e-4)
    ('Conv2D', True)

    Reference:
        Xiaohan Ding, Yuchen Guo, Guiguang Ding, Jungong Han, "ACNet: Strengthening the Kernel Skeletons for Powerful
        CNN via Asymmetric Convolution Blocks", 2019, arXiv:1908.03930.
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=(1, 1),
        padding="valid",
        *args,
        normalization="batch",
        gamma="ones",
        momentum=0.99,
        epsilon=1e-3,
        synchronized=False,
        **kwargs,
    ):
        if kwargs.get("lora_rank"):
            raise ValueError(_NO_LORA)
        super().__init__(filters, kernel_size, strides, padding, *args, **kwargs)
        _check_kernel_size(self.kernel_size)
        self.normalization = check_choice("normalization", normalization, _NORMALIZATIONS)
        self.gamma = check_choice("gamma", gamma, _GAMMAS)
        self.momentum = check_number("momentum", momentum, at_least=0, at_most=1)
        self.epsilon = check_number("epsilon", epsilon, at_least=0)
        self.synchronized = check_flag("synchronized", synchronized)
        self.input_spec = keras.layers.InputSpec(ndim=4)
        self.square_normalization = self._normalization("square", 0, self.bias_initializer)
        self.row_normalization = self._normalization("row", 1, "zeros")
        self.column_normalization = self._normalization("column", 1, "zeros")

    def _normalization(self, branch, position, beta_initializer):
        return _NORMALIZATIONS[self.normalization](
            axis=-1 if self.data_format == "channels_last" else 1,
            momentum=self.momentum,
            epsilon=self.epsilon,
            center=self.use_bias,
            gamma_initializer=keras.initializers.Constant(_GAMMAS[self.gamma][position]),
            beta_initializer=beta_initializer,
            beta_regularizer=self.bias_regularizer,
            beta_constraint=self.bias_constraint,
            synchronized=self.synchronized,
            dtype=self.dtype_policy,
            name=f"{branch}_normalization",
        )

    def build(self, input_shape):
        # Keras makes the kernel, and would make a bias.
        use_bias, self.use_bias = self.use_bias, False
        super().build(input_shape)
        self.use_bias = use_bias
        self.input_spec = keras.layers.InputSpec(ndim=4, axes=self.input_spec.axes)
        height, width, *channels = self.kernel.shape
        self.row_kernel = self._add_kernel("row_kernel", (1, width, *channels), 1)
        self.column_kernel = self._add_kernel("column_kernel", (height, 1, *channels), 2)
        output_shape = self.compute_output_shape(input_shape)
        for normalization in self._normalizations():
            normalization.build(output_shape)

    def _add_kernel(self, name, shape, branch):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=_for_branch(self.kernel_initializer, branch),
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
        )

    def _normalizations(self):
        return self.square_normalization, self.row_normalization, self.column_normalization

    def call(self, inputs, training=None):
        rows, columns = (2, 3) if self.data_format == "channels_first" else (1, 2)
        branches = (
            self.convolution_op(inputs, self.kernel),
            self.convolution_op(self._from_first_middle(inputs, rows), self.row_kernel),
            self.convolution_op(self._from_first_middle(inputs, columns), self.column_kernel),
        )
        square, row, column = (
            normalization(branch, training=training)
            for normalization, branch in zip(self._normalizations(), branches, strict=True)
        )
        return self.activation(square + row + column)

    def _from_first_middle(self, inputs, axis):
        """The inputs, cropped so that a 1-tap axis takes the middles of the kxk kernel's windows."""
        spatial = axis - (2 if self.data_format == "channels_first" else 1)
        size, stride = ops.shape(inputs)[axis], self.strides[spatial]
        before = self.dilation_rate[spatial] * (self.kernel_size[spatial] // 2)
        if self.padding == "valid":
            first, last = before, size - before
        elif stride == 1:
            return inputs
        else:
            # "same": ceil(size / stride) windows, padded by what they lack, the smaller half of it at the start. The
            # middles are never in the padding, and a 1-tap axis gets none.
            padding = (size - 1) // stride * stride + 2 * before + 1 - size
            padding = max(padding, 0) if isinstance(size, int) else ops.maximum(padding, 0)
            first, last = before - padding // 2, size
            if isinstance(first, int) and first == 0:
                return inputs
        # In TensorFlow on CPUs the gradient of `inputs[:, first:last]` takes 17 times as long as that of `ops.slice`.
        start, shape = [0] * 4, list(ops.shape(inputs))
        start[axis], shape[axis] = first, last - first
        return ops.slice(inputs, start, shape)

    def fused_kernel_and_bias(self):
        """Kernel and bias of the one convolution that computes the same at inference.

        Returns:
            Two float64 NumPy arrays, of the shapes of `kernel` and `(filters,)`.

        Raises:
            ValueError: If this layer is not built.
        """
        if not self.built:
            raise ValueError(f"Layer {self.name!r} has no weights yet. Call it or its model once, or use `build`.")
        kernel = np.zeros(self.kernel.shape)
        bias = np.zeros(self.filters)
        height, width = (size // 2 for size in self.kernel_size)
        places = (slice(None), slice(height, height + 1), (slice(None), slice(width, width + 1)))
        kernels = (self.kernel, self.row_kernel, self.column_kernel)
        for place, branch, normalization in zip(places, kernels, self._normalizations(), strict=True):
            scale = _float64(normalization.gamma) / np.sqrt(_float64(normalization.moving_variance) + self.epsilon)
            kernel[place] += _float64(branch) * scale
            bias -= _float64(normalization.moving_mean) * scale
            if self.use_bias:
                bias += _float64(normalization.beta)
        return kernel, bias

    def fused(self):
        """Plain Keras layers that compute the same at inference.

        Returns:
            A list with one built `keras.layers.Conv2D` of the same name, with a bias and without regularizers and
            constraints, which were made for the branches.

        Raises:
            ValueError: If this layer is not built.
        """
        weights = self.fused_kernel_and_bias()
        plain = keras.layers.Conv2D(
            self.filters,
            self.kernel_size,
            strides=self.strides,
            padding=self.padding,
            data_format=self.data_format,
            dilation_rate=self.dilation_rate,
            groups=self.groups,
            activation=self.activation,
            dtype=self.dtype_policy,
            name=self.name,
        )
        plain.build(self.get_build_config()["input_shape"])
        plain.set_weights(weights)
        return [plain]

    def enable_lora(self, *args, **kwargs):
        raise ValueError(_NO_LORA)

    # Keras' convolutions save only kernel and bias; a plain layer saves all of its weights.
    save_own_variables = keras.layers.Layer.save_own_variables
    load_own_variables = keras.layers.Layer.load_own_variables

    def get_config(self):
        return {
            **super().get_config(),
            "normalization": self.normalization,
            "gamma": self.gamma,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
            "synchronized": self.synchronized,
        }


_NO_LORA = (
    "`ACConv2D` has no LoRA: it would change one of the three kernels. Fuse the trained layer with `fused()` and "
    "enable LoRA on the `Conv2D` that it gives."
)


def _check_kernel_size(sizes):
    for size in sizes:
        if size % 2 == 0:
            raise ValueError(
                f"`kernel_size` of ACConv2D must be odd: a side of {size} has no middle for the 1xk and kx1 kernels to "
                f"lie on. Received: kernel_size={sizes}. Use {size + 1} or {size - 1 if size > 2 else size + 1}."
            )
        if size == 1:
            raise ValueError(
                "`kernel_size` of ACConv2D must be 3 or more: with a side of 1 the branches would have kernels of the "
                f"same shape at the same place. Received: kernel_size={sizes}. Use `keras.layers.Conv2D` and a "
                "normalisation."
            )


def _for_branch(initializer, branch):
    """A new initializer, since the same one would give equal numbers to kernels of equal size."""
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    config = initializer.get_config()
    if isinstance(config.get("seed"), int):
        config["seed"] += branch
    return type(initializer).from_config(config)


def _float64(variable):
    return ops.convert_to_numpy(variable).astype("float64")
