"""Learning-rate schedules: pure functions of the optimizer step."""

from keras_tricks.schedules.cyclical import CyclicalLearningRate
from keras_tricks.schedules.factor import Factor
from keras_tricks.schedules.multi_factor import MultiFactor
from keras_tricks.schedules.one_cycle import OneCycle
from keras_tricks.schedules.plot_schedule import plot
from keras_tricks.schedules.scale_learning_rate import scale_learning_rate
from keras_tricks.schedules.square_root import SquareRoot
from keras_tricks.schedules.warm_up import WarmUp

__all__ = [
    "CyclicalLearningRate",
    "Factor",
    "MultiFactor",
    "OneCycle",
    "SquareRoot",
    "WarmUp",
    "plot",
    "scale_learning_rate",
]
