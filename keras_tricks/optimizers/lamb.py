"""LAMB: Adam's direction, rescaled layer by layer to the size of the weights, for batches of thousands of examples.

    m <- b1 m + (1 - b1) g          v <- b2 v + (1 - b2) g²
    u  = m/(1 - b1^t) / (sqrt(v/(1 - b2^t)) + epsilon) + weight_decay · w
    w <- w - learning_rate · (‖w‖/‖u‖) · u          (ratio 1 where a norm is 0)

You et al., 2020, arXiv:1904.00962. Equals `optax.lamb` and TensorFlow Addons' LAMB when nothing is excluded.
`keras.optimizers.Lamb` differs: its decay is outside of the ratio, it excludes nothing, and its epsilon is 1e-7.
"""

import math
import numbers

import keras
from keras import ops

from keras_tricks.optimizers._aggregated import AggregatedOptimizer, arithmetic_dtype
from keras_tricks.optimizers._exclude import Exclusion


@keras.saving.register_keras_serializable(package="keras_tricks")
class LAMB(AggregatedOptimizer):
    """Layer-wise adaptive moments: Adam whose step on each variable is proportional to that variable's norm.

    Every variable `w` takes the step `w <- w - learning_rate · ratio · u`, where `u` is Adam's bias-corrected direction
    plus `weight_decay · w`, and `ratio = ‖w‖ / ‖u‖` (1 where either norm is 0). Decay is inside of the ratio.
    Arithmetic and state are float32, or float64 for float64 variables.

    State: two values a parameter (8 bytes in float32).

    Args:
        learning_rate: A number, a `LearningRateSchedule` (evaluated at optimizer steps), or a callable without
            arguments. Defaults to `1e-3`. Scale it with the square root of the batch size, and warm up.
        beta_1: Decay rate of the first moment, in [0, 1). Defaults to `0.9`.
        beta_2: Decay rate of the second moment, in [0, 1). Defaults to `0.999`.
        epsilon: Added to the root of the second moment. Defaults to `1e-6`.
        weight_decay: Coefficient of `w` in `u`. Defaults to `0.0`.
        exclude_from_weight_decay: `None` for every variable of rank 0 or 1, or a list of regular expressions on
            variable paths (`block1/conv/kernel`), layers or variables; `[]` for none.
        exclude_from_layer_adaptation: The same for the ratio: excluded variables take Adam's step, with ratio 1.
        trust_ratio_clip: `None`, an upper bound, or a pair `(low, high)` for the ratio. Defaults to `None`.
        bias_correction: Whether to divide the moments by `1 - beta^t`. Defaults to `True`.
        **kwargs: Keras' keywords for every optimizer (`clipnorm`, `global_clipnorm`, `clipvalue`, `use_ema`,
            `ema_momentum`, `gradient_accumulation_steps`, `loss_scale_factor`, `name`). They act on gradients that are
            aggregated over replicas, and count optimizer steps.

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
        for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
            if not 0 <= beta < 1:
                raise ValueError(f"`{name}` must be at least 0 and less than 1. Received: {name}={beta}")
        if not epsilon >= 0:
            raise ValueError(f"`epsilon` must not be negative. Received: epsilon={epsilon}")
        if not (weight_decay or 0.0) >= 0:
            raise ValueError(f"`weight_decay` must not be negative. Received: weight_decay={weight_decay}")
        super().__init__(learning_rate, weight_decay=weight_decay or 0.0, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.trust_ratio_clip = _as_range(trust_ratio_clip)
        self.bias_correction = bias_correction
        self.decay_exclusions = Exclusion(exclude_from_weight_decay, "exclude_from_weight_decay")
        self.adaptation_exclusions = Exclusion(exclude_from_layer_adaptation, "exclude_from_layer_adaptation")

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Keras' method: the same as the constructor's argument of this name, with regexes on the whole path."""
        if self.built:
            raise ValueError("`exclude_from_weight_decay()` must be called before the optimizer is built.")
        self.decay_exclusions = Exclusion([*(var_list or []), *(var_names or [])], "exclude_from_weight_decay")

    def build(self, variables):
        if self.built:
            return
        # Settled first, so that a pattern that matches nothing leaves the optimizer as it was.
        self.decays = [0.0 if out else self.weight_decay for out in self.decay_exclusions.of(variables)]
        self.adapted = [not out for out in self.adaptation_exclusions.of(variables)]
        super().build(variables)
        self.first_moments, self.second_moments = self.add_optimizer_variables(
            variables, ["first_moment", "second_moment"]
        )

    def update_step(self, gradient, variable, learning_rate):
        """Moves `variable` by one step; `gradient` is aggregated, averaged and clipped."""
        index = self.variable_index(variable)
        m, v = self.first_moments[index], self.second_moments[index]
        dtype = arithmetic_dtype(variable.dtype)
        g = ops.cast(gradient, dtype)
        w = ops.cast(variable, dtype)

        self.assign(m, self.beta_1 * m + (1 - self.beta_1) * g)
        self.assign(v, self.beta_2 * v + (1 - self.beta_2) * ops.square(g))
        if self.bias_correction:
            step = ops.cast(self.iterations + 1, dtype)
            u = (m / _one_minus_power(self.beta_1, step)) / (
                ops.sqrt(v / _one_minus_power(self.beta_2, step)) + self.epsilon
            )
        else:
            u = ops.convert_to_tensor(m) / (ops.sqrt(v) + self.epsilon)
        if self.decays[index]:
            u = u + self.decays[index] * w

        scale = ops.cast(learning_rate, dtype)
        if self.adapted[index]:
            scale = scale * self.trust_ratio(w, u)
        self.assign(variable, w - scale * u)

    def trust_ratio(self, weight, update):
        """‖weight‖ / ‖update‖, clipped to `trust_ratio_clip`; 1 where a norm is 0."""
        weight_norm = ops.sqrt(ops.sum(ops.square(weight)))
        update_norm = ops.sqrt(ops.sum(ops.square(update)))
        usable = ops.logical_and(weight_norm > 0, update_norm > 0)
        ratio = weight_norm / ops.where(usable, update_norm, 1.0)
        if self.trust_ratio_clip is not None:
            ratio = ops.clip(ratio, *self.trust_ratio_clip)
        return ops.where(usable, ratio, 1.0)

    def get_config(self):
        return {
            **super().get_config(),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "exclude_from_weight_decay": self.decay_exclusions.to_config(),
            "exclude_from_layer_adaptation": self.adaptation_exclusions.to_config(),
            "trust_ratio_clip": self.trust_ratio_clip,
            "bias_correction": self.bias_correction,
        }


def _as_range(clip):
    if clip is None:
        return None
    low, high = (0.0, clip) if isinstance(clip, numbers.Real) else clip
    if not 0 <= low <= high:
        raise ValueError(
            "`trust_ratio_clip` expects None, an upper bound, or a pair (low, high) with 0 <= low <= high. "
            f"Received: trust_ratio_clip={clip}"
        )
    return [float(low), float(high)]


def _one_minus_power(beta, step):
    # 1 - beta^t without the cancellation that costs float32 four digits at beta = 0.999 and small t.
    if type(beta) in (int, float):  # else it is a variable, in the place of the number
        return -ops.expm1(step * math.log(beta)) if beta else 1.0
    return -ops.expm1(step * ops.log(ops.cast(beta, step.dtype)))
