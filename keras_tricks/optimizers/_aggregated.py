"""The base of every optimizer in this package: one step, in the order that is right on any number of replicas.

    gradients of one replica
      -> cast to float32, all-reduce (sum; Keras divides the loss by the number of replicas)
      -> merge repeated rows of sparse gradients
      -> accumulate, every `gradient_accumulation_steps`-th call goes on
      -> clip -> decay -> update_step -> constraint -> moving average of the weights

Keras 3.15 clips and accumulates before the all-reduce, which changes the result with the number of replicas and crashes
under `MirroredStrategy`. Here each replica sees the aggregated gradient and then takes the same step on its own copy of
the variables, so nothing needs a merge call inside a condition, and one device, several replicas and XLA agree.

This is the only file that touches hooks of Keras which are not public. `tests/optimizers/test_aggregated.py` names each
of them, and fails with that name when Keras moves it.
"""

import numbers
import warnings

import keras
from keras import ops

LOW_PRECISION = ("float16", "bfloat16")

# What this file takes from keras.optimizers.Optimizer without it being public API.
PRIVATE_HOOKS = (
    "_accumulated_gradients",
    "_check_variables_are_known",
    "_clip_gradients",
    "_filter_empty_gradients",
    "_get_current_learning_rate",
    "_get_variable_index",
    "_iterations",
    "_learning_rate",
    "_model_variables_moving_average",
    "_overwrite_variables_directly_with_gradients",
    "_trainable_variables",
    "_use_weight_decay",
)


class AggregatedOptimizer(keras.optimizers.Optimizer):
    """Keras' optimizer base with clipping, accumulation, decay, averages and schedules counted in optimizer steps.

    A subclass writes `update_step(gradient, variable, learning_rate)`: there the gradient is dense, aggregated over
    replicas, averaged over accumulation and clipped, in float32 or wider, and `variable` is a `keras.Variable`.
    """

    # A subclass that handles `self.weight_decay` inside its update sets this to False.
    decoupled_weight_decay = True

    # A loss-scale optimizer that looks at every replica's gradients sets this to True on the optimizer it wraps.
    finite_check_is_done = False

    def __init__(self, learning_rate, **kwargs):
        if isinstance(learning_rate, numbers.Real) and not isinstance(learning_rate, bool):
            if not learning_rate >= 0:
                raise ValueError(f"`learning_rate` must not be negative. Received: learning_rate={learning_rate}")
            learning_rate = float(learning_rate)
        steps = kwargs.get("gradient_accumulation_steps")
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, numbers.Integral) or steps < 1):
            raise ValueError(
                "`gradient_accumulation_steps` must be None or an integer of at least 1. "
                f"Received: gradient_accumulation_steps={steps!r}"
            )
        if steps == 1:  # Keras refuses 1, although it only means "do not accumulate".
            kwargs["gradient_accumulation_steps"] = None
        super().__init__(learning_rate=learning_rate, **kwargs)

    def build(self, variables):
        super().build(variables)
        self._guards_against_overflow = (
            _number_of_replicas() > 1
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

    def add_variable(self, shape, initializer="zeros", dtype=None, **kwargs):
        """Keras' `add_variable`, but never in float16 or bfloat16, where moments and sums lose their small parts."""
        if dtype is not None and keras.backend.standardize_dtype(dtype) in LOW_PRECISION:
            dtype = "float32"
        return super().add_variable(shape, initializer=initializer, dtype=dtype, **kwargs)

    def variable_index(self, variable):
        """Position of `variable` in the list that the optimizer was built with."""
        return self._get_variable_index(variable)

    def apply(self, grads, trainable_variables=None):
        """Takes one step with this replica's gradients; see the module's docstring for the order of things."""
        grads = list(grads)
        if not grads:
            return
        variables = self._variables_of(grads, trainable_variables)
        with keras.name_scope(self.name, caller=self):
            grads, variables = self._filter_empty_gradients(grads, variables)
            grads, variables = self._overwrite_variables_directly_with_gradients(grads, variables)
            grads = [ops.cast(g, arithmetic_dtype(g.dtype)) for g in grads]
            grads = _sum_over_replicas(grads)
            if self.loss_scale_factor is not None:
                grads = [g / self.loss_scale_factor for g in grads]
            if self._guards_against_overflow:
                finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in grads]))
                self._do_if(finite, lambda: self._accumulate_or_step(grads, variables))
                self._iterations.assign_add(ops.cast(finite, self._iterations.dtype))
            else:
                self._accumulate_or_step(grads, variables)
                self._iterations.assign_add(1)

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

    def _accumulate_or_step(self, grads, variables):
        window = self.gradient_accumulation_steps
        if not window:
            self._step(grads, variables)
            return
        sums = [self._accumulated_gradients[self.variable_index(v)] for v in variables]
        grads = [ops.add(total, g) for total, g in zip(sums, grads, strict=True)]

        def step():
            self._step([g / window for g in grads], variables)
            for total in sums:
                self.assign(total, ops.zeros(total.shape, total.dtype))

        def collect():
            for total, g in zip(sums, grads, strict=True):
                self.assign(total, g)

        self._do_if(ops.equal((self._iterations + 1) % window, 0), step, otherwise=collect)

    def _step(self, grads, variables):
        grads = self._clip_gradients(grads)
        learning_rate = self.learning_rate
        if self.weight_decay is not None and self.decoupled_weight_decay:
            for v in variables:
                if self._use_weight_decay(v):
                    dtype = arithmetic_dtype(v.dtype)
                    self.assign(v, ops.cast(v, dtype) * (1 - ops.cast(learning_rate, dtype) * self.weight_decay))
        for g, v in zip(grads, variables, strict=True):
            self.update_step(g, v, learning_rate)
        for v in variables:
            if v.constraint is not None:
                self.assign(v, v.constraint(v))
        if self.use_ema:
            self._update_averages()

    def _update_averages(self):
        # The first step copies the weights; later ones move the average by 1 - ema_momentum.
        momentum = ops.where(ops.equal(self.iterations, 0), 0.0, self.ema_momentum)
        for v, average in zip(self._trainable_variables, self._model_variables_moving_average, strict=True):
            if average is None:
                continue
            value = ops.cast(v, average.dtype)
            new_average = value + ops.cast(momentum, average.dtype) * (average - value)
            self.assign(average, new_average)
            if self.ema_overwrite_frequency:
                overwrite = ops.equal((self.iterations + 1) % self.ema_overwrite_frequency, 0)
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


def arithmetic_dtype(dtype):
    """The dtype to compute in for a variable of `dtype`: float32, or float64 for float64."""
    dtype = keras.backend.standardize_dtype(dtype)
    return "float32" if dtype in LOW_PRECISION else dtype


def _number_of_replicas():
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
    if replica_context.num_replicas_in_sync > 1:
        grads = replica_context.all_reduce(tf.distribute.ReduceOp.SUM, grads)
    return [tf.convert_to_tensor(g) if isinstance(g, tf.IndexedSlices) else g for g in grads]
