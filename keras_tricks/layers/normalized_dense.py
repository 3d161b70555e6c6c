"""A classifier by angles: each output is the cosine between the input and a class's weights.

    y_k = scale · <x, w_k> / (‖x‖ · ‖w_k‖)

A class cannot win by a long weight vector, which is what frequent classes grow. Gidaris and Komodakis, 2018,
arXiv:1804.09458; the last layer that LDAM needs (Cao et al., 2019, arXiv:1906.07413). With scale 1 it equals
`NormedLinear` of kaidic/LDAM-DRW, whose norms are never below 1e-12 either.
"""

import keras
from keras import ops

from keras_tricks._arguments import check_count, check_number

SMALLEST_NORM = 1e-12


@keras.saving.register_keras_serializable(package="keras_tricks")
class NormalizedDense(keras.layers.Layer):
    """Densely connected layer on unit vectors: cosines times `scale`, without bias.

    `y_k = scale · <x, w_k> / (‖x‖ · ‖w_k‖)`. The norms are computed in float32 under mixed precision. A zero input or
    a zero column gives 0, and no NaN in the gradient.

    Weights: `kernel` of shape `(inputs, units)`.

    Args:
        units: Number of classes.
        scale: Multiplies the cosines. Between -1 and 1 a softmax over many classes is almost flat, so a classifier
            wants 16 to 30; a loss that scales by itself, such as LDAM, wants the default, `1.0`.
        kernel_initializer: Defaults to `"glorot_uniform"`; only its directions matter.
        kernel_regularizer: Defaults to `None`. The output does not depend on a column's length, so decay only changes
            the effective learning rate.
        kernel_constraint: Defaults to `None`.
        **kwargs: Those of `keras.layers.Layer`.

    Input shape: `(batch, ..., inputs)`. Output shape: `(batch, ..., units)`.

    Raises:
        TypeError: If `units` is not an integer, or `scale` not a number.
        ValueError: If `units` or `scale` is not positive, and at build if the size of the last axis is not known.

    Example:
    >>> import numpy as np, keras_tricks as kt
    >>> layer = kt.layers.NormalizedDense(3, scale=16.0)
    >>> bool((abs(layer(np.ones((2, 5), "float32"))) <= 16).numpy().all())
    True

    Reference:
        Spyros Gidaris, Nikos Komodakis, "Dynamic Few-Shot Visual Learning without Forgetting", 2018, arXiv:1804.09458.
    """

    def __init__(
        self,
        units,
        scale=1.0,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        kernel_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.units = check_count("units", units)
        self.scale = check_number("scale", scale, above=0)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.supports_masking = True

    def build(self, input_shape):
        if input_shape[-1] is None:
            raise ValueError(
                f"NormalizedDense {self.name!r} needs to know the size of its input's last axis. "
                f"Received the shape {tuple(input_shape)}."
            )
        self.input_spec = keras.layers.InputSpec(min_ndim=2, axes={-1: input_shape[-1]})
        self.kernel = self.add_weight(
            name="kernel",
            shape=(input_shape[-1], self.units),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            autocast=False,
        )

    def call(self, inputs):
        return ops.matmul(_unit(inputs, -1, self.compute_dtype), self.scaled_kernel())

    def scaled_kernel(self):
        """The kernel's columns with length `scale`, in the compute dtype."""
        return _unit(self.kernel, 0, self.compute_dtype, self.scale)

    def fused(self):
        """The plain Keras layers that compute the same: `UnitNormalization` and `Dense` without bias."""
        if not self.built:
            raise ValueError(f"NormalizedDense {self.name!r} is not built yet, so it has no kernel to fuse.")
        dense = keras.layers.Dense(self.units, use_bias=False, name=self.name, dtype=self.dtype_policy)
        dense.build((None, self.kernel.shape[0]))
        dense.set_weights([_unit(self.kernel, 0, self.variable_dtype, self.scale)])
        return [keras.layers.UnitNormalization(name=f"{self.name}_unit", dtype=self.dtype_policy), dense]

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)

    def get_config(self):
        return {
            **super().get_config(),
            "units": self.units,
            "scale": self.scale,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "kernel_constraint": keras.constraints.serialize(self.kernel_constraint),
        }


def _unit(x, axis, dtype, length=1.0):
    """`x` with norm `length` along `axis`, computed in float32 or wider, returned in `dtype`."""
    x = ops.cast(x, "float64" if keras.backend.standardize_dtype(x.dtype) == "float64" else "float32")
    # The bound is on the square: the gradient of a square root at 0 is infinite.
    squares = ops.maximum(ops.sum(ops.square(x), axis, keepdims=True), SMALLEST_NORM**2)
    return ops.cast(x * (length * ops.rsqrt(squares)), dtype)
