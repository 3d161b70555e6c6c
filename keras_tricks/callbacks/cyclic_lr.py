"""Moves the learning rate, and momentum against it, at every optimizer step of a compiled `fit`.

    rate = schedule(t)      momentum = high - (high - low) · (rate - lowest)/(highest - lowest)      t: optimizer step

Smith, 2018, arXiv:1803.09820: momentum falls while the rate rises. Both are computed inside the compiled step, so they
move every step under `steps_per_execution`, XLA, accumulation and loss scaling; a Python attribute set between batches
would be baked into the graph.
"""

import contextlib

import keras
from keras import ops

from keras_tricks._arguments import check_number
from keras_tricks._keras.optimizers import innermost_optimizer, stepping_optimizer
from keras_tricks._keras.patches import Replacements, replace
from keras_tricks._keras.replicas import scope_of


class CyclicLR(keras.callbacks.Callback):
    """Sets the optimizer's learning rate from a schedule at each optimizer step, and its momentum if asked.

    The step is `optimizer.iterations`, which is saved with the model: a resumed run continues in the middle of a cycle.
    After training, the learning rate stays at its last value and the momentum is what it was before. The last values of
    each epoch are logged as `learning_rate` and `momentum`. Between steps, when checkpoints are written, the optimizer
    has the momentum that it was given.

    `fit` does not tell callbacks when it is interrupted. So the next use of the model (`fit`, `evaluate`, `predict`,
    `save`, `compile`) first removes the callback from it.

    Args:
        schedule: A `LearningRateSchedule`, such as `keras_tricks.schedules.CyclicalLearningRate`.
        momentum: `None`; a pair `(high, low)`, the momentum where the rate is lowest and where it is highest (for a
            `CyclicalLearningRate`); or a `LearningRateSchedule` for the momentum. It moves the optimizer's `momentum`,
            or `beta_1` where it has none. Defaults to `None`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: When training starts, if the optimizer has a schedule of its own, or nothing to move as momentum.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile(optimizer=kt.LAMB(0.1), loss="mse")
    >>> cycle = kt.callbacks.CyclicLR(kt.schedules.CyclicalLearningRate(0.001, 0.1, step_size=8), momentum=(0.95, 0.85))
    >>> history = model.fit(np.ones((8, 4)), np.ones((8, 1)), callbacks=[cycle], verbose=0)

    Reference:
        Leslie N. Smith, "A disciplined approach to neural network hyper-parameters", 2018, arXiv:1803.09820.
    """

    def __init__(self, schedule, momentum=None):
        super().__init__()
        if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            raise TypeError(
                f"`schedule` must be a keras LearningRateSchedule. Received: {schedule!r} ({type(schedule).__name__})"
            )
        self.schedule = schedule
        self.momentum = _momentum_schedule(momentum, schedule)
        self.optimizer = None
        self._replaced = None

    def on_train_begin(self, logs=None):
        self._release()  # an interrupted run of another model did not
        optimizer = innermost_optimizer(self.model.optimizer)
        if not isinstance(getattr(optimizer, "learning_rate", None), keras.Variable):
            raise ValueError(
                f"CyclicLR: the optimizer {optimizer.name!r} has a schedule or a function as its learning rate, or "
                "several rates, so none can be set. Give it a number: the callback's schedule decides."
            )
        self._momentum_name = None if self.momentum is None else _momentum_name(optimizer)
        self.optimizer = optimizer
        self._stepping = stepping_optimizer(self.model.optimizer)
        self._momentum_variable = self._moving_number = None
        if self.momentum is not None:
            momentum = getattr(optimizer, self._momentum_name)
            if isinstance(momentum, keras.Variable):  # the optimizers of this package keep it so
                self._momentum_variable = momentum
            else:
                with scope_of(self.model):
                    self._momentum_variable = keras.Variable(
                        momentum, dtype="float32", trainable=False, aggregation="only_first_replica", name="momentum"
                    )
                self._moving_number = _MovingNumber(momentum, self._momentum_variable)
        self._replaced = Replacements(self.model, self._release)
        self._replaced.put(self.model, "make_train_function", self._make_train_function)
        self.model.make_train_function(force=True)  # it may have been traced without the callback

    def on_epoch_end(self, epoch, logs=None):
        if logs is None:
            return
        logs["learning_rate"] = float(ops.convert_to_numpy(self.optimizer.learning_rate))
        if self.momentum is not None:
            last = int(ops.convert_to_numpy(self.optimizer.iterations)) - 1
            logs["momentum"] = float(self.momentum(max(last, 0)))

    def on_train_end(self, logs=None):
        self._release()

    def _make_train_function(self, plain, force=False):
        if self.model.train_function is not None and not force:
            return
        plain(force=True)
        step = self.model.train_function

        def train_function(*args):
            # Only while a step runs or is traced, so that nothing is left behind elsewhere, as in a checkpoint.
            with self._moving():
                return step(*args)

        self.model.train_function = train_function

    @contextlib.contextmanager
    def _moving(self):
        with contextlib.ExitStack() as stack:
            stack.callback(replace(self._stepping, "apply", self._apply))
            if self._moving_number is not None:
                constant = getattr(self.optimizer, self._momentum_name)
                setattr(self.optimizer, self._momentum_name, self._moving_number)
                stack.callback(setattr, self.optimizer, self._momentum_name, constant)
            yield

    def _apply(self, plain, *args, **kwargs):
        # Traced into the compiled step.
        optimizer = self.optimizer
        optimizer.learning_rate.assign(self.schedule(optimizer.iterations))
        if self.momentum is None:
            return plain(*args, **kwargs)
        given = ops.copy(self._momentum_variable.value)
        self._momentum_variable.assign(self.momentum(optimizer.iterations))
        result = plain(*args, **kwargs)
        self._momentum_variable.assign(given)
        return result

    def _release(self):
        if self._replaced is not None:
            self._replaced.take_out()
            self._replaced.model.train_function = None  # the next `fit` makes one without the callback
            self._replaced = None


