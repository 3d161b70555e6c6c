"""The classifier of a trained network, retrained on class-balanced data with the features frozen: cRT.

    W, b anew, by their initializers; all else as it is

Kang et al., 2020, arXiv:1910.09217. The default optimizer and rate are those of facebookresearch/classifier-balancing.
"""

from keras import ops

from keras_tricks.models._classifier import copy_around, find, require_plain_kernel
from keras_tricks.models._copy import carry_nothing, copy_weights, unbuilt
from keras_tricks.models._graph import described
from keras_tricks.models._second_stage import Training, result_of


def retrain_classifier(model, data, epochs=10, optimizer=None, loss=None, layer=None, seed=None, **kwargs):
    """Trains a fresh classifier on class-balanced data, on top of the features that a model has learned (cRT).

    Returns a copy of the model. Its last layer is re-initialised, by its own initializers, and trained; all other
    weights and statistics, seeds and `trainable` flags are those of `model`, bit for bit, and `model` itself is not
    changed. In this training all other layers run as in inference: batch normalisation uses its moving statistics, and
    dropout and augmentation layers are off, so augment the data instead.

    The result is not compiled; its `history` is that of the training. Training runs under the strategy and with the
    precision of `model`, and compiled as `model` is if that comes from `kt.jit`.

    Args:
        model: A built Functional or Sequential model whose outputs are logits.
        data: What `fit` takes, class-balanced, such as `dataset.apply(data.class_balanced(counts)).batch(64)`. Labels
            are integers, or one-hot of the shape of the logits. A warning says so if the labels that training drew,
            with their sample weights, were not balanced: some class came up more than twice as often as another.
        epochs: Number of epochs. Defaults to 10.
        optimizer: Defaults to that of the paper's authors: SGD with momentum 0.9, a rate of 0.2 for a batch of 512 (in
            proportion for other sizes) that falls as a cosine, and an L2 decay of 5e-4 on the kernel. Where the
            classifier computes in float16, either is wrapped in `kt.LossScaleOptimizer`. Make yours in the scope of the
            model's strategy.
        loss: Defaults to softmax cross-entropy on the logits.
        layer: The classifier, as a layer or its name, where it is not the last layer. Defaults to `None`: the last
            `Dense`, `NormalizedDense` or convolution; linear activations, as for a cast to float32, may follow.
        seed: An int, to fix the new weights. Defaults to `None`: a new draw each time, which
            `keras.utils.set_random_seed` fixes.
        **kwargs: Arguments of `fit` (`y`, `batch_size`, `steps_per_epoch`, `validation_data`, `callbacks`, ...) and
            `compile` (`metrics`, `jit_compile`, ...). Callbacks see a model that wraps the trained one.

    Returns:
        The new model, of the same class as `model`.

    Raises:
        TypeError: If `model` is not a Keras model; for an argument that neither `fit` nor `compile` has.
        ValueError: If the model is not built, subclassed or has several outputs, its outputs are probabilities, or it
            is adjusted already; if the classifier is not found, or called twice; for an optimizer
            that was used before, or made outside the model's strategy; without `optimizer`, for data that do not
            show their batch size before they are read, such as a generator.

    Example:
    >>> import keras, numpy as np, tensorflow as tf, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    >>> x, y = np.random.normal(size=(100, 4)).astype("float32"), np.repeat([0, 1, 2], [80, 15, 5])
    >>> examples = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(100)
    >>> balanced = examples.apply(kt.data.class_balanced([80, 15, 5])).batch(20)
    >>> retrained = kt.models.retrain_classifier(model, balanced, epochs=2, shuffle=False, verbose=0)
    >>> len(retrained.history.history["loss"])
    2

    Reference:
        Bingyi Kang, Saining Xie, Marcus Rohrbach, Zhicheng Yan, Albert Gordo, Jiashi Feng, Yannis Kalantidis,
        "Decoupling Representation and Classifier for Long-Tailed Recognition", 2020, arXiv:1910.09217.
    """
    found = find("retrain_classifier", model, layer)
    if not found.layer.weights:
        raise ValueError(f"`retrain_classifier`: {described(found.layer)} has nothing to train. Name another layer.")
    require_plain_kernel("retrain_classifier", found.layer)
    training = Training("retrain_classifier", model, data, epochs, optimizer, loss, kwargs)
    _, path = copy_around(found, lambda layer: _fresh(layer, seed), carry_nothing)
    history = training.run(path)

    def carry(old, new):
        copy_weights(old, new)  # for the flags
        for variable, trained in zip(new.variables, path[-1].variables, strict=True):
            variable.assign(ops.convert_to_numpy(trained))

    return result_of(found, carry, history)


def _fresh(layer, seed):
    """An unbuilt copy of a layer that will draw other weights than the layer did, even if that one had a fixed seed."""
    config = unbuilt(layer.get_config())
    for key, value in config.items():
        if key.endswith("_initializer") and isinstance(value, dict) and "seed" in value.get("config", {}):
            config[key] = {**value, "config": {**value["config"], "seed": seed}}
    return type(layer).from_config(config)
