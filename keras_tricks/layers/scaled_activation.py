"""Activations that keep the variance: for inputs of mean 0 and variance 1 the output has variance 1.

    y = gamma · f(x)        gamma = 1 / std(f(z)), z standard normal

Together with weight-standardised convolutions (`WSConv2D`) signals keep their size through a network without
normalisation layers. Brock et al., 2021, arXiv:2101.08692. The constants in the authors' code, nfnets/base.py, are
sampled and up to 0.09 % off; here gamma is integrated, exact to seven digits.
"""

import keras
import numpy as np
from keras import ops


@keras.saving.register_keras_serializable(package="keras_tricks")
class ScaledActivation(keras.layers.Activation):
    """An activation times the constant that gives its output variance 1.

    `y = gamma · activation(x)` with `gamma = 1 / std(activation(z))`, z standard normal: 1.7129 for relu, 1.7009 for
    gelu, 1.7872 for silu. The mean is not removed (that of a scaled relu is 0.68): weight-standardised kernels have
    mean 0 and take it out.

    No weights. `layer.gamma` is the constant, a Python float.

    Args:
        activation: Name of a Keras activation, or a callable that acts on each element alone.
        **kwargs: Those of `keras.layers.Layer`.

    Input shape: any. Output shape: the same.

    Raises:
        ValueError: If the activation is unknown, does not act element by element (softmax, glu), or has no finite
            variance above 0; when called, if the inputs are integers.

    Example:
    >>> import keras_tricks as kt
    >>> round(kt.layers.ScaledActivation("relu").gamma, 6)
    1.712859

    Reference:
        Andrew Brock, Soham De, Samuel L. Smith, "Characterizing signal propagation to close the performance gap in
        unnormalized ResNets", 2021, arXiv:2101.08692.
    """

    def __init__(self, activation, **kwargs):
        if isinstance(activation, keras.layers.Layer):
            raise ValueError(
                f"`activation` is a name or a function. Received the layer {activation.name!r}: pass the function it "
                "applies, for example `keras.activations.relu` for `keras.layers.ReLU()`."
            )
        super().__init__(activation, **kwargs)
        self.gamma = _gamma(self.activation)

    def call(self, inputs):
        self._check_dtype(inputs)
        return super().call(inputs) * self.gamma

    def compute_output_spec(self, inputs):
        self._check_dtype(inputs)
        return super().compute_output_spec(inputs)

    def _check_dtype(self, inputs):
        if not keras.backend.is_float_dtype(inputs.dtype):
            raise ValueError(
                f"ScaledActivation {self.name!r} expects inputs in floating point. Received inputs of dtype "
                f"{keras.backend.standardize_dtype(inputs.dtype)}: cast them first, `keras.ops.cast(x, 'float32')`."
            )

    def fused(self):
        """The plain Keras layers that compute the same: the activation and a `Rescaling`."""
        return [
            keras.layers.Activation(self.activation, name=self.name, dtype=self.dtype_policy),
            keras.layers.Rescaling(self.gamma, name=f"{self.name}_scale", dtype=self.dtype_policy),
        ]


def _gamma(activation):
    # Trapezoids from -10 to 10. Kinks at whole numbers, such as those of relu6, lie on the grid and cost no digits.
    z = np.arange(-10 * 2048, 10 * 2048) / 2048
    density = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) / 2048
    dtype = "float64" if keras.backend.backend() == "tensorflow" else "float32"

    def values(points):
        return ops.convert_to_numpy(activation(ops.convert_to_tensor(points, dtype))).astype("float64")

    f = values(z)
    if f.shape != z.shape or not np.allclose(values(z[::2048]), f[::2048], rtol=1e-4, atol=1e-6, equal_nan=True):
        raise ValueError(
            f"`activation` must act on each element alone, or its variance depends on the shape. Received: {activation}"
        )
    mean = np.sum(density * f)
    variance = np.sum(density * (f - mean) ** 2)
    if not 1e-12 < variance < np.inf:
        raise ValueError(
            "`activation` must have a finite variance above 0 on standard normal inputs. "
            f"Received: {activation}, of variance {variance:.3g}"
        )
    return float(1 / np.sqrt(variance))
