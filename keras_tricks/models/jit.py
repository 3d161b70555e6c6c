"""XLA inside each replica: the training step compiled where `compile(jit_compile=True)` fails.

    strategy.run:   [ XLA: forward, loss, backward, metrics ]   all-reduce, optimizer        (fit)
                    [ XLA: forward ]                                                         (everything else)

Under `MirroredStrategy` Keras compiles the program of all replicas as one XLA cluster, which may not touch variables on
several devices. `jit` compiles once in each replica instead. The compiled part is a pure function: it reads variables,
and everything that it would assign (moving statistics, seeds, metrics) comes out of it as values and is put in place
outside, as do masks and added losses, so they mean what they mean without XLA.

No paper; `docs/tricks/jit.md` holds the measurements, also of compiling the model's call alone.
"""

import functools
import inspect

import keras

from keras_tricks._masks import mask_of, with_mask


def jit(model):
    """Compiles a model's training step and forward pass with XLA, inside each replica of its strategy.

    `fit`, `evaluate`, `predict` and `save` work as before, on one device too; so do calls in a `tf.function`. What runs
    eagerly (a direct call, `run_eagerly=True`) stays eager. Works on Functional, Sequential and subclassed models,
    before or after `compile()`, and on loaded models. A model with a `train_step` of its own keeps it; there the
    forward pass and its gradient are compiled. The optimizer's step stays outside.

    The model itself is changed and returned. Saving does not keep it: call `jit` again on a loaded model. Each new
    input shape is compiled anew, so batch with `drop_remainder=True`.

    Args:
        model: A `keras.Model`.

    Returns:
        The same model.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
        RuntimeError: On a backend other than TensorFlow; there `compile(jit_compile=True)` is enough.
        ValueError: Here or when the model is first called: for synchronized batch normalisation under several replicas
            (its exchange cannot be in the compiled part), for a layer that assigns its own trainable weight, and for
            `compile(jit_compile=True)` afterwards under several replicas (before, it is switched off).

    Example:
    >>> import keras, keras_tricks as kt
    >>> model = kt.jit(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)]))
    >>> model.compile(optimizer=kt.LAMB(), loss="mse", jit_compile=False)
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`jit` expects a keras.Model. Received: {model!r}")
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"`jit` is for the TensorFlow backend; this is {keras.backend.backend()}, where "
            "`model.compile(jit_compile=True)` compiles the whole step."
        )
    if isinstance(model.call, CompiledCall):
        return model
    _refuse_synchronized_statistics(model, model.distribute_strategy)
    model.call = CompiledCall(model)
    if type(model).train_step is keras.Model.train_step:
        model.train_step = _CompiledTrainStep(model)
    if model.compiled:
        # The step functions may have been traced without `jit`, and Keras' XLA would enclose ours.
        model.jit_compile = False
        model.train_function = model.test_function = model.predict_function = None
    return model


class CompiledCall:
    """Stands in for `model.call`: compiled where a graph is being made of real tensors, else the plain call."""

    def __init__(self, model):
        self.model = model
        self.plain = model.call
        functools.update_wrapper(self, model.call)
        self.__signature__ = inspect.signature(model.call)

    def __call__(self, *args, **kwargs):
        if not self.model.built or _runs_eagerly() or _in_stateless_scope() or _holds_symbols(args, kwargs):
            # Not a graph, or being built, traced for shapes, or part of a pure function that is compiled as a whole.
            return self.plain(*args, **kwargs)
        _refuse_what_cannot_work(self.model)
        outputs, masks, losses, new_values = _xla(self._pure)(args, kwargs)
        tensors = [
            x if mask is None else with_mask(x, mask=mask)
            for x, mask in zip(keras.tree.flatten(outputs), masks, strict=True)
        ]
        outputs = keras.tree.pack_sequence_as(outputs, tensors)
        for loss in losses:
            self.model.add_loss(loss)
        _assign(self.model, new_values)
        return outputs

    def _pure(self, args, kwargs):
        with keras.StatelessScope(collect_losses=True, initialize_variables=False) as scope:
            outputs = self.plain(*args, **kwargs)
        masks = [mask_of(x) for x in keras.tree.flatten(outputs)]
        return outputs, masks, list(scope.losses), _new_values(self.model, scope)


class _CompiledTrainStep:
    """Stands in for Keras' own `train_step`: all of it compiled, up to the optimizer."""

    def __init__(self, model):
        self.model = model
        self.plain = model.train_step

    def __call__(self, data):
        model = self.model
        if _runs_eagerly() or model.optimizer is None or not model.optimizer.built:
            return self.plain(data)
        _refuse_what_cannot_work(model)
        _refuse_variables_of_one_device(model)
        logs, gradients, new_values = _xla(self._pure)(data)
        _assign(model, new_values)
        if gradients is not None:
            model.optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
        return logs

    def _pure(self, data):
        model = self.model
        applied = []
        with keras.StatelessScope(collect_losses=True, initialize_variables=False) as scope:
            for v in model.trainable_weights:
                scope.add_update((v, v.value))  # Keras looks regularized weights up in the scope
            model.optimizer.apply_gradients = lambda pairs: applied.extend(g for g, _ in pairs)
            try:
                logs = self.plain(data)
            finally:
                del model.optimizer.apply_gradients
        return logs, applied or None, _new_values(model, scope)


