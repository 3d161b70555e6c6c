"""The rate is multiplied by a factor at each of a few chosen steps, and constant between them.

    rate(t) = initial · factor^(number of milestones m with m <= t)

Zhang et al., 2021, arXiv:2106.11342, section 12.11; torch's MultiStepLR. Keras' PiecewiseConstantDecay changes one step
after its boundary.
"""

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_count, check_number


@keras.saving.register_keras_serializable(package="keras_tricks")
class MultiFactor(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that is multiplied by `factor` at each milestone: `initial * factor ** (milestones passed)`.

    A milestone is passed at the step that bears its number. A pure function of the optimizer step, which starts at 0;
    after the last milestone the rate is constant.

    Args:
        initial_learning_rate: The rate before the first milestone.
        factor: What the rate is multiplied by at a milestone, above 0 and at most 1.
        milestones: Optimizer steps, whole numbers, each larger than the one before.
        name: Name of the schedule. Defaults to `"MultiFactor"`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a number is out of range, or the milestones are missing or out of order.

    Example:
    >>> import keras_tricks as kt
    >>> schedule = kt.schedules.MultiFactor(0.1, factor=0.5, milestones=[2, 4])
    >>> [round(float(schedule(step)), 3) for step in range(6)]
    [0.1, 0.1, 0.05, 0.05, 0.025, 0.025]

    Reference:
        Aston Zhang, Zachary C. Lipton, Mu Li, Alexander J. Smola, "Dive into Deep Learning", 2021, arXiv:2106.11342.
    """

    def __init__(self, initial_learning_rate, factor, milestones, name="MultiFactor"):
        super().__init__()
        self.initial_learning_rate = check_number("initial_learning_rate", initial_learning_rate, at_least=0)
        self.factor = check_number("factor", factor, above=0, at_most=1, hint=" To divide by n, give 1/n.")
        if isinstance(milestones, str) or not np.iterable(milestones):
            raise TypeError(f"`milestones` must be a list of steps. Received: milestones={milestones!r}")
        self.milestones = [check_count("milestones", m, at_least=0) for m in milestones]
        if not self.milestones or any(a >= b for a, b in zip(self.milestones, self.milestones[1:], strict=False)):
            raise ValueError(
                "`milestones` must hold at least one step, each larger than the one before. Received: "
                f"milestones={self.milestones}"
            )
        self.name = name

    def __call__(self, step):
        passed = ops.expand_dims(ops.cast(step, "int32"), -1) >= ops.convert_to_tensor(self.milestones, "int32")
        return self.initial_learning_rate * ops.power(self.factor, ops.sum(ops.cast(passed, "float32"), axis=-1))

    def get_config(self):
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "factor": self.factor,
            "milestones": list(self.milestones),
            "name": self.name,
        }
