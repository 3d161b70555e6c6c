"""The base of every optimizer in this package: one step, in the order that is right on any number of replicas.

    gradients of one replica
      -> cast to float32, all-reduce (sum; Keras divides the loss by the number of replicas)
      -> merge repeated rows of sparse gradients, give each gradient the static shape of its variable
      -> accumulate, every `gradient_accumulation_steps`-th call goes on
      -> clip -> decay -> step, the rule -> constraint -> moving average of the weights  (compiled by XLA where it wins)

Keras 3.15 clips and accumulates before the all-reduce, which changes the result with the number of replicas and crashes
under `MirroredStrategy`. Here each replica sees the aggregated gradient and then takes the same step on its own copy of
the variables, so nothing needs a merge call inside a condition, and one device, several replicas and XLA agree.

The file is long because the order of one step is worth reading in one place.

Apart from the ground floor, `_keras`, this is the only file that touches hooks of Keras that are not public; they are
listed in PRIVATE_HOOKS. `tests/optimizers/test_aggregated.py` fails with the name of any that Keras moves, and
`tests/test_architecture.py` fails where another file uses one.
"""

import difflib
import math

import keras
from keras import ops

from keras_tricks._arguments import check_count, check_flag, check_number
from keras_tricks._keras.optimizers import (
    averages_of,
    decays_in_its_own_way,
    learning_rate_of,
    make_readable,
    native,
    put_averages_in_place,
)
from keras_tricks._keras.patches import is_replaced
from keras_tricks._keras.replicas import number_of_replicas, sum_of_gradients
from keras_tricks.optimizers import _exclude, _state
from keras_tricks.optimizers._exclude import Exclusion
from keras_tricks.optimizers._gradients import of_some_size, of_the_shape, once_there_is
from keras_tricks.optimizers._hyperparameter import (
    Hyperparameter,
    check_learning_rate,
    remember_a_trace,
    tell_if_compiled,
)
from keras_tricks.optimizers._moments import LOW_PRECISION, accumulation_dtype
from keras_tricks.optimizers._reductions import run_compiled, sum_of_squares

# From this many parameters on, in variables of this many elements on average, XLA compiles the optimizer step of a
# model that is not compiled itself. Measured on CPUs: half the time for the 25 million parameters of ResNet-50 in 161
# variables, nothing for 10 million in 400. Below, it is not worth the seconds to compile.
WORTH_COMPILING = 2_000_000
WORTH_COMPILING_EACH = 2**15

