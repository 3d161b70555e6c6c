"""Learning-rate schedules: pure functions of the optimizer step."""

from keras_tricks.schedules.cyclical import CyclicalLearningRate

__all__ = ["CyclicalLearningRate"]
