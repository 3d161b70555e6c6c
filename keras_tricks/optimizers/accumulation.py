"""Gradient accumulation around any optimizer: one step for the mean gradient of several batches.

    G <- G + g at each call          every `steps`-th call:  step with G / steps,  G <- 0

Keras 3.15's `gradient_accumulation_steps` crashes under `MirroredStrategy`, evaluates schedules at the number of calls,
and moves averages of the weights at each of them.
"""

import keras

from keras_tricks._arguments import check_count
from keras_tricks.optimizers._aggregated import AggregatedOptimizer
from keras_tricks.optimizers._wrapper import OptimizerWrapper


@keras.saving.register_keras_serializable(package="keras_tricks")
class GradientAccumulation(OptimizerWrapper):
    """Takes one step of `optimizer` with the mean gradient of `steps` batches.

    Training with batches of `b` then equals training with batches of `steps · b`, but for layers that look at the
    batch, as BatchNormalization does. Learning-rate schedules, moving averages, bias corrections and
    `optimizer.iterations` count optimizer steps. Clipping acts on the mean. A window of batches that is not complete at
    the end of an epoch or of `fit` stays in the optimizer, is saved with it, and is completed by the next batches.

    Around a Keras optimizer this also mends what else goes wrong there on several replicas: gradients are aggregated
    before clipping, and rows of sparse gradients are merged first. With `steps=1` it does only that.

    State: that of `optimizer`, and one value per parameter (4 bytes in float32); none with `steps=1`.

    Args:
        optimizer: Any Keras optimizer or wrapper that does not accumulate itself.
        steps: Number of batches (calls of `apply`) for each optimizer step, at least 1.
        name: Name of the wrapper. Defaults to the name of the class.
        jit_compile: Whether XLA compiles the step where the model is not compiled: `True`, `False`, or `"auto"`
            (default) for where that is faster.

    Raises:
        TypeError, ValueError: If `optimizer` cannot be wrapped or accumulates already, or `steps` is not a number of
            batches.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=kt.GradientAccumulation(keras.optimizers.Adam(0.01), steps=4), loss="mse")
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), batch_size=2, verbose=0)
    >>> int(model.optimizer.iterations)
    1
    """

    def __init__(self, optimizer, steps, name=None, jit_compile="auto", **kwargs):
        for inside in optimizer.chain() if isinstance(optimizer, AggregatedOptimizer) else [optimizer]:
            if getattr(inside, "gradient_accumulation_steps", None):
                raise ValueError(
                    f"{type(inside).__name__} accumulates already, over {inside.gradient_accumulation_steps} batches. "
                    "Leave out either that or GradientAccumulation."
                )
        super().__init__(
            optimizer,
            name=name,
            gradient_accumulation_steps=check_count("steps", steps),
            jit_compile=jit_compile,
            **kwargs,
        )

    @property
    def steps(self):
        """Number of batches for each optimizer step."""
        return self.gradient_accumulation_steps or 1

    @steps.setter
    def steps(self, steps):
        self.gradient_accumulation_steps = check_count("steps", steps)

    def get_config(self):
        return {**super().get_config(), "steps": self.steps}
