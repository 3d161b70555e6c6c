"""A small network with a classifier, and data for it."""

import keras
import numpy as np
from keras import layers
from keras.ops import convert_to_numpy as numpy_of


def data(count=24, classes=3, seed=0):
    """Class-balanced, so that no warning is due."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, 6)).astype("float32"), np.arange(count) % classes


def drawn(sizes):
    """As many examples of each class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(0).normal(size=(len(labels), 6)).astype("float32"), labels


def network(head=None, activation=None, **options):
    """Features with statistics and seeds, then the classifier, then a cast."""
    inputs = keras.Input((6,))
    x = layers.BatchNormalization()(layers.Dense(5, activation="tanh")(inputs))
    x = layers.Dropout(0.5)(layers.GaussianNoise(0.3)(x))
    head = head or layers.Dense(3, bias_initializer="glorot_normal", name="head", **options)
    model = keras.Model(inputs, layers.Activation(activation or "linear", dtype="float32")(head(x)), name="network")
    random = np.random.default_rng(0)
    for v in model.weights:
        v.assign(random.normal(size=v.shape) if "variance" not in v.name else random.uniform(0.5, 2, v.shape))
    return model


def features(model, x):
    """What reaches the classifier at inference, in float64."""
    part = keras.Model(model.input, model.get_layer("head").input)
    return numpy_of(part(x, training=False)).astype("float64")


def state(model):
    flags = [layer.trainable for layer in model._flatten_layers()]
    return [numpy_of(v).tobytes() for v in model.variables], flags, [v.trainable for v in model.variables]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


QUIET = {"verbose": 0, "shuffle": False}
