"""Yogi: Adam whose second moment moves by g² at most, so that a burst of sparse gradients is not soon forgotten.

    m <- b1 m + (1 - b1) g          v <- v - (1 - b2) · sign(v - g²) · g²
    w <- w - learning_rate · m/(1 - b1^t) / (sqrt(v/(1 - b2^t)) + epsilon)

Zaheer et al., 2018, "Adaptive Methods for Nonconvex Optimization". Equals `optax.yogi`: both moments begin at
`initial_accumulator_value`. TensorFlow Addons began the first at 0 and added epsilon before the correction.
"""

import keras
from keras import ops

from keras_tricks._arguments import check_number
from keras_tricks.optimizers._aggregated import AggregatedOptimizer
from keras_tricks.optimizers._hyperparameter import Hyperparameter, VariableHyperparameter
from keras_tricks.optimizers._moments import moment_constants


@keras.saving.register_keras_serializable(package="keras_tricks")
class Yogi(AggregatedOptimizer):
    """Adam with an additive second moment: `v <- v - (1 - beta_2) · sign(v - g²) · g²`.

    Adam multiplies `v` by `beta_2` at every step, so `v` collapses after a large gradient and steps become too long.
    Here the change of `v` depends on `g²` alone. The step is `learning_rate · m̂ / (sqrt(v̂) + epsilon)` with moments
    divided by `1 - beta^t`. Arithmetic and state are float32, or float64 for float64 variables.

    State: two values per parameter (8 bytes in float32).

    Args:
        learning_rate: A number, a `LearningRateSchedule` (evaluated at optimizer steps), or a callable without
            arguments. Defaults to `0.01`.
        beta_1: Decay rate of the first moment, in [0, 1). It can be set while training. Defaults to `0.9`.
        beta_2: Decay rate of the second moment, in [0, 1). Defaults to `0.999`.
        epsilon: Added to the root of the second moment. A large one is part of the method. Defaults to `1e-3`.
        initial_accumulator_value: Where both moments begin. Defaults to `1e-6`.
        exclude_from_weight_decay: For `weight_decay`, which is decoupled from the gradient as in AdamW: `None` for
            every variable of rank 0 or 1, or a list of regular expressions on paths, layers or variables.
        **kwargs: Keywords of every optimizer, as `keras_tricks.optimizers` describes them: `weight_decay`,
            `clipnorm`, `global_clipnorm`, `clipvalue`, `use_ema`, `ema_momentum`, `ema_overwrite_frequency`,
            `loss_scale_factor`, `gradient_accumulation_steps`, `jit_compile`, `name`.

    Raises:
        TypeError, ValueError: For values of the wrong kind or out of range.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=kt.Yogi(0.01), loss="mse")
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Reference:
        Manzil Zaheer et al., "Adaptive Methods for Nonconvex Optimization", NeurIPS 2018.
    """

    beta_1 = VariableHyperparameter()
    beta_2 = Hyperparameter(check_number, at_least=0, below=1)
    epsilon = Hyperparameter(check_number, at_least=0)
    initial_accumulator_value = Hyperparameter(check_number, fixed=True, at_least=0)

    def __init__(
        self,
        learning_rate=0.01,
        beta_1=0.9,
        beta_2=0.999,
        epsilon=1e-3,
        initial_accumulator_value=1e-6,
        exclude_from_weight_decay=None,
        **kwargs,
    ):
        super().__init__(learning_rate, exclude_from_weight_decay=exclude_from_weight_decay, **kwargs)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.initial_accumulator_value = initial_accumulator_value

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.first_moments, self.second_moments = self.add_optimizer_variables(
            variables,
            ["first_moment", "second_moment"],
            initializer=keras.initializers.Constant(self.initial_accumulator_value),
        )

    def step_constants(self, dtype):
        return moment_constants(self, dtype)

    def step(self, index, g, w, rate, constants):
        m, v = self.read(self.first_moments[index], self.second_moments[index])
        squares = ops.square(g)
        m = m + (g - m) * constants["new"]
        v = v - (1 - self.beta_2) * ops.sign(v - squares) * squares
        self.assign(self.first_moments[index], m)
        self.assign(self.second_moments[index], v)
        return w - rate * constants["factor"] * m / (ops.sqrt(v) + constants["epsilon"])

    def get_config(self):
        return {
            **super().get_config(),
            "beta_1": self.beta_1.given,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "initial_accumulator_value": self.initial_accumulator_value,
        }
