"""Adaptive gradient clipping: the gradient of each output unit, limited in proportion to the unit's weights.

    limit = clipping · max(‖w‖, epsilon)          g <- g · limit / ‖g‖  where ‖g‖ > limit          (norms of one unit)

Brock, De, Smith, Simonyan, 2021, arXiv:2102.06171, section 4. Equals `optax.adaptive_grad_clip` for dense and
2D convolution kernels. Keras' other layouts (depthwise, transposed, embedding, attention) have their units elsewhere.
"""

import math

import keras
from keras import ops

from keras_tricks._arguments import check_number
from keras_tricks._keras.optimizers import ScalarVariable
from keras_tricks.optimizers._exclude import Exclusion
from keras_tricks.optimizers._hyperparameter import Hyperparameter
from keras_tricks.optimizers._reductions import sum_over
from keras_tricks.optimizers._unit_axes import unit_axes
from keras_tricks.optimizers._wrapper import OptimizerWrapper


@keras.saving.register_keras_serializable(package="keras_tricks")
class AdaptiveGradientClipping(OptimizerWrapper):
    """Clips each unit's gradient to `clipping` times the norm of the unit's weights, then lets `optimizer` step.

    A unit is what computes one output: a column of a dense kernel, a filter of a convolution, a filter and channel of a
    depthwise one, a row of an embedding, a head's feature of an attention projection. Vectors and scalars, and
    tensors such as `(1, 1, 1, n)` that are vectors but for axes of length 1, have one norm. Gradients are clipped after
    aggregation over replicas and accumulation, before `optimizer`'s own clipping and decay.

    State: that of `optimizer`, and one number.

    Args:
        optimizer: Any Keras optimizer or wrapper.
        clipping: Largest norm of a gradient relative to that of the weights. Defaults to `0.01`, the paper's value for
            batches of 4096.
        epsilon: Least norm of the weights, so that units that begin at zero can move. Defaults to `1e-3`.
        exclude: `None` or `[]` for no exclusions, or a list of regular expressions on variable paths, layers or
            variables. Exclude the kernel of the classifier, as the paper does.
        name: Name of the wrapper. Defaults to the name of the class.
        jit_compile: Whether XLA compiles the step where the model is not compiled: `True`, `False`, or `"auto"`
            (default) for where that is faster.

    Raises:
        TypeError, ValueError: If `optimizer` cannot be wrapped, or a number is out of range.
        ValueError: At build for a pattern that matches no variable.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1, name="classifier")])
    >>> sgd = keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True)
    >>> model.compile(optimizer=kt.AdaptiveGradientClipping(sgd, 0.02, exclude=["classifier/kernel"]), loss="mse")
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)
    >>> 0 <= float(model.optimizer.clip_rate) <= 1
    True

    Reference:
        Andrew Brock, Soham De, Samuel L. Smith, Karen Simonyan, "High-Performance Large-Scale Image Recognition Without
        Normalization", 2021, arXiv:2102.06171.
    """

    clipping = Hyperparameter(check_number, above=0)
    epsilon = Hyperparameter(check_number, above=0)

    def __init__(self, optimizer, clipping=0.01, epsilon=1e-3, exclude=None, name=None, jit_compile="auto", **kwargs):
        super().__init__(optimizer, name=name, jit_compile=jit_compile, **kwargs)
        self.clipping = clipping
        self.epsilon = epsilon
        self.exclusions = Exclusion(() if exclude is None else exclude, "exclude")
        self.clip_rate = self.add_variable((), dtype="float32", name="clip_rate")
        self.clip_rate.__class__ = ScalarVariable

    def build(self, variables):
        if self.built:
            return
        excluded = self.exclusions.of(variables)
        axes = unit_axes(variables)
        self.unit_axes = [None if out else of_variable for out, of_variable in zip(excluded, axes, strict=True)]
        super().build(variables)

    def before_update(self, grads, variables):
        clipped, counts, units = [], [], 0
        for g, v in zip(grads, variables, strict=True):
            axes = self.unit_axes[self.variable_index(v)]
            if axes is None:
                clipped.append(g)
                continue
            weight_norm = ops.sqrt(sum_over(ops.square(ops.cast(v, g.dtype)), axes))
            norm = ops.sqrt(sum_over(ops.square(g), axes))
            limit = self.clipping * ops.maximum(weight_norm, self.epsilon)
            too_large = norm > limit
            clipped.append(g * ops.where(too_large, limit / ops.maximum(norm, 1e-6), 1.0))
            counts.append(ops.sum(ops.cast(too_large, "float32")))
            units += math.prod(norm.shape)
        if units:
            self.assign(self.clip_rate, sum(counts[1:], start=counts[0]) / units)
        return clipped

    def get_config(self):
        return {
            **super().get_config(),
            "clipping": self.clipping,
            "epsilon": self.epsilon,
            "exclude": self.exclusions.to_config(),
        }
