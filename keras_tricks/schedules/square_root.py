"""The rate falls with the square root of the number of steps, fast at first and ever more slowly.

    rate(t) = initial / sqrt(t + 1)

Zhang et al., 2021, arXiv:2106.11342, section 12.11.
"""

import keras
from keras import ops

from keras_tricks._arguments import check_number


@keras.saving.register_keras_serializable(package="keras_tricks")
class SquareRoot(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that falls as `initial_learning_rate / sqrt(step + 1)`.

    Half the rate after 3 steps, a tenth after 99. A pure function of the optimizer step, which starts at 0; it has no
    end, so the length of the run need not be known.

    Args:
        initial_learning_rate: The rate at step 0.
        name: Name of the schedule. Defaults to `"SquareRoot"`.

    Raises:
        TypeError: If the rate is not a number.
        ValueError: If it is negative or not finite.

    Example:
    >>> import keras_tricks as kt
    >>> schedule = kt.schedules.SquareRoot(0.1)
    >>> [round(float(schedule(step)), 4) for step in (0, 3, 99)]
    [0.1, 0.05, 0.01]

    Reference:
        Aston Zhang, Zachary C. Lipton, Mu Li, Alexander J. Smola, "Dive into Deep Learning", 2021, arXiv:2106.11342.
    """

    def __init__(self, initial_learning_rate, name="SquareRoot"):
        super().__init__()
        self.initial_learning_rate = check_number("initial_learning_rate", initial_learning_rate, at_least=0)
        self.name = name

    def __call__(self, step):
        return self.initial_learning_rate / ops.sqrt(ops.cast(step, "float32") + 1.0)

    def get_config(self):
        return {"initial_learning_rate": self.initial_learning_rate, "name": self.name}
