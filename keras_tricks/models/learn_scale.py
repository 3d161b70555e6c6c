"""One factor for each class's logit, learned on class-balanced data, all weights frozen: LWS.

    f_j · z_j        f from 1; folded into W and b at the end

Kang et al., 2020, arXiv:1910.09217.
"""

import keras
from keras import ops

from keras_tricks.models._classifier import copy_around, find, require_linear, set_weights
from keras_tricks.models._copy import copy_weights, plain_copy
from keras_tricks.models._graph import as_float64, described
from keras_tricks.models._second_stage import Training, result_of


def learn_scale(model, data, epochs=10, optimizer=None, loss=None, layer=None, **kwargs):
    """Learns one factor for each class's logit on class-balanced data, all weights frozen (LWS).

    `z_j <- f_j · z_j`, where f starts at 1. The result is a copy of the model with f folded into the kernel and the
    bias of its classifier; everything else is as in `retrain_classifier`: what is copied, how the other layers run, the
    warning, the defaults. As there are only as many numbers to learn as classes, little data is enough.

    Args:
        model: A built Functional or Sequential model whose outputs are logits, from a `Dense` layer or a convolution.
        data: What `fit` takes, class-balanced, as in `retrain_classifier`.
        epochs: Number of epochs. Defaults to 10.
        optimizer: Defaults to that of `retrain_classifier`, without decay.
        loss: Defaults to softmax cross-entropy on the logits.
        layer: The classifier, as a layer or its name, where it is not the last layer. Defaults to `None`.
        **kwargs: Arguments of `fit` and `compile`, as in `retrain_classifier`.

    Returns:
        The new model, of the same class as `model`. It is not compiled; its `history` is that of the training.

    Raises:
        TypeError: As `retrain_classifier`.
        ValueError: As `retrain_classifier`, and if the classifier is not a plain layer, or has an activation.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.random.normal(size=(60, 4)).astype("float32"), np.arange(60) % 3
    >>> scaled = kt.models.learn_scale(model, x, y=y, epochs=2, verbose=0)
    >>> f = scaled.get_weights()[0] / model.get_weights()[0]
    >>> bool(np.allclose(f, f[0], rtol=1e-4))  # one factor a class
    True

    Reference:
        Bingyi Kang, Saining Xie, Marcus Rohrbach, Zhicheng Yan, Albert Gordo, Jiashi Feng, Yannis Kalantidis,
        "Decoupling Representation and Classifier for Long-Tailed Recognition", 2020, arXiv:1910.09217.
    """
    found = find("learn_scale", model, layer)
    require_linear("learn_scale", found.layer)
    if found.layer.activation not in (None, keras.activations.linear):
        raise ValueError(
            f"`learn_scale`: {described(found.layer)} has an activation, so factors behind it cannot be folded into "
            "its weights. Make the activation a layer of its own."
        )
    training = Training("learn_scale", model, data, epochs, optimizer, loss, kwargs)
    _, path = copy_around(
        found,
        lambda layer: ScaledClasses(plain_copy(layer), name=layer.name),
        lambda old, new: copy_weights(old, new.layer),
    )
    history = training.run(path, frozen=[path[-1].layer])
    scale = as_float64(path[-1].scale)

    def carry(old, new):
        copy_weights(old, new)
        set_weights(new, as_float64(old.kernel) * scale, None if old.bias is None else as_float64(old.bias) * scale)

    return result_of(found, carry, history)


@keras.saving.register_keras_serializable(package="keras_tricks")
class ScaledClasses(keras.layers.Wrapper):
    """A layer whose outputs are each multiplied by a factor, in float32 or wider, while the factors are learned."""

    def __init__(self, layer, **kwargs):
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, autocast=False, **kwargs)

    def build(self, input_shape=None):
        super().build(input_shape)
        # Steps of a usual size would be lost in a variable of half precision.
        dtype = "float64" if self.layer.variable_dtype == "float64" else "float32"
        self.scale = self.add_weight(
            name="scale", shape=self.layer.kernel.shape[-1:], initializer="ones", dtype=dtype, autocast=False
        )

    def call(self, inputs):
        outputs = self.layer(inputs)
        scale = ops.convert_to_tensor(self.scale)
        return ops.cast(ops.cast(outputs, scale.dtype) * scale, outputs.dtype)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)
