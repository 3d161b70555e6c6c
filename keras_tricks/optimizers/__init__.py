"""Optimizers and gradient transforms that are right on any number of replicas, under XLA and in low precision."""

from keras_tricks.optimizers.accumulation import GradientAccumulation
from keras_tricks.optimizers.adafactor import Adafactor
from keras_tricks.optimizers.agc import AdaptiveGradientClipping
from keras_tricks.optimizers.lamb import LAMB
from keras_tricks.optimizers.lars import LARS
from keras_tricks.optimizers.lookahead import Lookahead
from keras_tricks.optimizers.loss_scale import LossScaleOptimizer
from keras_tricks.optimizers.sm3 import SM3
from keras_tricks.optimizers.state_bytes import state_bytes
from keras_tricks.optimizers.yogi import Yogi

__all__ = [
    "LAMB",
    "LARS",
    "SM3",
    "Adafactor",
    "AdaptiveGradientClipping",
    "GradientAccumulation",
    "Lookahead",
    "LossScaleOptimizer",
    "Yogi",
    "state_bytes",
]
