"""Glorot's uniform range for logistic units, four times that for tanh.

    W ~ U(-r, r),  r = 4 · sqrt(6 / (fan_in + fan_out))

The range of Glorot and Bengio, 2010, keeps the variance of signals and gradients where the activation's slope is 1,
like that of tanh at 0. The slope of the logistic sigmoid at 0 is 1/4, so the weights are four times as large.
"""

import keras


@keras.saving.register_keras_serializable(package="keras_tricks")
class LogisticGlorotUniform(keras.initializers.VarianceScaling):
    """Uniform initial weights for layers with a sigmoid activation.

    `W ~ U(-r, r)` with `r = 4 · sqrt(6 / (fan_in + fan_out))`: `keras.initializers.GlorotUniform` times 4. The fans are
    those that Keras computes from the shape.

    Args:
        seed: An integer, a `keras.random.SeedGenerator`, or `None`. One instance gives the same values for the same
            shape at every call, as all initializers of Keras do: make one for each layer.
        input_axes: Axes whose product is `fan_in`, as in `keras.initializers.GlorotUniform`. Defaults to `None`: from
            the last two axes.
        output_axes: The same for `fan_out`.

    Example:
    >>> import keras, keras_tricks as kt
    >>> layer = keras.layers.Dense(10, "sigmoid", kernel_initializer=kt.initializers.LogisticGlorotUniform(seed=0))

    Reference:
        Xavier Glorot, Yoshua Bengio, "Understanding the difficulty of training deep feedforward neural networks", 2010,
        AISTATS.
    """

    def __init__(self, seed=None, input_axes=None, output_axes=None):
        super().__init__(
            scale=16.0,
            mode="fan_avg",
            distribution="uniform",
            seed=seed,
            input_axes=input_axes,
            output_axes=output_axes,
        )

    def get_config(self):
        config = super().get_config()
        return {name: config[name] for name in ("seed", "input_axes", "output_axes")}
