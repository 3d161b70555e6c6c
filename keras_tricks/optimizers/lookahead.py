"""Lookahead: slow weights that follow the weights of another optimizer, and pull them back every few steps.

    every `sync_period`-th step:  slow <- slow + slow_step_size · (w - slow),  w <- slow

Zhang, Lucas, Hinton, Ba, 2019, arXiv:1907.08610. Equals TensorFlow Addons' Lookahead.
"""

import keras
from keras import ops

from keras_tricks._arguments import check_count, check_number
from keras_tricks.optimizers._hyperparameter import Hyperparameter
from keras_tricks.optimizers._moments import accumulation_dtype
from keras_tricks.optimizers._wrapper import OptimizerWrapper


@keras.saving.register_keras_serializable(package="keras_tricks")
class Lookahead(OptimizerWrapper):
    """Lets `optimizer` run ahead for `sync_period` steps, then moves the slow weights part of the way after it.

    The slow weights begin as the weights before the first step. The state of `optimizer` (its momentum) goes on as it
    is. Between two synchronisations the model has the fast weights.

    State: that of `optimizer`, and one value per parameter (4 bytes in float32).

    Args:
        optimizer: Any Keras optimizer or wrapper.
        sync_period: Number of optimizer steps from one synchronisation to the next. Defaults to `6`.
        slow_step_size: Part of the way that the slow weights move, in (0, 1]. Defaults to `0.5`.
        name: Name of the wrapper. Defaults to the name of the class.
        jit_compile: Whether XLA compiles the step where the model is not compiled: `True`, `False`, or `"auto"`
            (default) for where that is faster.

    Raises:
        TypeError, ValueError: If `optimizer` cannot be wrapped, or a number is out of range.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=kt.Lookahead(keras.optimizers.Adam(0.01)), loss="mse")
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), verbose=0)

    Reference:
        Michael R. Zhang, James Lucas, Geoffrey Hinton, Jimmy Ba, "Lookahead Optimizer: k steps forward, 1 step back",
        2019, arXiv:1907.08610.
    """

    sync_period = Hyperparameter(check_count)
    slow_step_size = Hyperparameter(check_number, above=0, at_most=1)

    def __init__(self, optimizer, sync_period=6, slow_step_size=0.5, name=None, jit_compile="auto", **kwargs):
        super().__init__(optimizer, name=name, jit_compile=jit_compile, **kwargs)
        self.sync_period = sync_period
        self.slow_step_size = slow_step_size

    def build(self, variables):
        if self.built:
            return
        super().build(variables)
        self.slow_weights = self.add_optimizer_variables(variables, "slow")

    def before_update(self, grads, variables):
        # Not in `build`: weights may be loaded between that and the first step.
        self._do_if(ops.equal(self.steps_taken, 0), self._begin)
        return grads

    def _begin(self):
        for slow, variable in zip(self.slow_weights, self.trained_variables, strict=True):
            if slow is not None:
                self.assign(slow, variable)

    def after_update(self, variables):
        synchronize = lambda: [self._synchronize(v) for v in variables] and None  # noqa: E731
        self._do_if(ops.equal((self.steps_taken + 1) % self.sync_period, 0), synchronize)

    def _synchronize(self, variable):
        slow = self.slow_weights[self.variable_index(variable)]
        dtype = accumulation_dtype(variable.dtype)
        before = ops.cast(slow, dtype)
        after = before + self.slow_step_size * (ops.cast(variable, dtype) - before)
        self.assign(slow, after)
        self.assign(variable, after)

    def get_config(self):
        return {**super().get_config(), "sync_period": self.sync_period, "slow_step_size": self.slow_step_size}
