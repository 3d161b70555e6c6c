"""LARS: momentum SGD with a rate for each layer, proportional to weights over gradients, for very large batches.

    d <- g + weight_decay · w
    s <- learning_rate · trust_coefficient · ‖w‖ / (‖d‖ + epsilon) · d          (ratio 1 where a norm is 0)
    v <- momentum · v + s           w <- w - v      (nesterov: w <- w - momentum · v - s)

You et al., 2017, arXiv:1708.03888. Equals `optax.lars` when nothing is excluded. The paper divides by
‖g‖ + weight_decay · ‖w‖ instead of ‖d‖, which is never smaller.
"""

import keras
from keras import ops

from keras_tricks._arguments import check_flag, check_number
from keras_tricks.optimizers._aggregated import AggregatedOptimizer
from keras_tricks.optimizers._exclude import Exclusion
from keras_tricks.optimizers._hyperparameter import Hyperparameter, VariableHyperparameter
from keras_tricks.optimizers._reductions import sum_of_squares


@keras.saving.register_keras_serializable(package="keras_tricks")
class LARS(AggregatedOptimizer):
    """Layer-wise adaptive rate scaling: momentum SGD whose step on each variable is proportional to its norm.

    Every variable `w` with gradient `g` takes the step `s = learning_rate · ratio · d` into its momentum, where
    `d = g + weight_decay · w` and `ratio = trust_coefficient · ‖w‖ / (‖d‖ + epsilon)` (1 where either norm is 0).
    The momentum holds steps, with their learning rates. Arithmetic and state are float32, or float64 for float64
    variables.

    State: one value per parameter (4 bytes in float32); none with `momentum=0`.

    Args:
        learning_rate: A number, a `LearningRateSchedule` (evaluated at optimizer steps), or a callable without
            arguments. Defaults to `0.1`. Typical values are 1 to 30, after a warm-up from 0.
        momentum: Decay rate of the sum of steps, in [0, 1). It can be set while training, unless it is 0 at first.
            Defaults to `0.9`.
        nesterov: Whether to look one step of momentum ahead. Defaults to `False`.
        weight_decay: Coefficient of `w` in `d`. Defaults to `0.0`.
        trust_coefficient: Size of a step relative to the weights, at a learning rate of 1. Defaults to `1e-3`.
        epsilon: Added to `‖d‖`. Defaults to `0.0`.
        exclude_from_weight_decay: `None` for every variable of rank 0 or 1, or a list of regular expressions on
            variable paths (`block1/conv/kernel`), layers or variables; `[]` for none.
        exclude_from_layer_adaptation: The same for the ratio: excluded variables take the step of momentum SGD with
            the full learning rate.
        **kwargs: Keywords of every optimizer, as `keras_tricks.optimizers` describes them: `clipnorm`,
            `global_clipnorm`, `clipvalue`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`, `loss_scale_factor`,
            `gradient_accumulation_steps`, `jit_compile`, `name`.

    Raises:
        TypeError, ValueError: For values of the wrong kind or out of range.
        ValueError: At build for a pattern that matches no variable.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=kt.LARS(1.0, weight_decay=1e-4), loss="mse")
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Reference:
        Yang You, Igor Gitman, Boris Ginsburg, "Large Batch Training of Convolutional Networks", 2017,
        arXiv:1708.03888.
    """

    decoupled_weight_decay = False  # the decay is part of `d`
    momentum = VariableHyperparameter()
    nesterov = Hyperparameter(check_flag)
    trust_coefficient = Hyperparameter(check_number, above=0)
    epsilon = Hyperparameter(check_number, at_least=0)

    def __init__(
        self,
        learning_rate=0.1,
        momentum=0.9,
        nesterov=False,
        weight_decay=0.0,
        trust_coefficient=1e-3,
        epsilon=0.0,
        exclude_from_weight_decay=None,
        exclude_from_layer_adaptation=None,
        **kwargs,
    ):
        super().__init__(
            learning_rate,
            weight_decay=weight_decay,
            exclude_from_weight_decay=exclude_from_weight_decay,
            **kwargs,
        )
        self.momentum = momentum
        self.nesterov = nesterov
        self.trust_coefficient = trust_coefficient
        self.epsilon = epsilon
        self.adaptation_exclusions = Exclusion(exclude_from_layer_adaptation, "exclude_from_layer_adaptation")

    def build(self, variables):
        if self.built:
            return
        self.adapted = [not out for out in self.adaptation_exclusions.of(variables)]
        super().build(variables)
        self.has_momentum = self.momentum.given > 0
        if self.has_momentum:
            self.velocities = self.add_optimizer_variables(variables, "velocity")

    def step_constants(self, dtype):
        return {"momentum": ops.cast(self.momentum, dtype)}

    def step(self, index, g, w, rate, constants):
        d = g
        if decay := self.decay_of(index):
            d = d + decay * w
        s = (rate * self.trust_ratio(w, d) if self.adapted[index] else rate) * d
        if self.has_momentum:
            momentum, (v,) = constants["momentum"], self.read(self.velocities[index])
            v = momentum * v + s
            self.assign(self.velocities[index], v)
            s = momentum * v + s if self.nesterov else v
        return w - s

    def trust_ratio(self, weight, direction):
        """trust_coefficient · ‖weight‖ / (‖direction‖ + epsilon); 1 where a norm is 0."""
        weight_norm = ops.sqrt(sum_of_squares(weight))
        direction_norm = ops.sqrt(sum_of_squares(direction))
        usable = ops.logical_and(weight_norm > 0, direction_norm > 0)
        ratio = self.trust_coefficient * weight_norm / (ops.where(usable, direction_norm, 1.0) + self.epsilon)
        return ops.where(usable, ratio, 1.0)

    def get_config(self):
        return {
            **super().get_config(),
            "momentum": self.momentum.given,
            "nesterov": self.nesterov,
            "trust_coefficient": self.trust_coefficient,
            "epsilon": self.epsilon,
            "exclude_from_layer_adaptation": self.adaptation_exclusions.to_config(),
        }
