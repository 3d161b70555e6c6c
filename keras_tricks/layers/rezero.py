"""Residual connections whose branch starts switched off, so that networks of any depth train without normalisation.

    y = x + alpha · F(x)        alpha: a learned scalar that starts at 0

At the start every block is the identity and signals pass any depth unchanged, forward and backward. Bachlechner et al.,
2021, arXiv:2003.04887. Equals their code, majumderb/rezero; SkipInit of De and Smith, 2020, is the same scalar.
"""

import inspect

import keras
from keras import ops

from keras_tricks.layers._shared import serialized


@keras.saving.register_keras_serializable(package="keras_tricks")
class ReZero(keras.layers.Wrapper):
    """Residual connection around a layer or block, with a learned scalar that starts at 0.

    `y = x + alpha · layer(x)`. The product and the sum are in float32 under mixed precision, so that the gradient of
    `alpha`, a sum over all elements, keeps its digits. In the first step only `alpha` moves: the gradients of the
    layer's own weights are multiplied by it, and it is 0.

    Weights: those of the layer, and `alpha`, a scalar in float32, which optimizers of this package exclude from decay
    and layer adaptation by default.

    Args:
        layer: Any Keras layer or model whose output has the shape of its first input.
        alpha_initializer: Initial value of `alpha`. Defaults to `"zeros"`; `"ones"` makes an ordinary residual
            connection, to begin from trained weights.
        **kwargs: Those of `keras.layers.Layer`: `name`, `dtype`, `trainable`.

    Call arguments: the input, and whatever else the layer takes.

    Input shape, output shape: the same, those of the layer.

    Raises:
        ValueError: If `layer` is not a Keras layer; at build, or when called, if its output does not have the shape of
            its input.

    Example:
    >>> import numpy as np, keras, keras_tricks as kt
    >>> block = kt.layers.ReZero(keras.layers.Dense(4, activation="relu"))
    >>> float(np.abs(block(np.ones((2, 4), "float32")) - 1).max())  # the identity, until it has learned
    0.0

    Reference:
        Thomas Bachlechner, Bodhisattwa Prasad Majumder, Huanru Henry Mao, Garrison W. Cottrell, Julian McAuley, "ReZero
        is All You Need: Fast Convergence at Large Depth", 2021, arXiv:2003.04887.
    """

    def __init__(self, layer, alpha_initializer="zeros", **kwargs):
        super().__init__(layer, **kwargs)
        self.alpha_initializer = keras.initializers.get(alpha_initializer)
        self.supports_masking = True

    def build(self, input_shape):
        # A layer of several inputs (attention) builds itself at its first call, and its shape is checked there.
        if _takes_one_input(self.layer):
            super().build(input_shape)
            output = self.layer.compute_output_spec(keras.KerasTensor(input_shape, dtype=self.layer.compute_dtype))
            self._check_shape(input_shape, output.shape)
        self.alpha = _scalar(self, self.alpha_initializer)

    def call(self, inputs, *args, **kwargs):
        branch = self.layer(inputs, *args, **kwargs)
        self._check_shape(inputs.shape, branch.shape)
        return _residual_sum(self, inputs, branch)

    def _check_shape(self, expected, received):
        if tuple(expected) != tuple(received):
            raise ValueError(
                f"ReZero {self.name!r} adds its input to the output of layer {self.layer.name!r}, so both need the "
                f"same shape. The input has shape {tuple(expected)}, the output {tuple(received)}. Give the layer as "
                "many units or filters as its input has channels, with stride 1 and padding='same', or change the "
                "shape in a layer before."
            )

    def compute_output_shape(self, input_shape):
        return input_shape

    def compute_output_spec(self, *args, **kwargs):
        # Through `call`: Keras stops at `compute_output_shape`, and a layer of several inputs would get no weights.
        return keras.Operation.compute_output_spec(self, *args, **kwargs)

    def get_config(self):
        return {
            **keras.Layer.get_config(self),
            "layer": serialized(self.layer),
            "alpha_initializer": keras.initializers.serialize(self.alpha_initializer),
        }


@keras.saving.register_keras_serializable(package="keras_tricks")
class ReZeroAdd(keras.layers.Layer):
    """The sum of a skip connection and a branch, the branch times a learned scalar that starts at 0.

    `y = skip + alpha · branch`: `ReZero` for a branch that is a piece of a functional model and not one layer. It takes
    the place of `keras.layers.Add`.

    Weights: `alpha`, a scalar in float32.

    Args:
        alpha_initializer: Initial value of `alpha`. Defaults to `"zeros"`; `"ones"` makes it an ordinary sum.
        **kwargs: Those of `keras.layers.Layer`: `name`, `dtype`, `trainable`.

    Input shape: a list of two, `[skip, branch]`, of the same shape.

    Output shape: that shape.

    Raises:
        ValueError: At build, if it is not called on two tensors of the same shape.

    Example:
    >>> import keras, keras_tricks as kt
    >>> x = keras.Input((8, 8, 16))
    >>> branch = keras.layers.Conv2D(16, 3, padding="same", activation="relu")(x)
    >>> kt.layers.ReZeroAdd()([x, branch]).shape
    (None, 8, 8, 16)

    Reference:
        Thomas Bachlechner, Bodhisattwa Prasad Majumder, Huanru Henry Mao, Garrison W. Cottrell, Julian McAuley, "ReZero
        is All You Need: Fast Convergence at Large Depth", 2021, arXiv:2003.04887.
    """

    def __init__(self, alpha_initializer="zeros", **kwargs):
        super().__init__(**kwargs)
        self.alpha_initializer = keras.initializers.get(alpha_initializer)
        self.supports_masking = True

    def build(self, input_shape):
        shapes = list(input_shape)
        if len(shapes) != 2 or not all(isinstance(shape, list | tuple) for shape in shapes):
            raise ValueError(
                f"ReZeroAdd {self.name!r} is called on a list of two tensors, [skip, branch]. "
                f"Received the shape {input_shape}."
            )
        if tuple(shapes[0]) != tuple(shapes[1]):
            raise ValueError(
                f"ReZeroAdd {self.name!r} adds two tensors of the same shape. Received skip: {tuple(shapes[0])}, "
                f"branch: {tuple(shapes[1])}."
            )
        self.alpha = _scalar(self, self.alpha_initializer)

    def call(self, inputs):
        skip, branch = inputs
        return _residual_sum(self, skip, branch)

    def compute_mask(self, inputs, previous_mask):
        return None if previous_mask is None else previous_mask[0]  # that of the skip connection

    def compute_output_shape(self, input_shape):
        return input_shape[0]

    def get_config(self):
        return {**super().get_config(), "alpha_initializer": keras.initializers.serialize(self.alpha_initializer)}


def _takes_one_input(layer):
    needed = [
        p
        for p in inspect.signature(layer.call).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return len(needed) <= 1 and len(inspect.signature(layer.build).parameters) == 1


def _wide(layer):
    return "float64" if layer.variable_dtype == "float64" else "float32"


def _scalar(layer, initializer):
    return layer.add_weight(name="alpha", shape=(), initializer=initializer, dtype=_wide(layer), autocast=False)


def _residual_sum(layer, skip, branch):
    # In half precision the gradient of alpha, a sum over all elements, would lose its digits or overflow.
    wide = _wide(layer)
    return ops.cast(ops.cast(skip, wide) + layer.alpha * ops.cast(branch, wide), layer.compute_dtype)