# What this file takes from keras.optimizers.Optimizer without it being public API.
PRIVATE_HOOKS = (
    "_accumulated_gradients",
    "_apply_weight_decay",
    "_backend_update_step",
    "_check_variables_are_known",
    "_distributed_tf_update_step",
    "_distribution_strategy",
    "_filter_empty_gradients",
    "_get_current_learning_rate",
    "_get_variable_index",
    "_iterations",
    "_learning_rate",
    "_model_variables_moving_average",
    "_overwrite_variable_with_gradient",
    "_overwrite_variables_directly_with_gradients",
    "_trainable_variables",
    "_u_product",
    "_use_weight_decay",
    "_var_key",
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
    """`method`, which TensorFlow's AutoGraph leaves as it is when a custom training loop calls it."""
    if keras.backend.backend() != "tensorflow":
        return method
    import tensorflow as tf

    return tf.autograph.experimental.do_not_convert(method)


def _check_window(name, value):
    steps = check_count(name, value)
    return None if steps == 1 else steps  # Keras refuses 1, although it only means "do not"


def _check_jit_compile(name, value):
    return value if isinstance(value, str) and value == "auto" else check_flag(name, value)


class AggregatedOptimizer(keras.optimizers.Optimizer):
    """Keras' optimizer base with clipping, accumulation, decay, averages and schedules counted in optimizer steps.

    A subclass writes its rule, `step`, and may compute in `step_constants` what is the same for all variables.
    """

    # A subclass that uses `self.decay_of` inside its update sets this to False.
    decoupled_weight_decay = True

    weight_decay = Hyperparameter(check_number, optional=True, at_least=0)
    clipnorm = Hyperparameter(check_number, optional=True, at_least=0, instead_of=("clipvalue", "global_clipnorm"))
    clipvalue = Hyperparameter(check_number, optional=True, at_least=0, instead_of=("clipnorm", "global_clipnorm"))
    global_clipnorm = Hyperparameter(check_number, optional=True, at_least=0, instead_of=("clipnorm", "clipvalue"))
    use_ema = Hyperparameter(check_flag, fixed=True)
    ema_momentum = Hyperparameter(check_number, at_least=0, at_most=1)
    ema_overwrite_frequency = Hyperparameter(check_count, optional=True)
    loss_scale_factor = Hyperparameter(check_number, optional=True, above=0)
    gradient_accumulation_steps = Hyperparameter(_check_window, optional=True, fixed=True)
    jit_compile = Hyperparameter(_check_jit_compile)

    # State loaded before the optimizer was built, and before one of Keras inside it was: a `SavedState` each.
    waiting_state = waiting_inside = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "build" in vars(cls):
            cls.build = _state.takes_up_saved_state(cls.build)

    def __init__(self, learning_rate, exclude_from_weight_decay=None, jit_compile="auto", **kwargs):
        super().__init__(learning_rate=check_learning_rate(learning_rate), **_checked(type(self).__name__, kwargs))
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
        self.without_decay = self.decay_exclusions.of(variables)
        super().build(variables)

    def chain(self):
        """The optimizers that take a step together, wrappers first, the one with the update rule last."""
        return [self]

    @property
    def steps_taken(self):
        """The optimizer's own count of its steps, even in a wrapper, whose `iterations` are those of what it wraps."""
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

    def add_state(self, variable, shape, name):
        """A variable of state for `variable` that has another shape; named as `add_optimizer_variables` does."""
        path = getattr(variable, "path", variable.name).replace("/", "_").replace(":", "_")
        return self.add_variable(shape, dtype=variable.dtype, name=f"{path}_{name}")

    def decay_of(self, index):
        """The weight decay of the variable at this position, 0 for an excluded one."""
        return 0.0 if self.without_decay[index] else self.weight_decay or 0.0

    @property
    def learning_rate(self):
        return self._get_current_learning_rate()

    @learning_rate.setter
    def learning_rate(self, learning_rate):
        learning_rate = check_learning_rate(learning_rate)
        if callable(learning_rate) and learning_rate is not self._learning_rate:
            tell_if_compiled(self, "learning_rate")
        keras.optimizers.Optimizer.learning_rate.fset(self, learning_rate)

    def step(self, index, g, w, rate, constants):
        """The rule: returns what a variable is after one step, and assigns its state.

        Args:
            index: Position of the variable in the list that the optimizer was built with.
            g: Its gradient, dense, aggregated over replicas, averaged over accumulation and clipped.
            w: Its value. This, `g` and `rate` are float32, or float64 for a float64 variable.
            rate: The learning rate.
            constants: The `step_constants` of this dtype.
        """
        raise NotImplementedError

    def step_constants(self, dtype):
        """{name: number} of what is the same in one step for all variables of `dtype`.

        Computed once, not for each variable: 400 small variables would spend a quarter of their step on them.
        """
        return {}

    def update_step(self, gradient, variable, learning_rate, constants=None):
        """Moves `variable` by one step, as Keras' method of this name; `constants` are computed if they are not given.

        The gradient is dense, aggregated over replicas, averaged over accumulation and clipped.
        """
        dtype = accumulation_dtype(variable.dtype)
        constants = self.step_constants(dtype) if constants is None else constants
        g, w, rate = (ops.cast(x, dtype) for x in (gradient, variable, learning_rate))
        self.assign(variable, self.step(self.variable_index(variable), g, w, rate, constants))

    def variable_index(self, variable):
        """Position of `variable` in the list that the optimizer was built with."""
        return self._get_variable_index(variable)

    def read(self, *state):
        """The values of variables of state, which are as wide as what a step computes in."""
        return [ops.cast(variable, variable.dtype) for variable in state]

    @_as_written
    def apply(self, grads, trainable_variables=None):
        """Takes one step with this replica's gradients; see the module's docstring for the order of things."""
        grads = list(grads)
        if not grads:
            return
        variables = self._variables_of(grads, trainable_variables)
        with keras.name_scope(self.name, caller=self):
            accumulator = self._accumulator()
            grads, variables = self._with_gradients(grads, variables, accumulator)
            grads, variables = (accumulator or self)._overwrite_variables_directly_with_gradients(grads, variables)
            grads, variables = of_some_size(grads, variables)
            remember_a_trace(self.chain())
            grads = [ops.cast(g, accumulation_dtype(g.dtype)) for g in grads]
            grads = sum_of_gradients(grads)
            grads = [of_the_shape(g, v) for g, v in zip(grads, variables, strict=True)]
            if self.loss_scale_factor is not None:
                grads = [g / self.loss_scale_factor for g in grads]
            with once_there_is(grads):
                finite = True
                if number_of_replicas() > 1 and grads:
                    # Keras' loss scaling asks the first replica only, so infinities of the others arrive here.
                    finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in grads]))
                    step = lambda: self._accumulate_or_step(grads, variables, accumulator)  # noqa: E731
                    self._do_if(finite, step, otherwise=self._tell_of_a_skipped_step)
                else:
                    self._accumulate_or_step(grads, variables, accumulator)
                self._count(finite, accumulator)

    def stateless_apply(self, optimizer_variables, grads, trainable_variables):
        remember_a_trace(self.chain())
        return super().stateless_apply(optimizer_variables, grads, trainable_variables)

    def _tell_of_a_skipped_step(self):
        import tensorflow as tf

        tf.print(
            f"{type(self).__name__} skipped a step, since a gradient is not finite. If the model computes in float16, "
            f"compile it with keras_tricks.LossScaleOptimizer({type(self).__name__}(...)): Keras' own loss scaling "
            "looks at the first replica only, and does not lower the scale for the others."
        )

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

    def _with_gradients(self, grads, variables, accumulator):
        """The variables that have a gradient. The others stay as they are, as Keras leaves them, and warns."""
        if accumulator is None or all(g is None for g in grads):
            return self._filter_empty_gradients(grads, variables)
        # Another batch of the window may bring a gradient that this one lacks, so the warning is for variables that
        # have had none at all yet.
        known = vars(self).setdefault("had_gradients", set())
        known.update(self._var_key(v) for g, v in zip(grads, variables, strict=True) if g is not None)
        if any(g is None and self._var_key(v) not in known for g, v in zip(grads, variables, strict=True)):
            known.update(self._var_key(v) for v in variables)
            return self._filter_empty_gradients(grads, variables)
        pairs = [(g, v) for g, v in zip(grads, variables, strict=True) if g is not None]
        return [g for g, _ in pairs], [v for _, v in pairs]

    # A method, since Keras' saving walks through properties, and this may be the optimizer itself.
    def _accumulator(self):
        """The optimizer of the chain that collects gradients, or None. There is one at most."""
        accumulators = [o for o in self.chain() if o.gradient_accumulation_steps]
        if len(accumulators) > 1:
            names = " and ".join(type(o).__name__ for o in accumulators)
            raise ValueError(f"{names} both accumulate. Leave `gradient_accumulation_steps` out of one of them.")
        for accumulator in accumulators:
            if not hasattr(accumulator, "_accumulated_gradients"):
                raise ValueError(
                    f"`gradient_accumulation_steps` of {type(accumulator).__name__} was set after it had been built. "
                    "Make a new optimizer with it."
                )
        return accumulators[0] if accumulators else None

    def _accumulate_or_step(self, grads, variables, accumulator):
        if accumulator is None:
            self._step(grads, variables)
            return
        window = accumulator.gradient_accumulation_steps
        sums = [accumulator._accumulated_gradients[accumulator._get_variable_index(v)] for v in variables]
        grads = [ops.add(total, g) for total, g in zip(sums, grads, strict=True)]

        def step():
            # A variable without a gradient in the last batch takes its step too, if another batch of the window brought
            # one.
            pending = self._pending(variables, accumulator)
            others = [v for v, _ in pending if v.trainable]
            other_grads = [ops.cast(total, accumulation_dtype(total.dtype)) for v, total in pending if v.trainable]
            self._step([g / window for g in [*grads, *other_grads]], [*variables, *others], len(variables))
            for total in [*sums, *(total for _, total in pending)]:
                self.assign(total, ops.zeros(total.shape, total.dtype))

        def collect():
            for total, g in zip(sums, grads, strict=True):
                self.assign(total, g)

        self._do_if(_completes_window(accumulator), step, otherwise=collect)

    def _pending(self, variables, accumulator):
        """The other variables that the optimizer was built with, and their sums of gradients."""
        present = {self._var_key(v) for v in variables}
        return [
            (v, total)
            for v, total in zip(self._trainable_variables, accumulator._accumulated_gradients, strict=True)
            if math.prod(v.shape) and self._var_key(v) not in present and not self._overwrite_variable_with_gradient(v)
        ]

    def _count(self, finite, accumulator):
        # An accumulating optimizer counts calls, the others optimizer steps. Outside any condition, since these
        # variables are shared by the replicas.
        stepped = finite if accumulator is None else ops.logical_and(finite, _completes_window(accumulator))
        for optimizer in reversed(self.chain()):
            # The accumulator's own count decides, so it moves last.
            if optimizer is not accumulator:
                optimizer._iterations.assign_add(ops.cast(stepped, optimizer._iterations.dtype))
        if accumulator is not None:
            accumulator._iterations.assign_add(ops.cast(finite, accumulator._iterations.dtype))

    def _step(self, grads, variables, certain=None):
        """Takes a step with the first `certain` variables, and with each other one if its gradient is not 0."""
        certain = len(variables) if certain is None else certain
        if not variables:
            return
        if self._compiles_the_step(variables):
            run_compiled(lambda: self._take_step(grads, variables, certain))
        else:
            self._take_step(grads, variables, certain)

    def _take_step(self, grads, variables, certain):
        moves = [True] * certain + [ops.any(ops.not_equal(g, 0)) for g in grads[certain:]]
        *wrappers, rule = self.chain()
        for wrapper in wrappers:
            grads = wrapper.before_update(grads, variables)
        grads = self._clip(rule, grads)
        learning_rate = ops.convert_to_tensor(learning_rate_of(rule))
        if isinstance(rule, keras.optimizers.Nadam):  # it keeps one number for all variables
            beta = rule.beta_1 * (1 - 0.5 * ops.power(0.96, ops.cast(rule.iterations + 1, "float32")))
            self.assign(rule._u_product, rule._u_product * ops.cast(beta, rule._u_product.dtype))
        constants = {}
        if isinstance(rule, AggregatedOptimizer):
            constants = {
                dtype: rule.step_constants(dtype) for dtype in {accumulation_dtype(v.dtype) for v in variables}
            }
        self._move(grads[:certain], variables[:certain], learning_rate, constants)
        for g, v, moved in zip(grads[certain:], variables[certain:], moves[certain:], strict=True):
            self._do_if(moved, lambda g=g, v=v: self._move([g], [v], learning_rate, constants))
        if rule.use_ema:
            self._update_averages(rule, {rule._var_key(v): moved for v, moved in zip(variables, moves, strict=True)})

    def _move(self, grads, variables, learning_rate, constants):
        """What a step does to these variables, except for their averages."""
        *wrappers, rule = self.chain()
        _decay(rule, variables, learning_rate)
        for g, v in zip(grads, variables, strict=True):
            of_this_dtype = constants.get(accumulation_dtype(v.dtype))
            rule.update_step(g, v, learning_rate, *([of_this_dtype] if of_this_dtype else []))
        for wrapper in reversed(wrappers):
            wrapper.after_update(variables)
        for v in variables:
            if v.constraint is not None:
                self.assign(v, v.constraint(v))

    def _compiles_the_step(self, variables):
        if keras.backend.backend() != "tensorflow" or self.jit_compile is False:
            return False
        import tensorflow as tf

        # What a callback puts in place of update_step may do things that XLA cannot.
        if tf.executing_eagerly() or tf.config.functions_run_eagerly() or is_replaced(self.chain()[-1], "update_step"):
            return False
        if self.jit_compile is True:
            return True
        parameters = sum(math.prod(v.shape) for v in variables)
        worth_it = parameters >= max(WORTH_COMPILING, WORTH_COMPILING_EACH * len(variables))
        return worth_it and not tf.config.list_physical_devices("GPU")

    def _clip(self, rule, grads):
        if rule.clipnorm:
            return [g * _shrink(rule.clipnorm, ops.sqrt(sum_of_squares(g))) for g in grads]
        if rule.global_clipnorm:
            squares = [ops.cast(sum_of_squares(g), "float32") for g in grads]
            scale = _shrink(rule.global_clipnorm, ops.sqrt(sum(squares[1:], start=squares[0])))
            return [g * ops.cast(scale, g.dtype) for g in grads]
        if rule.clipvalue:
            return [ops.clip(g, -rule.clipvalue, rule.clipvalue) for g in grads]
        return grads

    def _update_averages(self, rule, moves):
        """Moves all averages, and when it is due sets weights to them: only the weights of this step, in `moves`."""
        # The first step copies the weights; later ones move the average by 1 - ema_momentum.
        momentum = ops.where(ops.equal(rule.iterations, 0), 0.0, rule.ema_momentum)
        for v, average in zip(rule._trainable_variables, averages_of(rule), strict=True):
            if average is None:
                continue
            value = ops.cast(v, average.dtype)
            new_average = value + ops.cast(momentum, average.dtype) * (average - value)
            self.assign(average, new_average)
            moved = moves.get(rule._var_key(v), False)
            if rule.ema_overwrite_frequency and moved is not False:
                overwrite = ops.equal((rule.iterations + 1) % rule.ema_overwrite_frequency, 0)
                self.assign(v, ops.where(ops.logical_and(overwrite, moved), new_average, value))

    def finalize_variable_values(self, var_list):
        """Sets those of these variables that the optimizer was built with to their moving averages."""
        put_averages_in_place(self.chain()[-1], var_list)

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
        """Sets all variables, including those of optimizers inside, in the order of `variables`."""
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


