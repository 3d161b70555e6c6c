"""Adafactor: the second moments of a matrix from their row and column means alone, and steps relative to the weights.

    b  = 1 - t^beta_2_decay                     q = g² + epsilon_1
    R <- b R + (1 - b) row means of q           C <- b C + (1 - b) column means of q
    u  = g / sqrt(R C / mean(R))                u <- u / max(1, RMS(u) / clip_threshold)
    w <- w - rate · max(epsilon_2, RMS(w)) · u          rate: min(0.01, 1/sqrt(t)) or learning_rate

Shazeer and Stern, 2018, arXiv:1804.04235. Equals mesh-tensorflow with parameter scaling, and `optax.adafactor` with a
learning rate and without decay (optax does not multiply the decay by the rate, and has no relative step).
`keras.optimizers.Adafactor` keeps a full-size second moment beside R and C, and always caps the rate at 1/sqrt(t).
"""

import math

import keras
from keras import ops

from keras_tricks._arguments import check_count, check_flag, check_number
from keras_tricks._keras.optimizers import schedule_of
from keras_tricks.optimizers._aggregated import AggregatedOptimizer
from keras_tricks.optimizers._hyperparameter import Hyperparameter, VariableHyperparameter
from keras_tricks.optimizers._reductions import sum_of_squares, sum_over


@keras.saving.register_keras_serializable(package="keras_tricks")
class Adafactor(AggregatedOptimizer):
    """Adam-like steps with almost no state: second moments are kept as an outer product of two vectors.

    The two largest axes of a variable are factored where both have at least `min_dim_size_to_factor` elements: a kernel
    `(3, 3, 64, 128)` keeps `(3, 3, 64)` and `(3, 3, 128)` numbers. Other variables keep their second moments whole. No
    full-size second moment of a factored variable is ever stored. Arithmetic and state are float32, or float64 for
    float64 variables.

    State: 0.8 % of the parameters on ResNet-50; with `beta_1` one more value per parameter.

    Args:
        learning_rate: `None` for the relative step `min(0.01, 1/sqrt(t))`; or a number, a `LearningRateSchedule`
            (evaluated at optimizer steps), or a callable without arguments. Defaults to `None`.
        beta_1: Decay rate of an average of the steps, in (0, 1), or `None` for none. It can be set while training,
            unless it is `None` at first. Defaults to `None`.
        beta_2_decay: Exponent in `1 - t^beta_2_decay`, in [-1, 0). Defaults to `-0.8`.
        epsilon_1: Added to the squared gradient. Defaults to `1e-30`.
        epsilon_2: Least size of the weights that steps are relative to. Defaults to `1e-3`.
        clip_threshold: Largest root mean square of `u`, or `None` for no limit. Defaults to `1.0`.
        scale_parameter: Whether steps are relative to the size of the weights. Defaults to `True`.
        relative_step: `None` for relative if `learning_rate` is `None`; set it to have that checked. Defaults to
            `None`.
        warmup_init: Whether the relative step begins at `1e-6 · t` instead of 0.01. Defaults to `False`.
        min_dim_size_to_factor: Least length of both factored axes. Defaults to `16`; the paper's code uses 128, which
            leaves much of a convolutional network whole.
        weight_decay: Each step also subtracts `rate · weight_decay · w`, not multiplied by the size of the weights.
            Defaults to `0.0`.
        exclude_from_weight_decay: `None` for every variable of rank 0 or 1, or a list of regular expressions on
            variable paths (`block1/conv/kernel`), layers or variables; `[]` for none.
        **kwargs: Keywords of every optimizer, as `keras_tricks.optimizers` describes them: `clipnorm`,
            `global_clipnorm`, `clipvalue`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`,
            `gradient_accumulation_steps`, `jit_compile`, `name`.

    Raises:
        TypeError, ValueError: For values of the wrong kind or out of range.
        ValueError: If `learning_rate` and `relative_step=True` are both given, or neither.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=kt.Adafactor(1e-3, scale_parameter=False), loss="mse")
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Reference:
        Noam Shazeer, Mitchell Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost", 2018,
        arXiv:1804.04235.
    """

    decoupled_weight_decay = False  # the decay is taken with the step
    beta_1 = VariableHyperparameter()
    beta_2_decay = Hyperparameter(check_number, at_least=-1, below=0)
    epsilon_1 = Hyperparameter(check_number, at_least=0)
    epsilon_2 = Hyperparameter(check_number, at_least=0)
    clip_threshold = Hyperparameter(check_number, optional=True, above=0)
    scale_parameter = Hyperparameter(check_flag)
    min_dim_size_to_factor = Hyperparameter(check_count, fixed=True)

    def __init__(
        self,
        learning_rate=None,
        beta_1=None,
        beta_2_decay=-0.8,
        epsilon_1=1e-30,
        epsilon_2=1e-3,
        clip_threshold=1.0,
        scale_parameter=True,
        relative_step=None,
        warmup_init=False,
        min_dim_size_to_factor=16,
        weight_decay=0.0,
        exclude_from_weight_decay=None,
        **kwargs,
    ):
        if relative_step is None:
            relative_step = learning_rate is None
        elif check_flag("relative_step", relative_step) != (learning_rate is None):
            raise ValueError(
                "`relative_step=True` computes the rate itself and takes no `learning_rate`; `relative_step=False` "
                f"needs one. Received: learning_rate={learning_rate!r}, relative_step={relative_step}"
            )
        if check_flag("warmup_init", warmup_init) and not relative_step:
            raise ValueError(
                "`warmup_init=True` belongs to the relative step, without `learning_rate`. To warm up a rate of your "
                "own, pass a LearningRateSchedule."
            )
        super().__init__(
            _RelativeStep(warmup_init) if relative_step else learning_rate,
            weight_decay=weight_decay,
            exclude_from_weight_decay=exclude_from_weight_decay,
            **kwargs,
        )
        if beta_1 is not None:
            self.beta_1 = beta_1
        self.beta_2_decay = beta_2_decay
        self.epsilon_1 = epsilon_1
        self.epsilon_2 = epsilon_2
        self.clip_threshold = clip_threshold
        self.scale_parameter = scale_parameter
        self.min_dim_size_to_factor = min_dim_size_to_factor

    @property
    def relative_step(self):
        """Whether the rate is computed here: until `learning_rate` is set to something else."""
        return isinstance(schedule_of(self), _RelativeStep)

    @property
    def warmup_init(self):
        """Whether the relative step begins small."""
        return self.relative_step and schedule_of(self).warmup_init

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.has_momentum = hasattr(self, "beta_1")
        self.factored_axes = [factored_axes(v.shape, self.min_dim_size_to_factor) for v in variables]
        self.second_moments = [
            [self.add_state(v, shape, name) for name, shape in _moments(v.shape, axes)]
            for v, axes in zip(variables, self.factored_axes, strict=True)
        ]
        if self.has_momentum:
            self.momentum_buffers = self.add_optimizer_variables(variables, "average_step")

    def step_constants(self, dtype):
        return {
            "b": 1 - ops.power(ops.cast(self.iterations + 1, dtype), self.beta_2_decay),
            "new": ops.cast(1 - self.beta_1, dtype) if self.has_momentum else None,
        }

    def step(self, index, g, w, rate, constants):
        u = g * self._inverse_root(index, ops.square(g) + self.epsilon_1, constants["b"])
        scale = rate
        if self.clip_threshold is not None:
            scale = scale / ops.maximum(1.0, _rms(u) / self.clip_threshold)
        if self.scale_parameter:
            scale = scale * ops.maximum(self.epsilon_2, _rms(w))
        u = scale * u
        if self.has_momentum:
            (buffer,) = self.read(self.momentum_buffers[index])
            u = buffer + (u - buffer) * constants["new"]
            self.assign(self.momentum_buffers[index], u)
        if decay := self.decay_of(index):
            u = u + rate * decay * w
        return w - u

    def _inverse_root(self, index, q, b):
        """1 / sqrt(second moments), as a tensor that broadcasts, after moving the moments towards `q`."""
        moments, axes = self.read(*self.second_moments[index]), self.factored_axes[index]
        means = [q] if axes is None else [_mean(q, axis) for axis in axes]
        moments = [mean + b * (m - mean) for m, mean in zip(moments, means, strict=True)]
        for variable, value in zip(self.second_moments[index], moments, strict=True):
            self.assign(variable, value)
        if axes is None:
            return ops.rsqrt(moments[0])
        rows, columns = moments  # means over columns, over rows: `rows` still has the axis that `columns` lacks
        return ops.rsqrt(rows / ops.mean(rows, axis=axes[1], keepdims=True)) * ops.rsqrt(columns)

    def get_config(self):
        return {
            **super().get_config(),
            **({"learning_rate": None} if self.relative_step else {}),
            "beta_1": self.beta_1.given if hasattr(self, "beta_1") else None,
            "beta_2_decay": self.beta_2_decay,
            "epsilon_1": self.epsilon_1,
            "epsilon_2": self.epsilon_2,
            "clip_threshold": self.clip_threshold,
            "scale_parameter": self.scale_parameter,
            "relative_step": self.relative_step,
            "warmup_init": self.warmup_init,
            "min_dim_size_to_factor": self.min_dim_size_to_factor,
        }


