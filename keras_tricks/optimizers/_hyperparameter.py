"""Hyper-parameters of an optimizer: checked whenever they are set, and never set without effect."""

import contextlib
import numbers
import warnings
import weakref

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_number
from keras_tricks._keras.optimizers import ScalarVariable


class Hyperparameter:
    """An attribute whose value passes `check(name, value, **bounds)` in the constructor and whenever it is set again.

    A new value acts on the next step. A step that has been compiled keeps the old one, and a warning says so. A value
    that shapes the state (`fixed=True`) cannot be set once there is a state.
    """

    def __init__(self, check, optional=False, fixed=False, instead_of=(), **bounds):
        self.checker = check
        self.optional = optional  # whether None is a value
        self.fixed = fixed
        self.instead_of = instead_of  # arguments of which only one can be given
        self.bounds = bounds

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, optimizer, owner=None):
        if optimizer is None:
            return self
        try:
            return vars(optimizer)[self.name]
        except KeyError:  # TensorFlow's tracking looks before it sets
            raise AttributeError(self.name) from None

    def __set__(self, optimizer, value):
        value = self.check(value)
        values = vars(optimizer)
        if self.name in values and value != values[self.name]:
            if value is not None:
                for other in self.instead_of:
                    if values.get(other) is not None:
                        raise ValueError(
                            f"Only one of `{self.name}` and `{other}` can be set. Set `{other}` to None first."
                        )
            if self.fixed and values.get("built"):
                raise AttributeError(
                    f"`{self.name}` of {type(optimizer).__name__} shapes its state, which has been built with "
                    f"{self.name}={values[self.name]!r}. Make a new optimizer for another value."
                )
            tell_if_compiled(optimizer, self.name)
        values[self.name] = value

    def check(self, value):
        """Returns the value, as a plain one that a config can hold; raises TypeError or ValueError."""
        if value is None and self.optional:
            return None
        return self.checker(self.name, value, **self.bounds)


class VariableHyperparameter:
    """A hyper-parameter that is kept in a variable: setting it, as callbacks do, acts on a compiled step.

    The number that was set last is the variable's `given`, and goes into the config; a schedule that moves the variable
    itself, with `assign`, leaves `given` as it was. Both are saved, and after loading it is `given` that acts.
    """

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, optimizer, owner=None):
        if optimizer is None:
            return self
        try:
            return vars(optimizer)[f"_{self.name}"]
        except KeyError:  # TensorFlow's tracking looks before it sets
            raise AttributeError(self.name) from None

    def __set__(self, optimizer, value):
        check_number(self.name, value, at_least=0, below=1)
        if value > 0 and not vars(optimizer).get("has_momentum", True):
            raise AttributeError(
                f"`{self.name}` of {type(optimizer).__name__} cannot be set, since the optimizer was built without it "
                f"and keeps no state for it. Make a new optimizer with {self.name}={value}."
            )
        if f"_{self.name}" in vars(optimizer):
            vars(optimizer)[f"_{self.name}"].assign(value)
            vars(optimizer)[f"_{self.name}"].given = float(value)
            return
        # Wide enough to hold the given number, even where weights are float64.
        dtype = "float64" if keras.backend.backend() == "tensorflow" else "float32"
        begin = lambda shape, dtype: ops.convert_to_tensor(value, dtype)  # noqa: E731
        variable = optimizer.add_variable(
            (), initializer=begin, dtype=dtype, aggregation="only_first_replica", name=self.name
        )
        variable.__class__ = ScalarVariable
        variable.given = float(value)
        vars(optimizer)[f"_{self.name}"] = variable


def remember_a_trace(optimizers):
    """Notes where a step of these optimizers is being compiled, which later values of hyper-parameters do not reach."""
    if keras.backend.backend() != "tensorflow":
        trace = keras  # for ever, since other backends do not show when compiled steps are gone
    else:
        import tensorflow as tf

        if tf.executing_eagerly():
            return
        trace = tf.compat.v1.get_default_graph()
        while (outer := getattr(trace, "outer_graph", None)) is not None and outer.building_function:
            trace = outer
    for optimizer in optimizers:
        # Forgotten with the compiled step, for example when a wrapper that the optimizer was lent to is gone.
        vars(optimizer).setdefault("traces", weakref.WeakSet()).add(trace)


def tell_if_compiled(optimizer, name):
    """Warns that a new value of `name` does not reach steps that are compiled, if there are any."""
    if vars(optimizer).get("traces"):
        warnings.warn(
            f"`{name}` was set after a step of {type(optimizer).__name__} had been compiled. That step keeps the old "
            "value: call `model.compile(...)` with this optimizer again, or trace your `tf.function` anew. In eager "
            "mode it acts at once.",
            stacklevel=5,
        )


def check_learning_rate(value):
    """Returns a learning rate that is a number as a float; what is computed must have finite numbers in its config."""
    if isinstance(value, keras.optimizers.schedules.LearningRateSchedule):
        try:
            config = value.get_config()
        except NotImplementedError:  # a schedule that is never saved
            return value
        for argument, entry in config.items():
            for number in keras.tree.flatten(entry):
                if isinstance(number, numbers.Real) and not isinstance(number, bool):
                    check_number(f"{argument} of {type(value).__name__}", number)
        return value
    if callable(value):
        return value
    if not hasattr(value, "dtype") or isinstance(value, np.generic):
        return check_number("learning_rate", value, at_least=0)
    with contextlib.suppress(TypeError):  # a tensor of a graph has no value yet
        check_number("learning_rate", float(value), at_least=0)
    return value
