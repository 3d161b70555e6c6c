"""Warm-up in front of any schedule: the rate grows from a low value to the schedule's first one, which then begins.

    rate(t) = initial + (target(0) - initial)·(t/W)^power     for t < W
            = target(t - W)                                   afterwards

Goyal et al., 2017, arXiv:1706.02677, section 2.2, with power 1. Keras has a warm-up in its CosineDecay only.
"""

import numbers

import keras
from keras import ops

from keras_tricks._arguments import check_count, check_number

LearningRateSchedule = keras.optimizers.schedules.LearningRateSchedule


@keras.saving.register_keras_serializable(package="keras_tricks")
class WarmUp(LearningRateSchedule):
    """A schedule, or a constant rate, that begins after `warmup_steps` optimizer steps of rising rates.

    At step t < W, `initial + (target - initial) * (t / W) ** power`, where `target` is the first rate of the schedule;
    then `schedule(t - W)`. The whole takes W steps more than the schedule alone.

    Args:
        schedule_or_float: What comes after the warm-up: a `LearningRateSchedule` or a number.
        warmup_steps: Optimizer steps W of the warm-up; 0 for none.
        power: 1 rises along a line, 2 along a parabola that starts flat. Defaults to `1.0`.
        initial_learning_rate: The rate at step 0. Defaults to `0.0`: the first step moves nothing.
        name: Name of the schedule. Defaults to `"WarmUp"`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a number is out of range.

    Example:
    >>> import keras, keras_tricks as kt
    >>> schedule = kt.schedules.WarmUp(keras.optimizers.schedules.CosineDecay(0.4, decay_steps=4), warmup_steps=2)
    >>> [round(float(schedule(step)), 2) for step in range(7)]
    [0.0, 0.2, 0.4, 0.34, 0.2, 0.06, 0.0]

    Reference:
        Priya Goyal, Piotr Dollár, Ross Girshick, Pieter Noordhuis, Lukasz Wesolowski, Aapo Kyrola, Andrew Tulloch,
        Yangqing Jia, Kaiming He, "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017, arXiv:1706.02677.
    """

    def __init__(self, schedule_or_float, warmup_steps, power=1.0, initial_learning_rate=0.0, name="WarmUp"):
        super().__init__()
        if isinstance(schedule_or_float, numbers.Real):
            schedule_or_float = check_number("schedule_or_float", schedule_or_float, at_least=0)
        elif not isinstance(schedule_or_float, LearningRateSchedule):
            raise TypeError(
                "`schedule_or_float` must be a number or a keras LearningRateSchedule. Received: "
                f"{schedule_or_float!r} ({type(schedule_or_float).__name__})"
            )
        self.schedule_or_float = schedule_or_float
        self.warmup_steps = check_count("warmup_steps", warmup_steps, at_least=0)
        self.power = check_number("power", power, above=0)
        self.initial_learning_rate = check_number("initial_learning_rate", initial_learning_rate, at_least=0)
        self.name = name

    def __call__(self, step):
        # Whole steps stay whole for the schedule, which may compare them with whole numbers.
        step = ops.convert_to_tensor(step)
        after = self._target(ops.maximum(step - ops.cast(self.warmup_steps, step.dtype), ops.cast(0, step.dtype)))
        if self.warmup_steps == 0:
            return after
        step = ops.cast(step, "float32")
        share = ops.power(ops.minimum(step / self.warmup_steps, 1.0), self.power)
        before = self.initial_learning_rate + (self._target(0) - self.initial_learning_rate) * share
        return ops.where(step < self.warmup_steps, before, after)

    def _target(self, step):
        target = self.schedule_or_float
        return ops.cast(target(step) if isinstance(target, LearningRateSchedule) else target, "float32")

    def get_config(self):
        target = self.schedule_or_float
        return {
            "schedule_or_float": keras.saving.serialize_keras_object(target)
            if isinstance(target, LearningRateSchedule)
            else target,
            "warmup_steps": self.warmup_steps,
            "power": self.power,
            "initial_learning_rate": self.initial_learning_rate,
            "name": self.name,
        }

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if isinstance(config["schedule_or_float"], dict):
            config["schedule_or_float"] = keras.saving.deserialize_keras_object(config["schedule_or_float"])
        return cls(**config)