@keras.saving.register_keras_serializable(package="keras_tricks")
class _RelativeStep(keras.optimizers.schedules.LearningRateSchedule):
    """min(0.01, 1/sqrt(t)), or with `warmup_init` min(1e-6 t, 1/sqrt(t)), at step t - 1."""

    def __init__(self, warmup_init):
        self.warmup_init = warmup_init

    def __call__(self, step):
        t = ops.cast(step, "float32") + 1
        return ops.minimum(1e-6 * t if self.warmup_init else 1e-2, ops.rsqrt(t))

    def get_config(self):
        return {"warmup_init": self.warmup_init}


def _mean(x, axis):
    return sum_over(x, [axis]) / x.shape[axis]


def _rms(x):
    return ops.sqrt(sum_of_squares(x) / math.prod(x.shape))


def factored_axes(shape, least):
    """(largest axis, second largest axis), ties towards the last axes; None where they are shorter than `least`."""
    by_length = sorted(range(len(shape)), key=lambda axis: (shape[axis], axis))
    if len(shape) < 2 or shape[by_length[-2]] < least:
        return None
    return by_length[-1], by_length[-2]


def _moments(shape, axes):
    if axes is None:
        return [("second_moment", tuple(shape))]
    return [(f"mean_over_axis_{axis}", tuple(1 if i == axis else n for i, n in enumerate(shape))) for axis in axes]