def follows_the_protocol(optimizer):
    """Whether a step of this Keras optimizer is what its `update_step` does, so that others can take it."""
    kind, base = type(optimizer), keras.optimizers.Optimizer
    same_apply = kind.apply is base.apply and kind._backend_update_step is base._backend_update_step
    return same_apply or isinstance(optimizer, (AggregatedOptimizer, keras.optimizers.Nadam))


def method_of_all_updates(optimizer):
    """The name of the method within which an optimizer's `apply` updates all variables, in one graph."""
    return "_move" if isinstance(optimizer, AggregatedOptimizer) else "_distributed_tf_update_step"


def _decay(rule, variables, learning_rate):
    if isinstance(rule, AggregatedOptimizer):
        if not rule.decoupled_weight_decay:
            return
        decays = [rule.decay_of(rule.variable_index(v)) for v in variables]
    elif decays_in_its_own_way(rule):
        rule._apply_weight_decay(variables)
        return
    else:
        # Keras' patterns meet the variable of the backend; in TensorFlow its name is the whole path.
        natives = [native(v) if keras.backend.backend() == "tensorflow" else v for v in variables]
        decays = [rule.weight_decay if rule.weight_decay and rule._use_weight_decay(v) else 0.0 for v in natives]
    for v, decay in zip(variables, decays, strict=True):
        if decay:
            dtype = accumulation_dtype(v.dtype)
            rule.assign(v, ops.cast(v, dtype) * (1 - ops.cast(learning_rate, dtype) * decay))