class _MovingNumber:
    """A variable in place of a hyper-parameter that an optimizer keeps as a Python float.

    In arithmetic with tensors it acts as the variable, so that a compiled step sees it move. In Python's comparisons it
    acts as the positive number that it replaced: optimizers ask `momentum != 0` to see whether to use it.
    """

    __hash__ = object.__hash__

    def __init__(self, constant, variable):
        self.constant = constant
        self.variable = variable

    @property
    def dtype(self):
        return self.variable.value.dtype

    def __tf_tensor__(self, dtype=None, name=None):
        import tensorflow as tf

        value = tf.convert_to_tensor(self.variable.value)
        return value if dtype is None else tf.cast(value, dtype)

    def __jax_array__(self):
        return self.variable.value

    def __eq__(self, other):
        return self.constant == other

    def __gt__(self, other):
        return self.constant > other

    def __add__(self, other):
        return self.variable + other

    def __sub__(self, other):
        return self.variable - other

    def __rsub__(self, other):
        return other - self.variable

    def __mul__(self, other):
        return self.variable * other

    __radd__, __rmul__ = __add__, __mul__


def _momentum_schedule(momentum, schedule):
    if momentum is None or isinstance(momentum, keras.optimizers.schedules.LearningRateSchedule):
        return momentum
    try:
        high, low = momentum
    except (TypeError, ValueError):
        raise TypeError(
            f"`momentum` must be None, a pair (high, low) or a LearningRateSchedule. Received: momentum={momentum!r}"
        ) from None
    high = check_number("momentum[0]", high, at_least=0, below=1)
    low = check_number("momentum[1]", low, at_least=0, below=1)
    if low > high:
        raise ValueError(f"`momentum` expects (high, low) with low <= high. Received: momentum={momentum}")
    lowest = getattr(schedule, "initial_learning_rate", None)
    highest = getattr(schedule, "maximal_learning_rate", None)
    if lowest is None or highest is None:
        raise ValueError(
            "`momentum=(high, low)` mirrors a schedule with `initial_learning_rate` and `maximal_learning_rate`, such "
            f"as CyclicalLearningRate. For a {type(schedule).__name__}, pass a LearningRateSchedule as `momentum`."
        )
    if lowest == highest:
        raise ValueError(
            f"`momentum=(high, low)` mirrors a rate that moves, but the schedule stays at {lowest}. Give it two bounds."
        )
    return lambda step: high - (high - low) * (schedule(step) - lowest) / (highest - lowest)


def _momentum_name(optimizer):
    for name in ("momentum", "beta_1"):
        value = getattr(optimizer, name, None)
        if isinstance(value, (float, keras.Variable)) and float(ops.convert_to_numpy(value)):
            return name
    raise ValueError(
        f"CyclicLR: the optimizer {optimizer.name!r} has no `momentum` or `beta_1` to move, or it is 0, where the "
        "optimizer keeps no state for it. Set it above 0, or use CyclicLR(schedule, momentum=None)."
    )
