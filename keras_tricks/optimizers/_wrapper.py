"""What the wrappers share: an optimizer around any Keras optimizer that takes its steps with aggregated gradients."""

import keras

from keras_tricks._keras.optimizers import check_known, decays_in_its_own_way, make_readable
from keras_tricks.optimizers import _exclude, _state
from keras_tricks.optimizers._aggregated import (
    BASE_KEYWORDS,
    AggregatedOptimizer,
    check_hyperparameters,
    check_keyword,
    follows_the_protocol,
)
from keras_tricks.optimizers._hyperparameter import check_learning_rate, tell_if_compiled


class _OfInner:
    """An attribute that reads and sets the wrapped optimizer's."""

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, wrapper, owner=None):
        return self if wrapper is None else getattr(wrapper.inner_optimizer, self.name)

    def __set__(self, wrapper, value):
        if "inner_optimizer" not in vars(wrapper):  # Keras' __init__ sets all of its keywords before there is one
            return
        inner = wrapper.inner_optimizer
        if not hasattr(inner, self.name):
            raise AttributeError(f"{type(inner).__name__} has no `{self.name}` to set.")
        if self.name in BASE_KEYWORDS and not isinstance(inner, AggregatedOptimizer):
            value = check_keyword(self.name, value)
            tell_if_compiled(wrapper, self.name)
        setattr(inner, self.name, value)


class HandsOn:
    """What every optimizer around `inner_optimizer` passes on to it."""

    momentum = _OfInner()
    beta_1 = _OfInner()
    weight_decay = _OfInner()
    clipnorm = _OfInner()
    clipvalue = _OfInner()
    global_clipnorm = _OfInner()
    ema_momentum = _OfInner()
    ema_overwrite_frequency = _OfInner()

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Keras' method, of the wrapped optimizer."""
        self.inner_optimizer.exclude_from_weight_decay(var_list=var_list, var_names=var_names)


class OptimizerWrapper(HandsOn, AggregatedOptimizer):
    """An optimizer that acts before and after the update of `inner_optimizer`, any Keras optimizer or wrapper.

    Learning rate, step count, Keras' keywords, `momentum` and `beta_1` are those of the inner optimizer. However
    wrappers are nested, a step is: aggregate, accumulate, `before_update` from the outside in, clip, decay, update,
    `after_update` from the inside out, constraints, moving average.
    """

    loss_scale_factor = _OfInner()

    def __init__(self, optimizer, name=None, gradient_accumulation_steps=None, jit_compile="auto", **kwargs):
        kind = type(self).__name__
        _check_wrapped(kind, optimizer)
        for keyword in kwargs:
            if keyword in BASE_KEYWORDS or keyword == "learning_rate":
                raise ValueError(
                    f"`{keyword}` belongs to the wrapped optimizer: "
                    f"{kind}({type(optimizer).__name__}(..., {keyword}={kwargs[keyword]!r}), ...)"
                )
        super().__init__(
            0.0,
            name=name,
            gradient_accumulation_steps=gradient_accumulation_steps,
            jit_compile=jit_compile,
            **kwargs,
        )
        self.inner_optimizer = optimizer
        make_readable(optimizer)

    def before_update(self, grads, variables):
        """Returns the gradients to go on with; they are aggregated, averaged over accumulation and dense."""
        return grads

    def after_update(self, variables):
        """Acts on the variables after the inner optimizer's update."""
        return None  # AutoGraph cannot read a body of only a docstring

    def build(self, variables):
        if self.built:
            return
        inner = self.inner_optimizer
        if inner.built:
            check_known(inner, variables)
        else:
            inner.build(variables)
            _state.take_up_what_waits_inside(self)
        super().build(variables)

    def chain(self):
        inner = self.inner_optimizer
        return [self, *(inner.chain() if isinstance(inner, AggregatedOptimizer) else [inner])]

    @property
    def variables(self):
        return [*super().variables, *self.inner_optimizer.variables]

    @property
    def iterations(self):
        """Number of optimizer steps that have been taken."""
        return self.inner_optimizer.iterations

    @property
    def learning_rate(self):
        return self.inner_optimizer.learning_rate

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        self.inner_optimizer.learning_rate = check_learning_rate(learning_rate)

    @property
    def use_ema(self):
        """False: the averages are the inner optimizer's."""
        return False

    @use_ema.setter
    def use_ema(self, use_ema):
        if use_ema:
            kind = type(self).__name__
            raise AttributeError(f"`use_ema` belongs to the wrapped optimizer: {kind}(Adam(..., use_ema=True))")

    def get_config(self):
        return {
            "optimizer": keras.saving.serialize_keras_object(self.inner_optimizer),
            "name": self.name,
            "jit_compile": self.jit_compile,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = _exclude.from_config(config)
        optimizer = keras.saving.deserialize_keras_object(config.pop("optimizer"), custom_objects=custom_objects)
        return cls(optimizer, **config)


def _check_wrapped(kind, optimizer):
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise TypeError(
            f"{kind} wraps a Keras optimizer, as in {kind}(keras.optimizers.Adam()). Received: {optimizer!r}"
        )
    name = type(optimizer).__name__
    if not isinstance(optimizer, AggregatedOptimizer):
        check_hyperparameters(optimizer)
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise ValueError(
            f"Loss scaling goes outside, so that {kind} sees gradients without the scale: "
            f"keras_tricks.LossScaleOptimizer({kind}(...)). Received: {name}"
        )
    if not follows_the_protocol(optimizer):
        raise ValueError(
            f"{kind} cannot take the steps of {name}, which does not have one `update_step` for all variables. Wrap "
            f"the optimizers inside of it instead, as in MultiOptimizer(OptimizerMap({kind}(Adam())))."
        )
    if optimizer.gradient_accumulation_steps and decays_in_its_own_way(optimizer):
        raise ValueError(
            f"{name} decays weights in its own way, with a schedule at the number of calls. Leave its "
            "`gradient_accumulation_steps` out and use "
            f"keras_tricks.GradientAccumulation({name}(...), steps={optimizer.gradient_accumulation_steps})."
        )
