"""Optimizers and gradient transforms that are right on any number of replicas, under XLA and in low precision."""

from keras_tricks.optimizers.lamb import LAMB
from keras_tricks.optimizers.loss_scale import LossScaleOptimizer
from keras_tricks.optimizers.state_bytes import state_bytes

__all__ = ["LAMB", "LossScaleOptimizer", "state_bytes"]
