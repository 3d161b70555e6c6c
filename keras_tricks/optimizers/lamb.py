"""LAMB: Adam's direction, rescaled layer by layer to the size of the weights, for batches of thousands of examples.

    m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g²
    u  = m/(1 - b1^t) / (sqrt(v/(1 - b2^t)) + epsilon) + weight_decay · w
    w <- w - learning_rate · (‖w‖/‖u‖) · u          (ratio 1 where a norm is 0)

You et al., 2020, arXiv:1904.00962. Equals `optax.lamb` and TensorFlow Addons' LAMB when nothing is excluded.
`keras.optimizers.Lamb` differs: its decay is outside of the ratio, it excludes nothing, and its epsilon is 1e-7.
"""

import math

import keras
from keras import ops

from keras_tricks._arguments import check_flag, check_number
from keras_tricks.optimizers._aggregated import AggregatedOptimizer
from keras_tricks.optimizers._exclude import Exclusion
from keras_tricks.optimizers._hyperparameter import Hyperparameter, VariableHyperparameter
from keras_tricks.optimizers._moments import moment_constants
from keras_tricks.optimizers._reductions import sum_of_squares


def _check_range(name, clip):
    hint = f" `{name}` is None, an upper bound, or a pair (low, high) with 0 <= low <= high."
    if isinstance(clip, (list, tuple)):
        if len(clip) != 2:
            raise ValueError(f"`{name}` has {len(clip)} entries.{hint}")
        low = check_number(f"{name}[0]", clip[0], at_least=0, hint=hint)
        return [low, check_number(f"{name}[1]", clip[1], at_least=low, hint=hint)]
    return [0.0, check_number(name, clip, at_least=0, hint=hint)]


@keras.saving.register_keras_serializable(package="keras_tricks")
class LAMB(AggregatedOptimizer):
    """Layer-wise adaptive moments: Adam whose step on each variable is proportional to that variable's norm.

    Every variable `w` takes the step `w <- w - learning_rate · ratio · u`, where `u` is Adam's bias-corrected direction
    plus `weight_decay · w`, and `ratio = ‖w‖ / ‖u‖` (1 where either norm is 0). Decay is inside the ratio.
    Arithmetic and state are float32, or float64 for float64 variables.

    State: two values per parameter (8 bytes in float32).

    Args:
        learning_rate: A number, a `LearningRateSchedule` (evaluated at optimizer steps), or a callable without
            arguments. Defaults to `1e-3`. Scale it with the square root of the batch size, and warm up.
        beta_1: Decay rate of the first moment, in [0, 1). It can be set while training. Defaults to `0.9`.
        beta_2: Decay rate of the second moment, in [0, 1). Defaults to `0.999`.
        epsilon: Added to the root of the second moment. Defaults to `1e-6`.
        weight_decay: Coefficient of `w` in `u`. Defaults to `0.0`.
        exclude_from_weight_decay: `None` for every variable of rank 0 or 1, or a list of regular expressions on
            variable paths (`block1/conv/kernel`), layers or variables; `[]` for none.
        exclude_from_layer_adaptation: The same for the ratio: excluded variables take Adam's step, with ratio 1.
        trust_ratio_clip: `None`, an upper bound, or a pair `(low, high)` for the ratio. Defaults to `None`.
        bias_correction: Whether to divide the moments by `1 - beta^t`. Defaults to `True`.
        **kwargs: Keywords of every optimizer, as `keras_tricks.optimizers` describes them: `clipnorm`,
            `global_clipnorm`, `clipvalue`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`,
            `gradient_accumulation_steps`, `jit_compile`, `name`.

    Raises:
        ValueError: For values out of range, and at build for a pattern that matches no variable.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=kt.LAMB(0.01, weight_decay=0.01), loss="mse")
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Reference:
        Yang You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", 2020,
        arXiv:1904.00962.
    """

    decoupled_weight_decay = False  # the decay is part of `u`
    beta_1 = VariableHyperparameter()
    beta_2 = Hyperparameter(check_number, at_least=0, below=1)
    epsilon = Hyperparameter(check_number, at_least=0)
    trust_ratio_clip = Hyperparameter(_check_range, optional=True)
    bias_correction = Hyperparameter(check_flag)

    def __init__(
        self,
        learning_rate=1e-3,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-6,
        weight_decay=0.0,
        exclude_from_weight_decay=None,
        exclude_from_layer_adaptation=None,
        trust_ratio_clip=None,
        bias_correction=True,
        **kwargs,
    ):
        super().__init__(
            learning_rate,
            weight_decay=weight_decay,
            exclude_from_weight_decay=exclude_from_weight_decay,
            **kwargs,
        )
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.trust_ratio_clip = trust_ratio_clip
        self.bias_correction = bias_correction
        self.adaptation_exclusions = Exclusion(exclude_from_layer_adaptation, "exclude_from_layer_adaptation")

    def build(self, variables):
        if self.built:
            return
        self.adapted = [not out for out in self.adaptation_exclusions.of(variables)]
        super().build(variables)
        self.first_moments, self.second_moments = self.add_optimizer_variables(
            variables, ["first_moment", "second_moment"]
        )

    def step_constants(self, dtype):
        return moment_constants(self, dtype, self.bias_correction)

    def step(self, index, g, w, rate, constants):
        m, v = self.read(self.first_moments[index], self.second_moments[index])
        m = m + (g - m) * constants["new"]
        v = v + (ops.square(g) - v) * (1 - self.beta_2)
        self.assign(self.first_moments[index], m)
        self.assign(self.second_moments[index], v)
        u, factor = m / (ops.sqrt(v) + constants["epsilon"]), constants["factor"]
        if decay := self.decay_of(index):
            u, factor = factor * u + decay * w, 1.0
        scale = rate * factor
        if self.adapted[index]:
            scale = scale * self.trust_ratio(w, u, factor)
        return w - scale * u

    def trust_ratio(self, weight, direction, factor=1.0):
        """‖weight‖ / ‖factor · direction‖, clipped to `trust_ratio_clip`; 1 where a norm is 0."""
        ratio = ops.sqrt(sum_of_squares(weight) / sum_of_squares(direction)) / factor
        usable = ops.logical_and(ratio > 0, ratio < math.inf)
        if self.trust_ratio_clip is not None:
            ratio = ops.clip(ratio, *self.trust_ratio_clip)
        return ops.where(usable, ratio, 1.0)

    def get_config(self):
        return {
            **super().get_config(),
            "beta_1": self.beta_1.given,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "exclude_from_layer_adaptation": self.adaptation_exclusions.to_config(),
            "trust_ratio_clip": self.trust_ratio_clip,
            "bias_correction": self.bias_correction,
        }
