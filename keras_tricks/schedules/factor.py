"""The rate is multiplied by the same factor at every step, down to a floor.

    rate(t) = max(floor, initial · factor^t)

Zhang et al., 2021, arXiv:2106.11342, section 12.11, whose class keeps a state and multiplies before it returns: its
t-th return value, with t from 1, is the rate at t here. Keras' ExponentialDecay has no floor.
"""

import math

import keras
from keras import ops

from keras_tricks._arguments import check_number


@keras.saving.register_keras_serializable(package="keras_tricks")
class Factor(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that falls as `initial_learning_rate * factor ** step`, and stops at `floor`.

    A pure function of the optimizer step, which starts at 0; it goes on for ever.

    Args:
        initial_learning_rate: The rate at step 0.
        factor: What the rate is multiplied by at each optimizer step, above 0 and at most 1. For a factor `f` per
            epoch of `n` steps, give `f ** (1 / n)`.
        floor: The lowest rate, at most the initial one. Defaults to `0.0`.
        name: Name of the schedule. Defaults to `"Factor"`.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If a number is out of range.

    Example:
    >>> import keras_tricks as kt
    >>> schedule = kt.schedules.Factor(0.8, factor=0.5, floor=0.15)
    >>> [round(float(schedule(step)), 2) for step in range(5)]
    [0.8, 0.4, 0.2, 0.15, 0.15]

    Reference:
        Aston Zhang, Zachary C. Lipton, Mu Li, Alexander J. Smola, "Dive into Deep Learning", 2021, arXiv:2106.11342.
    """

    def __init__(self, initial_learning_rate, factor, floor=0.0, name="Factor"):
        super().__init__()
        self.initial_learning_rate = check_number("initial_learning_rate", initial_learning_rate, at_least=0)
        self.factor = check_number("factor", factor, above=0, at_most=1, hint=" To divide by n, give 1/n.")
        self.floor = check_number("floor", floor, at_least=0)
        if self.floor > self.initial_learning_rate:
            raise ValueError(
                "`floor` must be at most `initial_learning_rate`, or the rate never moves. Received: "
                f"floor={floor}, initial_learning_rate={initial_learning_rate}"
            )
        self.name = name

    def __call__(self, step):
        # The logarithm is taken in Python's double precision: a factor of 0.9999 that is rounded to float32 and raised
        # to the power of 100,000 is wrong by 0.2 %.
        fallen = ops.exp(ops.cast(step, "float32") * math.log(self.factor))
        return ops.maximum(self.floor, self.initial_learning_rate * fallen)

    def get_config(self):
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "factor": self.factor,
            "floor": self.floor,
            "name": self.name,
        }
