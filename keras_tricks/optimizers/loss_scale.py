"""Dynamic loss scaling for float16 that looks at the gradients of every replica.

    finite on all replicas:  unscale, apply, and after `dynamic_growth_steps` such steps double the scale
    else:                    skip the step on all replicas and halve the scale

Micikevicius et al., 2018, arXiv:1710.03740. `keras.optimizers.LossScaleOptimizer` asks the first replica only: an
infinity on another one reaches the weights.
"""

import warnings

import keras
from keras import ops

from keras_tricks._arguments import check_count, check_number
from keras_tricks._keras.optimizers import make_readable, put_averages_in_place
from keras_tricks._keras.replicas import number_of_replicas, sum_over_replicas
from keras_tricks.optimizers import _state
from keras_tricks.optimizers._aggregated import AggregatedOptimizer
from keras_tricks.optimizers._wrapper import HandsOn


@keras.saving.register_keras_serializable(package="keras_tricks")
class LossScaleOptimizer(HandsOn, keras.optimizers.LossScaleOptimizer):
    """Keras' dynamic loss scaling with the finite check taken over all replicas.

    Being a subclass of Keras' own class, it is not wrapped a second time by `compile()` under `mixed_float16`.

    State: that of the inner optimizer and two scalars.

    Args:
        inner_optimizer: Any Keras optimizer; clipping, decay, averages and accumulation are set there.
        initial_scale: First loss scale. Defaults to `2**15`.
        dynamic_growth_steps: Number of finite steps after which the scale doubles. Defaults to `2000`.
        **kwargs: `name`.

    Raises:
        TypeError: If `inner_optimizer` is not a Keras optimizer, or is a loss-scale optimizer itself.

    Example:
    >>> import keras_tricks as kt
    >>> optimizer = kt.LossScaleOptimizer(kt.LAMB(0.01))

    Reference:
        Paulius Micikevicius et al., "Mixed Precision Training", 2018, arXiv:1710.03740.
    """

    # State loaded before this optimizer was built, and before the one inside was: a `SavedState` each.
    waiting_state = waiting_inside = None

    def __init__(self, inner_optimizer, initial_scale=2.0**15, dynamic_growth_steps=2000, **kwargs):
        if not isinstance(inner_optimizer, keras.optimizers.Optimizer) or isinstance(
            inner_optimizer, keras.optimizers.LossScaleOptimizer
        ):
            raise TypeError(
                "`inner_optimizer` must be a Keras optimizer that does not scale the loss itself. "
                f"Received: {inner_optimizer!r}"
            )
        initial_scale = check_number("initial_scale", initial_scale, above=0)
        dynamic_growth_steps = check_count("dynamic_growth_steps", dynamic_growth_steps)
        super().__init__(inner_optimizer, initial_scale, dynamic_growth_steps, **kwargs)
        make_readable(inner_optimizer)

    @_state.takes_up_saved_state
    def build(self, var_list):
        if self.built:
            return
        if number_of_replicas() > 1 and not isinstance(self.inner_optimizer, AggregatedOptimizer):
            self._refuse_what_fails_on_replicas()
        super().build(var_list)
        _state.take_up_what_waits_inside(self)

    # Keras saves the inner optimizer as an attribute of this one; here only what this one adds.
    def save_own_variables(self, store):
        _state.save(self, store)

    def load_own_variables(self, store):
        _state.load(self, store)

    def set_weights(self, weights):
        """Sets all variables, including those of optimizers inside, in the order of `variables`."""
        _state.set_weights(self, weights)

    def _refuse_what_fails_on_replicas(self):
        inner = self.inner_optimizer
        name = type(inner).__name__
        if inner.gradient_accumulation_steps:
            raise ValueError(
                f"{name}(gradient_accumulation_steps={inner.gradient_accumulation_steps}) fails in Keras on several "
                "replicas. Accumulate around it: LossScaleOptimizer(keras_tricks.GradientAccumulation("
                f"{name}(...), steps={inner.gradient_accumulation_steps}))."
            )
        for keyword in ("clipnorm", "global_clipnorm", "clipvalue"):
            if getattr(inner, keyword, None):
                warnings.warn(
                    f"On several replicas Keras applies {name}'s `{keyword}` to the gradients of each of them, before "
                    "they are aggregated. For the result of one device, wrap it: LossScaleOptimizer("
                    f"keras_tricks.GradientAccumulation({name}(..., {keyword}={getattr(inner, keyword)}), steps=1)).",
                    stacklevel=2,
                )

    def finalize_variable_values(self, var_list):
        inner = self.inner_optimizer
        if isinstance(inner, AggregatedOptimizer):
            inner.finalize_variable_values(var_list)
        else:
            put_averages_in_place(inner, var_list)

    def check_finite(self, grads):
        """True where the gradients of all replicas are finite."""
        finite = super().check_finite(grads)
        (bad_replicas,) = sum_over_replicas(ops.cast(ops.logical_not(finite), "float32"))
        return ops.equal(bad_replicas, 0)
