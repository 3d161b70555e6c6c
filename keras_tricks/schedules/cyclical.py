"""Cyclical learning rates: up and down between two bounds, so that no single best rate has to be found.

    cycle = floor(1 + t/(2·step_size))        x = |t/step_size - 2·cycle + 1|
    rate  = initial + (maximal - initial) · max(0, 1 - x) · scale

Smith, 2017, arXiv:1506.01186. Equals TensorFlow Addons' CyclicalLearningRate and torch's CyclicLR. `scale` is 1
(triangular), 1/2^(cycle - 1) (triangular2) or gamma^t (exp_range).
"""

import math
import warnings

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_choice, check_number

MODES = ("triangular", "triangular2", "exp_range")


@keras.saving.register_keras_serializable(package="keras_tricks")
class CyclicalLearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises from `initial_learning_rate` to `maximal_learning_rate` in `step_size` steps, and falls back.

    A pure function of the optimizer step, which starts at 0; it goes on for ever.

    Args:
        initial_learning_rate: The rate at the bottom of a cycle.
        maximal_learning_rate: The rate at the top of the first cycle.
        step_size: Optimizer steps of half a cycle; 2 to 10 epochs' worth is usual.
        mode: `"triangular"` (default), `"triangular2"` (each cycle half as high as the one before) or `"exp_range"`
            (the height shrinks by the factor `gamma` per step).
        gamma: Base of `exp_range`, in (0, 1]. Defaults to `1.0`.
        scale_fn: A function that replaces `mode`: from the cycle (1, 2, ...) or the step to a factor for the height. To
            be saved with a model it has to be registered with Keras, so it cannot be a lambda; `lambda x: 1 / 2 ** (x -
            1)` is `mode="triangular2"`. Defaults to `None`.
        scale_mode: What `scale_fn` receives: `"cycle"` (default) or `"iterations"`.
        name: Name of the schedule. Defaults to `"CyclicalLearningRate"`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: For an unknown mode, and a number that is not finite or out of range.

    Example:
    >>> import keras_tricks as kt
    >>> schedule = kt.schedules.CyclicalLearningRate(0.1, 0.5, step_size=2)
    >>> [round(float(schedule(step)), 2) for step in range(5)]
    [0.1, 0.3, 0.5, 0.3, 0.1]

    Reference:
        Leslie N. Smith, "Cyclical Learning Rates for Training Neural Networks", 2017, arXiv:1506.01186.
    """

    def __init__(
        self,
        initial_learning_rate,
        maximal_learning_rate,
        step_size,
        mode="triangular",
        gamma=1.0,
        scale_fn=None,
        scale_mode="cycle",
        name="CyclicalLearningRate",
    ):
        super().__init__()
        check_choice("mode", mode, MODES)
        if scale_fn is not None and not callable(scale_fn):
            raise TypeError(f"`scale_fn` must be None or a function. Received: scale_fn={scale_fn!r}")
        check_choice("scale_mode", scale_mode, ("cycle", "iterations"))
        self.initial_learning_rate = check_number("initial_learning_rate", initial_learning_rate, at_least=0)
        self.maximal_learning_rate = check_number("maximal_learning_rate", maximal_learning_rate, at_least=0)
        self.step_size = check_number("step_size", step_size, above=0)
        self.mode = mode
        self.gamma = check_number("gamma", gamma, above=0, at_most=1)
        self.scale_fn = scale_fn
        self.scale_mode = scale_mode
        self.name = name

    def __call__(self, step):
        step = ops.cast(step, "float32")
        cycle = ops.floor(1 + step / (2 * self.step_size))
        x = ops.abs(step / self.step_size - 2 * cycle + 1)
        height = (self.maximal_learning_rate - self.initial_learning_rate) * ops.maximum(0.0, 1 - x)
        return self.initial_learning_rate + height * self._scale(step, cycle)

    def _scale(self, step, cycle):
        if self.scale_fn is not None:
            return ops.cast(self.scale_fn(cycle if self.scale_mode == "cycle" else step), "float32")
        if self.mode == "triangular2":
            return ops.exp((1 - cycle) * math.log(2))
        if self.mode == "exp_range":
            return ops.exp(step * math.log(self.gamma))
        return 1.0

    def get_config(self):
        scale_fn = self.scale_fn
        if getattr(scale_fn, "__name__", None) == "<lambda>":
            warnings.warn(
                "`scale_fn` is a lambda, so what is saved with this schedule loads again with `safe_mode=False` only. "
                f"{self._instead()}",
                stacklevel=2,
            )
        return {
            "initial_learning_rate": self.initial_learning_rate,
            "maximal_learning_rate": self.maximal_learning_rate,
            "step_size": self.step_size,
            "mode": self.mode,
            "gamma": self.gamma,
            "scale_fn": None if scale_fn is None else keras.saving.serialize_keras_object(scale_fn),
            "scale_mode": self.scale_mode,
            "name": self.name,
        }

    def _instead(self):
        """What to write in place of a `scale_fn` that cannot be loaded."""
        xs = np.array([1.0, 2.0, 3.0, 6.0])
        scales = np.array([float(self.scale_fn(x)) for x in xs])
        same_as = {'mode="triangular"': np.ones(4)}
        if self.scale_mode == "cycle":
            same_as['mode="triangular2"'] = 0.5 ** (xs - 1)
        else:
            same_as[f'mode="exp_range", gamma={scales[0]:g}'] = scales[0] ** xs
        for mode, expected in same_as.items():
            if np.allclose(scales, expected):
                return f"Write `{mode}` instead, which is the same."
        return (
            'Write a function with `def`, under `@keras.saving.register_keras_serializable(package="...")`, or one of '
            'the modes "triangular", "triangular2" and "exp_range".'
        )

    @classmethod
    def from_config(cls, config):
        config = dict(config)
        if config.get("scale_fn") is not None:
            config["scale_fn"] = keras.saving.deserialize_keras_object(config["scale_fn"])
        return cls(**config)