def _xla(function):
    """`function` compiled. Made anew for each graph that it goes into, so it never outlives a new `compile()`."""
    import tensorflow as tf

    return tf.function(tf.autograph.experimental.do_not_convert(function), jit_compile=True)


def _new_values(model, scope):
    """Values that the model assigned inside of `scope`, by the variable's position in `_state(model)`."""
    import tensorflow as tf

    values = {}
    for index, v in enumerate(_state(model)):
        value = scope.get_current_value(v)
        if value is None or value is v.value:
            continue
        if v.trainable:
            raise ValueError(
                f"`jit`: the model assigns its trainable weight {v.path!r} while it is called (spectral normalisation "
                "does so). That cannot be compiled with the right gradient: train this model without `jit`."
            )
        values[index] = tf.stop_gradient(value)
    return values


def _assign(model, new_values):
    state = _state(model)
    for index, value in new_values.items():
        state[index].assign(value)


def _state(model):
    return [*model.variables, *model.metrics_variables]


def _runs_eagerly():
    import tensorflow as tf

    return tf.executing_eagerly()


def _in_stateless_scope():
    probe = keras.StatelessScope(initialize_variables=False)
    with probe:
        return probe.original_scope is not None


def _holds_symbols(args, kwargs):
    return any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten((args, kwargs)))


def _refuse_what_cannot_work(model):
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return
    if model.compiled and model.jit_compile:
        raise ValueError(
            "`compile(jit_compile=True)` cannot compile a step that runs on several replicas. `keras_tricks.jit` "
            "compiles this model already: use `compile(jit_compile=False)`."
        )
    _refuse_synchronized_statistics(model, strategy)


def _refuse_synchronized_statistics(model, strategy):
    if strategy.num_replicas_in_sync == 1:
        return
    for layer in _all_layers(model):
        if getattr(layer, "synchronized", False):
            raise ValueError(
                f"`jit`: layer {layer.name!r} has synchronized=True, whose exchange between replicas cannot be in the "
                "part that XLA compiles. Use synchronized=False, or train without `jit`."
            )


def _refuse_variables_of_one_device(model):
    import tensorflow as tf

    strategy = tf.distribute.get_strategy()
    if strategy.num_replicas_in_sync == 1:
        return
    for v in _state(model):
        if not strategy.extended.variable_created_in_scope(v.value):
            raise ValueError(
                f"`jit`: variable {v.path!r} was made outside of the strategy's scope, so it is on one device, and XLA "
                "on the others cannot read it. Make metrics, as the model, within `with strategy.scope():`, or give "
                "`compile` their names."
            )


def _all_layers(layer):
    yield layer
    inside = [*getattr(layer, "layers", []), getattr(layer, "layer", None)]  # of a model, of a wrapper
    for inner in inside:
        if isinstance(inner, keras.Layer):
            yield from _all_layers(inner)