def _completes_window(accumulator):
    return ops.equal((accumulator._iterations + 1) % accumulator.gradient_accumulation_steps, 0)


def _shrink(limit, norm):
    return limit / ops.maximum(norm, limit)


def _checked(optimizer, kwargs):
    """Keras' keywords with their values as they are kept."""
    for name in kwargs:
        if name not in BASE_KEYWORDS:
            close = difflib.get_close_matches(name, BASE_KEYWORDS, n=1)
            hint = f"Did you mean `{close[0]}`?" if close else f"Beside its own, it takes {', '.join(BASE_KEYWORDS)}."
            raise TypeError(f"{optimizer} has no argument `{name}`. {hint}")
    return {name: value if name == "name" else check_keyword(name, value) for name, value in kwargs.items()}


def check_keyword(name, value):
    """Returns the value of one of Keras' keywords as it is kept; raises TypeError or ValueError."""
    return getattr(AggregatedOptimizer, name).check(value)


def check_hyperparameters(optimizer):
    """Checks the arguments of an optimizer of Keras, as those of this package check their own."""
    check_learning_rate(optimizer._learning_rate)
    for keyword in BASE_KEYWORDS[1:]:
        if getattr(optimizer, keyword, None) is not None:
            check_keyword(keyword, getattr(optimizer, keyword))
