"""The base of every optimizer in this package: one step, in the order that is right on any number of replicas.

    gradients of one replica
      -> cast to float32, all-reduce (sum; Keras divides the loss by the number of replicas)
      -> merge repeated rows of sparse gradients
      -> accumulate, every `gradient_accumulation_steps`-th call goes on
      -> clip -> decay -> update_step -> constraint -> moving average of the weights     (compiled by XLA where it wins)

Keras 3.15 clips and accumulates before the all-reduce, which changes the result with the number of replicas and crashes
under `MirroredStrategy`. Here each replica sees the aggregated gradient and then takes the same step on its own copy of
the variables, so nothing needs a merge call inside a condition, and one device, several replicas and XLA agree.

This is the only file that touches hooks of Keras which are not public. `tests/optimizers/test_aggregated.py` names each
of them, and fails with that name when Keras moves it.
"""

import difflib
import math
import numbers
import warnings

import keras
from keras import ops

from keras_tricks._arguments import check_count, check_flag, check_number
from keras_tricks.optimizers import _exclude, _state
from keras_tricks.optimizers._exclude import Exclusion
from keras_tricks.optimizers._reductions import sum_of_squares

LOW_PRECISION = ("float16", "bfloat16")

# From so many parameters on, in variables of so many elements on average, XLA takes the optimizer step in a model that
# is not compiled itself. Measured on CPUs: half the time for the 25 million parameters of ResNet-50 in 161 variables,
# nothing for 10 million in 400. Below, it is not worth the seconds to compile.
WORTH_COMPILING = 2_000_000
WORTH_COMPILING_EACH = 2**15

# What this file takes from keras.optimizers.Optimizer without it being public API.
PRIVATE_HOOKS = (
    "_accumulated_gradients",
    "_apply_weight_decay",
    "_backend_update_step",
    "_check_variables_are_known",
    "_filter_empty_gradients",
    "_get_variable_index",
    "_iterations",
    "_learning_rate",
    "_model_variables_moving_average",
    "_overwrite_variables_directly_with_gradients",
    "_track_variable",
    "_trainable_variables",
    "_use_weight_decay",
)

# Keras' keywords for every optimizer.
BASE_KEYWORDS = (
    "name",
    "weight_decay",
    "clipnorm",
    "clipvalue",
    "global_clipnorm",
    "use_ema",
    "ema_momentum",
    "ema_overwrite_frequency",
    "loss_scale_factor",
    "gradient_accumulation_steps",
)


def _as_written(method):
    """`method`, which TensorFlow's AutoGraph leaves as it is when a training loop of the user's own calls it."""
    if keras.backend.backend() != "tensorflow":
        return method
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(method)


class ScalarVariable(keras.Variable):
    """A variable that `float()` and `int()` read under a distribution strategy too, where Keras' own raise."""

    def __float__(self):
        return float(ops.convert_to_numpy(self))

    def __int__(self):
        return int(ops.convert_to_numpy(self))


