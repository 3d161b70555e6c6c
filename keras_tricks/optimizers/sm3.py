"""SM3: Adagrad that keeps one number for each row, column, ... of a tensor instead of one for each element.

    SM3-II:  n <- min over axes k of a_k + g²          a_k <- max of n over all axes but k
    SM3-I:   a_k <- a_k + max of g² over all axes but k          n <- min over axes k of a_k
    both:    w <- w - learning_rate · g / sqrt(n)                (0/0 is 0)

Anil, Gupta, Koren, Singer, 2019, arXiv:1901.11150. Equals the authors' google-research/sm3 on dense
gradients. optax adds 1e-8 to n, which shows where gradients are about 1e-4 or smaller, and fails on scalars.
"""

import keras
from keras import ops

from keras_tricks.optimizers._aggregated import AggregatedOptimizer
from keras_tricks.optimizers._hyperparameter import Hyperparameter, VariableHyperparameter
from keras_tricks.optimizers._reductions import maximum_over

VARIANTS = ("I", "II")


def _check_variant(name, value):
    if value not in VARIANTS:
        raise ValueError(f"`{name}` must be 'I' or 'II'. Received: {name}={value!r}")
    return value


# Where a bound is 0, so is the gradient: any positive number in its place makes 0/0 the 0 that it is meant to be.
SMALLEST = 1.2e-38


@keras.saving.register_keras_serializable(package="keras_tricks")
class SM3(AggregatedOptimizer):
    """Square-root of minima of sums of maxima of squares: Adagrad with one accumulator per index of each axis.

    A tensor of shape `(n1, ..., np)` has accumulators of lengths `n1, ..., np`; the sum of squares of an element is
    taken to be the smallest of those that cover it, which is never less than Adagrad's. For scalars and vectors this is
    Adagrad itself. With momentum `b`, the step is the average `s <- b · s + (1 - b) · g / sqrt(n)`. Arithmetic and
    state are float32, or float64 for float64 variables.

    State: `n1 + ... + np` values for a tensor, 0.5 to 2 % of the parameters of convolutional networks, and with
    momentum one more value per parameter.

    Args:
        learning_rate: A number, a `LearningRateSchedule` (evaluated at optimizer steps), or a callable without
            arguments. Defaults to `0.1`. Warm it up: large first gradients stay in the accumulators permanently.
        momentum: Decay rate of the average of steps, in [0, 1); 0 for none, and no state for it. It can be set while
            training, unless it is 0 at first. Defaults to `0.9`.
        variant: `"II"`, the tighter bound, or `"I"`. Defaults to `"II"`.
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
    >>> model.compile(optimizer=kt.SM3(0.1, momentum=0.0), loss="mse")
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Reference:
        Rohan Anil, Vineet Gupta, Tomer Koren, Yoram Singer, "Memory-Efficient Adaptive Optimization", 2019,
        arXiv:1901.11150.
    """

    momentum = VariableHyperparameter()
    variant = Hyperparameter(_check_variant)

    def __init__(self, learning_rate=0.1, momentum=0.9, variant="II", exclude_from_weight_decay=None, **kwargs):
        super().__init__(learning_rate, exclude_from_weight_decay=exclude_from_weight_decay, **kwargs)
        self.momentum = momentum
        self.variant = variant

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.has_momentum = self.momentum.given > 0
        self.accumulators = [
            [self.add_state(v, shape, f"accumulator_{axis}") for axis, shape in enumerate(_covers(v.shape))]
            for v in variables
        ]
        if self.has_momentum:
            self.momentum_buffers = self.add_optimizer_variables(variables, "average_step")

    def step_constants(self, dtype):
        return {"new": ops.cast(1 - self.momentum, dtype)}

    def step(self, index, g, w, rate, constants):
        a, squares = self.read(*self.accumulators[index]), ops.square(g)
        if self.variant == "II":
            n = _minimum(a) + squares
            a = _maxima(n)
        else:
            a = [a_k + maximum for a_k, maximum in zip(a, _maxima(squares), strict=True)]
            n = _minimum(a)
        for accumulator, a_k in zip(self.accumulators[index], a, strict=True):
            self.assign(accumulator, a_k)
        u = g * ops.rsqrt(ops.maximum(n, SMALLEST))
        if self.has_momentum:
            (buffer,) = self.read(self.momentum_buffers[index])
            u = buffer + (u - buffer) * constants["new"]
            self.assign(self.momentum_buffers[index], u)
        return w - rate * u

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum.given, "variant": self.variant}


def _covers(shape):
    """The shapes of a tensor's accumulators, which broadcast to `shape`."""
    if len(shape) <= 1:
        return [tuple(shape)]
    return [tuple(n if i == axis else 1 for i, n in enumerate(shape)) for axis in range(len(shape))]


def _maxima(x):
    """The maxima of `x` over all axes but one, for each axis, with the others kept as 1; `[x]` for rank 0 and 1."""
    rank = len(x.shape)
    if rank <= 1:
        return [x]
    # One pass over the whole tensor for the last axis, one for all the others together, which are small after it.
    last = maximum_over(x, range(rank - 1))
    rest = maximum_over(x, [rank - 1])
    others = [tuple(i for i in range(rank - 1) if i != axis) for axis in range(rank - 1)]
    return [*(ops.max(rest, axis=axes, keepdims=True) for axes in others), last]


def _minimum(accumulators):
    result = accumulators[0]
    for a in accumulators[1:]:
        result = ops.minimum(result, a)
    return result
