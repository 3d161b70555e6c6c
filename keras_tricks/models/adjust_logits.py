"""The logits of a trained network, corrected for the classes' frequencies: no training.

    z_j - τ · log π_j        π_j = n_j / N, the classes' shares of the training data

Menon et al., 2021, arXiv:2007.07314.
"""

import keras

from keras_tricks._arguments import check_number
from keras_tricks._keras.replicas import scope_of
from keras_tricks._labels.class_counts import as_class_counts, log_priors
from keras_tricks.losses import LDAM, BalancedSoftmax, LogitAdjusted
from keras_tricks.models._classifier import ADJUSTMENT, INSTEAD, check_output, ends_of, outputs_of
from keras_tricks.models._graph import require_graph


def adjust_logits(model, class_counts, tau=1.0):
    """A model whose logits are corrected for the classes' frequencies: `z_j - tau · log(n_j / N)`.

    A network that was trained with plain cross-entropy on long-tailed data favours classes according to their
    frequency; this takes that away, without training. The adjusted model has the same layers, so the same weights, and
    one more, a plain `keras.layers.Rescaling` in float32: its file loads where this package is not installed. `model`
    itself is not changed. The result is not compiled, and is for prediction: do not train it.

    Args:
        model: A built Functional or Sequential model with one output, logits of shape `(batch, ..., classes)`.
        class_counts: Number of training examples of each class, of shape `(classes,)`, or the training dataset, which
            is then read once. A class without examples counts as one with a single example.
        tau: τ, at least 0. 0 changes nothing, 1 (default) is right for equally frequent classes if the model's
            probabilities are right. Look for the best in 0 to 2.5 on validation data.

    Returns:
        A functional `keras.Model`.

    Raises:
        TypeError: If `model` is not a Keras model, or `tau` is not a number.
        ValueError: If the model is not built, subclassed, or has several outputs or a `call` of its own; if its outputs
            are probabilities; if it is adjusted already, by this function or by the loss that it was compiled with, or
            that loss is LDAM; if the counts are not one per class.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_initializer="zeros")])
    >>> adjusted = kt.models.adjust_logits(model, [900, 90, 10])
    >>> np.round(adjusted.predict(np.ones((1, 4)), verbose=0), 2)
    array([[0.11, 2.41, 4.61]], dtype=float32)

    Reference:
        Aditya Krishna Menon, Sadeep Jayasumana, Ankit Singh Rawat, Himanshu Jain, Andreas Veit, Sanjiv Kumar,
        "Long-tail learning via logit adjustment", 2021, arXiv:2007.07314.
    """
    require_graph("adjust_logits", model, INSTEAD, without=("call",))
    tau = check_number("tau", tau, at_least=0)
    check_output("adjust_logits", model)
    for loss in keras.tree.flatten(model.loss) if model.compiled else ():
        if isinstance(loss, BalancedSoftmax | LogitAdjusted):
            raise ValueError(
                f"`adjust_logits`: model {model.name!r} was trained with {type(loss).__name__}, which adjusts the "
                "logits in training. They are right as they are; a second adjustment would favour the rare classes."
            )
        if isinstance(loss, LDAM):
            raise ValueError(
                f"`adjust_logits`: model {model.name!r} was trained with LDAM, so its outputs are cosines, and the "
                f"logits {loss.scale:g} times as large. Give it with that factor: keras.Model(model.input, "
                f"keras.layers.Rescaling({loss.scale:g})(model.output))."
            )
    counts = as_class_counts(class_counts)
    classes = outputs_of(model)[0].shape[-1]
    if len(counts) != classes:
        raise ValueError(
            f"`adjust_logits`: model {model.name!r} has {classes} classes, and `class_counts` has {len(counts)}. Give "
            "one count a class; `data.class_counts(dataset, num_classes=...)` counts classes without examples too."
        )
    with scope_of(model):
        inputs, outputs = ends_of(model)
        # So that the correction is not rounded to half precision, in which the difference of two logits can vanish.
        dtype = "float64" if outputs_of(model)[0].dtype == "float64" else "float32"
        adjustment = keras.layers.Rescaling(1.0, (-tau * log_priors(counts)).tolist(), name=ADJUSTMENT, dtype=dtype)
        adjusted = keras.Model(inputs, keras.tree.map_structure(adjustment, outputs), name=model.name)
        adjusted.dtype_policy = model.dtype_policy
        return adjusted