class MovableNumber:
    """A hyper-parameter of an optimizer in a variable: setting it, as callbacks do, acts on a compiled step.

    The number that was set last is the variable's `given`, and goes into the config; a schedule that moves the variable
    itself, with `assign`, leaves it as it was. Both are saved, and after loading it is `given` that acts.
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
        if f"_{self.name}" in vars(optimizer):
            vars(optimizer)[f"_{self.name}"].assign(value)
            vars(optimizer)[f"_{self.name}"].given = float(value)
            return
        # Wide enough to be the number that was given also where weights are float64.
        dtype = "float64" if keras.backend.backend() == "tensorflow" else "float32"
        with keras.name_scope(optimizer.name, caller=optimizer):
            variable = ScalarVariable(
                value, dtype=dtype, trainable=False, aggregation="only_first_replica", name=self.name
            )
        variable.given = float(value)
        optimizer._track_variable(variable)
        vars(optimizer)[f"_{self.name}"] = variable


class AggregatedOptimizer(keras.optimizers.Optimizer):
    """Keras' optimizer base with clipping, accumulation, decay, averages and schedules counted in optimizer steps.

    A subclass writes `update_step(gradient, variable, learning_rate)`: there the gradient is dense, aggregated over
    replicas, averaged over accumulation and clipped, in float32 or wider, and `variable` is a `keras.Variable`.
    """

    # A subclass that handles `self.decays` inside its update sets this to False.
    decoupled_weight_decay = True

    # A loss-scale optimizer that looks at every replica's gradients sets this to True on the optimizer it wraps.
    finite_check_is_done = False

    # Whether XLA compiles the step that is being traced.
    is_compiled = False

    # While a step is taken: `shared_numbers` by dtype.
    shared = None

    # State that was loaded before the optimizer was built: a `SavedState`.
    waiting_state = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "build" in vars(cls):
            cls.build = _state.takes_up_saved_state(cls.build)

    def __init__(self, learning_rate, exclude_from_weight_decay=None, jit_compile="auto", **kwargs):
        _check_keywords(type(self).__name__, kwargs)
        if isinstance(learning_rate, numbers.Real) and not isinstance(learning_rate, bool):
            learning_rate = check_number("learning_rate", learning_rate, at_least=0)
        if kwargs.get("gradient_accumulation_steps") == 1:  # Keras refuses 1, although it only means "do not".
            kwargs["gradient_accumulation_steps"] = None
        if jit_compile != "auto":
            check_flag("jit_compile", jit_compile)
        super().__init__(learning_rate=learning_rate, **kwargs)
        self.jit_compile = jit_compile
        self.decay_exclusions = Exclusion(exclude_from_weight_decay, "exclude_from_weight_decay")
        make_readable(self)

    def exclude_from_weight_decay(self, var_list=None, var_names=None):
        """Keras' method: the same as the constructor's argument of this name, with regexes on the whole path."""
        if self.built:
            raise ValueError("`exclude_from_weight_decay()` must be called before the optimizer is built.")
        self.decay_exclusions = Exclusion([*(var_list or []), *(var_names or [])], "exclude_from_weight_decay")

    @_state.takes_up_saved_state
    def build(self, variables):
        if self.built:
            return
        variables = list(variables)
        # Settled first, so that a pattern that matches nothing leaves the optimizer as it was.
        excluded = self.decay_exclusions.of(variables)
        self.decays = [0.0 if out else float(self.weight_decay or 0.0) for out in excluded]
        super().build(variables)
        self._guards_against_overflow = (
            number_of_replicas() > 1
            and keras.config.dtype_policy().name == "mixed_float16"
            and not self.finite_check_is_done
        )
        if self._guards_against_overflow:
            warnings.warn(
                f"{type(self).__name__} trains in mixed_float16 on several replicas without "
                "`keras_tricks.LossScaleOptimizer`. Keras' own loss scaling looks at the first replica only: a step "
                "that overflows on another one is skipped here, but the scale is not lowered for it. Compile with "
                f"`optimizer=keras_tricks.LossScaleOptimizer({type(self).__name__}(...))`.",
                stacklevel=2,
            )

    def chain(self):
        """The optimizers that take a step together, wrappers first, the one with the update rule last."""
        return [self]

    @property
    def steps_taken(self):
        """The optimizer's own count of its steps, also in a wrapper, whose `iterations` are those of what it wraps."""
        return self._iterations

    @property
    def trained_variables(self):
        """The variables that the optimizer was built with."""
        return self._trainable_variables

    def add_variable(self, shape, initializer="zeros", dtype=None, **kwargs):
        """Keras' `add_variable`, but never in float16 or bfloat16, where moments and sums lose their small parts."""
        if dtype is not None and keras.backend.standardize_dtype(dtype) in LOW_PRECISION:
            dtype = "float32"
        return super().add_variable(shape, initializer=initializer, dtype=dtype, **kwargs)

    def shared_numbers(self, dtype):
        """The numbers of a step that are the same for all variables of `dtype`, for `self.shared[dtype]`.

        Computed once, not for each variable: 400 small variables would spend a quarter of their step on them.
        """
        return {}

    def variable_index(self, variable):
        """Position of `variable` in the list that the optimizer was built with."""
        return self._get_variable_index(variable)

    def sum_of_squares(self, x):
        """Sum of the squares of all elements, a scalar, by the way that is fast where the step runs."""
        return sum_of_squares(x, self.is_compiled)

    @_as_written
    def apply(self, grads, trainable_variables=None):
        """Takes one step with this replica's gradients; see the module's docstring for the order of things."""
        grads = list(grads)
        if not grads:
            return
        variables = self._variables_of(grads, trainable_variables)
        with keras.name_scope(self.name, caller=self):
            grads, variables = self._filter_empty_gradients(grads, variables)
            overwriting = self._accumulator() or self
            grads, variables = overwriting._overwrite_variables_directly_with_gradients(grads, variables)
            grads = [ops.cast(g, arithmetic_dtype(g.dtype)) for g in grads]
            grads = _sum_over_replicas(grads)
            if self.loss_scale_factor is not None:
                grads = [g / self.loss_scale_factor for g in grads]
            if self._guards_against_overflow:
                finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in grads]))
                self._do_if(finite, lambda: self._accumulate_or_step(grads, variables))
            else:
                finite = True
                self._accumulate_or_step(grads, variables)
            self._count(finite)

    def _variables_of(self, grads, trainable_variables):
        if trainable_variables is None:
            if not self.built:
                raise ValueError(
                    "`apply(grads)` without variables needs a built optimizer. "
                    "Call `optimizer.build(variables)` first or pass the variables."
                )
            trainable_variables = self._trainable_variables
        variables = list(trainable_variables)
        if len(grads) != len(variables):
            raise ValueError(
                "`apply` expects one gradient for each variable. "
                f"Expected {len(variables)} gradients, received {len(grads)}."
            )
        if not self.built:
            self.build(variables)
        self._check_variables_are_known(variables)
        return variables

    # A method, since Keras' saving walks through properties, and this may be the optimizer itself.
    def _accumulator(self):
        """The optimizer of the chain that collects gradients, or None. There is one at most."""
        return next((o for o in self.chain() if o.gradient_accumulation_steps), None)

    def _accumulate_or_step(self, grads, variables):
        accumulator = self._accumulator()
        if accumulator is None:
            self._step(grads, variables)
            return
        window = accumulator.gradient_accumulation_steps
        sums = [accumulator._accumulated_gradients[accumulator._get_variable_index(v)] for v in variables]
        grads = [ops.add(total, g) for total, g in zip(sums, grads, strict=True)]

        def step():
            self._step([g / window for g in grads], variables)
            for total in sums:
                self.assign(total, ops.zeros(total.shape, total.dtype))

        def collect():
            for total, g in zip(sums, grads, strict=True):
                self.assign(total, g)

        self._do_if(_completes_window(accumulator), step, otherwise=collect)

    def _count(self, finite):
        # An accumulating optimizer counts calls, the others optimizer steps. Outside of any condition, since these
        # variables are shared by the replicas.
        accumulator = self._accumulator()
        stepped = finite if accumulator is None else ops.logical_and(finite, _completes_window(accumulator))
        for optimizer in reversed(self.chain()):
            # The accumulator's own count decides, so it moves last.
            if optimizer is not accumulator:
                optimizer._iterations.assign_add(ops.cast(stepped, optimizer._iterations.dtype))
        if accumulator is not None:
            accumulator._iterations.assign_add(ops.cast(finite, accumulator._iterations.dtype))

    def _step(self, grads, variables):
        if not self._compiles_the_step():
            self._take_step(grads, variables)
            return
        import tensorflow as tf

        def take_step():
            for optimizer in self.chain():
                optimizer.is_compiled = True
            try:
                self._take_step(grads, variables)
            finally:
                for optimizer in self.chain():
                    optimizer.is_compiled = False

        # Anew for each trace: a function that is kept would meet the tensors of another graph.
        tf.function(take_step, jit_compile=True, autograph=False)()

    def _take_step(self, grads, variables):
        *wrappers, rule = self.chain()
        for wrapper in wrappers:
            grads = wrapper.before_update(grads, variables)
        grads = self._clip(rule, grads)
        learning_rate = ops.convert_to_tensor(learning_rate_of(rule))
        _decay(rule, variables, learning_rate)
        if isinstance(rule, keras.optimizers.Nadam):  # it keeps one number for all variables
            beta = rule.beta_1 * (1 - 0.5 * ops.power(0.96, ops.cast(rule.iterations + 1, "float32")))
            self.assign(rule._u_product, rule._u_product * ops.cast(beta, rule._u_product.dtype))
        if isinstance(rule, AggregatedOptimizer):
            rule.shared = {
                dtype: rule.shared_numbers(dtype) for dtype in {arithmetic_dtype(v.dtype) for v in variables}
            }
        for g, v in zip(grads, variables, strict=True):
            rule.update_step(g, v, learning_rate)
        if isinstance(rule, AggregatedOptimizer):
            rule.shared = None  # tensors of this trace, which nothing may keep
        for wrapper in reversed(wrappers):
            wrapper.after_update(variables)
        for v in variables:
            if v.constraint is not None:
                self.assign(v, v.constraint(v))
        if rule.use_ema:
            self._update_averages(rule)

    def _compiles_the_step(self):
        if keras.backend.backend() != "tensorflow" or self.jit_compile is False:
            return False
        import tensorflow as tf

        # What a callback puts in the place of update_step may do things that XLA cannot.
        if tf.executing_eagerly() or tf.config.functions_run_eagerly() or "update_step" in vars(self.chain()[-1]):
            return False
        if self.jit_compile is True:
            return True
        parameters = sum(math.prod(v.shape) for v in self._trainable_variables)
        worth_it = parameters >= max(WORTH_COMPILING, WORTH_COMPILING_EACH * len(self._trainable_variables))
        return worth_it and not tf.config.list_physical_devices("GPU")

    def _clip(self, rule, grads):
        if rule.clipnorm:
            return [g * _shrink(rule.clipnorm, ops.sqrt(self.sum_of_squares(g))) for g in grads]
        if rule.global_clipnorm:
            squares = [ops.cast(self.sum_of_squares(g), "float32") for g in grads]
            scale = _shrink(rule.global_clipnorm, ops.sqrt(sum(squares[1:], start=squares[0])))
            return [g * ops.cast(scale, g.dtype) for g in grads]
        if rule.clipvalue:
            return [ops.clip(g, -rule.clipvalue, rule.clipvalue) for g in grads]
        return grads

    def _update_averages(self, rule):
        # The first step copies the weights; later ones move the average by 1 - ema_momentum.
        momentum = ops.where(ops.equal(rule.iterations, 0), 0.0, rule.ema_momentum)
        for v, average in zip(rule._trainable_variables, rule._model_variables_moving_average, strict=True):
            if average is None:
                continue
            value = ops.cast(v, average.dtype)
            new_average = value + ops.cast(momentum, average.dtype) * (average - value)
            self.assign(average, new_average)
            if rule.ema_overwrite_frequency:
                overwrite = ops.equal((rule.iterations + 1) % rule.ema_overwrite_frequency, 0)
                self.assign(v, ops.where(overwrite, new_average, value))

    def _do_if(self, predicate, action, otherwise=lambda: None):
        """Runs `action()` or `otherwise()`, which return nothing and only assign to variables."""
        if keras.backend.backend() != "jax":
            ops.cond(predicate, action, otherwise)
            return
        # On JAX a branch may not assign: run both from the same start, then choose each variable's value.
        state = [*self._trainable_variables, *self.variables]
        start = [v.value for v in state]
        action()
        after_action = [v.value for v in state]
        for v, value in zip(state, start, strict=True):
            v.assign(value)
        otherwise()
        for v, value in zip(state, after_action, strict=True):
            v.assign(ops.where(predicate, value, v.value))

    def _get_current_learning_rate(self):
        # Keras evaluates a schedule at the number of calls; with accumulation that runs ahead of the optimizer steps.
        if isinstance(self._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
            return self._learning_rate(self.iterations)
        return super()._get_current_learning_rate()

    def save_own_variables(self, store):
        _state.save(self, store)

    def load_own_variables(self, store):
        _state.load(self, store)

    def set_weights(self, weights):
        """Sets all variables, also those of optimizers inside, in the order of `variables`."""
        _state.set_weights(self, weights)

    def get_config(self):
        return {
            **super().get_config(),
            "exclude_from_weight_decay": self.decay_exclusions.to_config(),
            "jit_compile": self.jit_compile,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        return super().from_config(_exclude.from_config(config), custom_objects=custom_objects)


def arithmetic_dtype(dtype):
    """The dtype to compute in for a variable of `dtype`: float32, or float64 for float64."""
    dtype = keras.backend.standardize_dtype(dtype)
    return "float32" if dtype in LOW_PRECISION else dtype


def one_minus_power(beta, step):
    """1 - beta^step, the correction of an average that began at 0, in the widest float of the backend.

    Written without the cancellation that costs float32 four digits at beta = 0.999 and small steps.
    """
    dtype = "float64" if keras.backend.backend() == "tensorflow" else "float32"
    if isinstance(beta, numbers.Real):
        log_beta = math.log(beta) if beta else -math.inf
    else:
        log_beta = ops.log(ops.cast(beta, dtype))
    return -ops.expm1(ops.cast(step, dtype) * log_beta)


def moment_numbers(optimizer, dtype, bias_correction=True):
    """What Adam-like rules share: the weight of a new gradient, and what makes their direction from both moments.

    m̂ / (√v̂ + ε) = `factor` · m / (√v + `epsilon`) spares two passes over memory for each variable.
    """
    step = optimizer.iterations + 1
    first = second = 1.0
    if bias_correction:
        first, second = one_minus_power(optimizer.beta_1, step), ops.sqrt(one_minus_power(optimizer.beta_2, step))
    return {
        "new": ops.cast(1 - optimizer.beta_1, dtype),
        "factor": ops.cast(second / first, dtype),
        "epsilon": ops.cast(optimizer.epsilon * second, dtype),
    }


def learning_rate_of(optimizer):
    """The learning rate of the optimizer step that comes next, of any Keras optimizer."""
    if isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule):
        return optimizer._learning_rate(optimizer.iterations)
    return optimizer.learning_rate


def check_known(optimizer, variables):
    """Raises ValueError if a built optimizer was not built for one of the variables."""
    optimizer._check_variables_are_known(variables)


def make_readable(optimizer):
    """Lets `float(optimizer.learning_rate)` and `int(optimizer.iterations)` work under a strategy."""
    for variable in (optimizer._learning_rate, optimizer._iterations):
        if type(variable) is keras.Variable:
            variable.__class__ = ScalarVariable


def follows_the_protocol(optimizer):
    """Whether a step of this Keras optimizer is what its `update_step` does, so that others can take it."""
    kind, base = type(optimizer), keras.optimizers.Optimizer
    same_apply = kind.apply is base.apply and kind._backend_update_step is base._backend_update_step
    return same_apply or isinstance(optimizer, (AggregatedOptimizer, keras.optimizers.Nadam))


def decays_in_its_own_way(optimizer):
    """Whether the class has replaced Keras' weight decay, as Muon does."""
    return type(optimizer)._apply_weight_decay is not keras.optimizers.Optimizer._apply_weight_decay


def _decay(rule, variables, learning_rate):
    if isinstance(rule, AggregatedOptimizer):
        if not rule.decoupled_weight_decay:
            return
        decays = [rule.decays[rule.variable_index(v)] for v in variables]
    elif decays_in_its_own_way(rule):
        rule._apply_weight_decay(variables)
        return
    else:
        # Keras' patterns meet the variable of the backend; in TensorFlow its name is the whole path.
        natives = [v.value if keras.backend.backend() == "tensorflow" else v for v in variables]
        decays = [rule.weight_decay if rule.weight_decay and rule._use_weight_decay(v) else 0.0 for v in natives]
    for v, decay in zip(variables, decays, strict=True):
        if decay:
            dtype = arithmetic_dtype(v.dtype)
            rule.assign(v, ops.cast(v, dtype) * (1 - ops.cast(learning_rate, dtype) * decay))


def _completes_window(accumulator):
    return ops.equal((accumulator._iterations + 1) % accumulator.gradient_accumulation_steps, 0)


def _shrink(limit, norm):
    return limit / ops.maximum(norm, limit)


def _check_keywords(optimizer, kwargs):
    for name in kwargs:
        if name not in BASE_KEYWORDS:
            close = difflib.get_close_matches(name, BASE_KEYWORDS, n=1)
            hint = f"Did you mean `{close[0]}`?" if close else f"Beside its own, it takes {', '.join(BASE_KEYWORDS)}."
            raise TypeError(f"{optimizer} has no argument `{name}`. {hint}")
    for name in ("weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "loss_scale_factor"):
        if kwargs.get(name) is not None:
            check_number(name, kwargs[name], at_least=0)
    for name in ("gradient_accumulation_steps", "ema_overwrite_frequency"):
        if kwargs.get(name) is not None:
            check_count(name, kwargs[name])


def number_of_replicas():
    """Number of replicas of the strategy in whose scope or replica this is called."""
    if keras.backend.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def _sum_over_replicas(grads):
    """Sums over replicas where `tf.distribute` asks for it, and makes sparse gradients dense.

    Rows that a batch looks up twice appear twice in a sparse gradient. They are added here, before anything that is
    not linear (squares, norms, clipping) sees them.
    """
    if keras.backend.backend() != "tensorflow":
        return grads
    import tensorflow as tf

    replica_context = tf.distribute.get_replica_context()
    if replica_context is None:
        raise RuntimeError(
            "`optimizer.apply()` was called in a cross-replica context. "
            "Call it inside of the function that is passed to `strategy.run`, or train with `model.fit`."
        )
    if replica_context.num_replicas_in_sync > 1 and grads:
        grads = replica_context.all_reduce(tf.distribute.ReduceOp.SUM, grads)
    return [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in grads]
