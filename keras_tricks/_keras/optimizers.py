"""What can be asked of any Keras optimizer: what its wrappers contain, its rate, its decay and its averages."""

import keras
from keras import ops


def innermost_optimizer(optimizer):
    """The optimizer that owns the learning rate and the slots, under loss scaling and other wrappers."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def stepping_optimizer(optimizer):
    """The optimizer whose `apply` takes the steps: the first under loss scaling; wrappers step for what they wrap."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def accumulation_steps(optimizer):
    """The number of batches per optimizer step."""
    while not getattr(optimizer, "gradient_accumulation_steps", None) and hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return getattr(optimizer, "gradient_accumulation_steps", None) or 1


def schedule_of(optimizer):
    """The schedule of any Keras optimizer, or None where its rate is a number or a function."""
    rate = optimizer._learning_rate
    return rate if isinstance(rate, keras.optimizers.schedules.LearningRateSchedule) else None


def learning_rate_of(optimizer):
    """The learning rate of the next optimizer step, for any Keras optimizer."""
    schedule = schedule_of(optimizer)
    return optimizer.learning_rate if schedule is None else schedule(optimizer.iterations)


class ScalarVariable(keras.Variable):
    """A variable that `float()` and `int()` read under a distribution strategy too, where Keras' own raise."""

    def __float__(self):
        return float(ops.convert_to_numpy(self))

    def __int__(self):
        return int(ops.convert_to_numpy(self))


def make_readable(optimizer):
    """Lets `float(optimizer.learning_rate)` and `int(optimizer.iterations)` work under a strategy."""
    for variable in (optimizer._learning_rate, optimizer._iterations):
        if type(variable) is keras.Variable:
            variable.__class__ = ScalarVariable


def check_known(optimizer, variables):
    """Raises ValueError if a built optimizer was not built for one of the variables."""
    optimizer._check_variables_are_known(variables)


def decays_in_its_own_way(optimizer):
    """Whether the class has replaced Keras' weight decay, as Muon does."""
    return type(optimizer)._apply_weight_decay is not keras.optimizers.Optimizer._apply_weight_decay


def averages_of(optimizer):
    try:
        return optimizer._model_variables_moving_average
    except AttributeError:
        raise ValueError(
            f"`use_ema` of {type(optimizer).__name__} was set after it had been built, so it keeps no averages. Make a "
            "new optimizer with `use_ema=True`."
        ) from None


def put_averages_in_place(optimizer, variables):
    """Sets each of the variables to its average, if the optimizer keeps one.

    Keras assumes that its averages are in the order of the variables it is given, which changes when a layer is frozen.
    """
    if not (optimizer.built and optimizer.use_ema):
        return
    keys = [optimizer._var_key(v) for v in optimizer._trainable_variables]
    averages = dict(zip(keys, averages_of(optimizer), strict=True))
    for v in variables:
        average = averages.get(optimizer._var_key(v))
        if average is None:
            continue
        if keras.backend.backend() != "tensorflow":
            v.assign(ops.copy(average))  # a variable that shared its buffer could not be donated
            continue
        optimizer._distribution_strategy.extended.update(
            native(v), lambda a, b: a.assign(ops.cast(b, a.dtype)), args=(native(average),)
        )


def native(variable):
    return variable.value if isinstance(variable, keras.Variable) else variable
