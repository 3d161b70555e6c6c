"""Initial values of weights that Keras lacks."""

from keras_tricks.initializers.logistic_glorot import LogisticGlorotUniform

__all__ = ["LogisticGlorotUniform"]
