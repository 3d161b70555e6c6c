"""The weights of a trained classifier divided by their norms: τ-normalisation.

    W_j / ‖W_j‖^τ        W_j the weights of class j; without bias

Kang et al., 2020, arXiv:1910.09217.
"""

import keras
import numpy as np

from keras_tricks._arguments import check_number
from keras_tricks.layers.normalized_dense import SMALLEST_NORM
from keras_tricks.models._classifier import copy_around, find, require_linear, set_weights
from keras_tricks.models._copy import copy_weights, plain_copy
from keras_tricks.models._graph import as_float64


def tau_normalize(layer, tau=1.0):
    """Divides each class's weights by their norm to the power of tau, and sets the bias to 0.

    `W_j <- W_j / ‖W_j‖^tau`: frequent classes grow long weight vectors, and win by them. Norms are computed in float64;
    columns shorter than 1e-12 count as that long, so zeros stay zeros.

    Args:
        layer: A built `Dense`, or a convolution whose outputs are the classes: it is changed in place. Or a built
            Functional or Sequential model: a copy of it is changed, and the model stays as it is, which is what a
            search for tau wants. The copy is not compiled.
        tau: τ, at least 0. 0 only drops the bias, 1 (default) makes all columns equally long. Look for the best in 0
            to 2 on validation data.

    Returns:
        The layer, or the new model.

    Raises:
        TypeError: If `layer` is neither a layer nor a model, or `tau` is not a number.
        ValueError: If the layer is not built or not one of those, has LoRA or is quantized; for a model, if its last
            layer is not one of those, or its outputs are probabilities.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> layer = keras.layers.Dense(2)
    >>> layer.build((None, 2))
    >>> layer.set_weights([np.array([[3.0, 0.5], [4.0, 0.0]]), np.array([1.0, 2.0])])
    >>> kt.models.tau_normalize(layer, 0.5).get_weights()[0].round(3)
    array([[1.342, 0.707],
           [1.789, 0.   ]], dtype=float32)

    Reference:
        Bingyi Kang, Saining Xie, Marcus Rohrbach, Zhicheng Yan, Albert Gordo, Jiashi Feng, Yannis Kalantidis,
        "Decoupling Representation and Classifier for Long-Tailed Recognition", 2020, arXiv:1910.09217.
    """
    if not isinstance(layer, keras.Layer):
        raise TypeError(f"`tau_normalize` expects a built Dense layer, or a keras.Model. Received: {layer!r}")
    tau = check_number("tau", tau, at_least=0)
    if isinstance(layer, keras.Model):
        found = find("tau_normalize", layer, None)
        require_linear("tau_normalize", found.layer)
        copy, (*_, classifier) = copy_around(found, plain_copy, copy_weights)
        _normalize(classifier, tau)
        return copy
    require_linear("tau_normalize", layer)
    _normalize(layer, tau)
    return layer


def _normalize(layer, tau):
    kernel = as_float64(layer.kernel)
    norms = np.sqrt(np.square(kernel).sum(axis=tuple(range(kernel.ndim - 1))))
    set_weights(layer, kernel / np.maximum(norms, SMALLEST_NORM) ** tau, None if layer.bias is None else 0 * layer.bias)
