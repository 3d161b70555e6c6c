"""XLA inside each replica: the training step compiled where `compile(jit_compile=True)` fails.

    strategy.run:   [ XLA: forward, loss, backward, metrics ]   all-reduce, optimizer        (fit)
                    [ XLA: forward ]                                                         (everything else)

Under `MirroredStrategy` Keras compiles the program of all replicas as one XLA cluster, which may not touch variables on
several devices. `jit` compiles once in each replica instead. The compiled part is a pure function: it reads variables,
and everything that it would assign (moving statistics, seeds, metrics) comes out of it as values and is put in place
outside, as do masks and added losses, so they mean what they mean without XLA.

No paper; `docs/tricks/jit.md` holds the measurements, also of compiling the model's call alone.
"""

import concurrent.futures
import contextlib
import functools
import re
import threading

import keras

from keras_tricks._keras.masks import mask_of, with_mask
from keras_tricks._keras.patches import is_replaced, replace, replaced, replacing
from keras_tricks._keras.scopes import assigned, open_scope, pure_scope


def jit(model):
    """Compiles a model's training step and forward pass with XLA, inside each replica of its strategy.

    `fit`, `evaluate`, `predict`, `save` and `export` work as before, on one device too. In a `tf.function` of your own,
    calls with `training=True` are compiled. What runs eagerly (a direct call, `run_eagerly=True`) stays eager. Works on
    Functional, Sequential and subclassed models, before or after `compile()`, and on loaded models. A model with a
    `train_step` of its own keeps it; there the forward pass and its gradient are compiled. The optimizer's step stays
    outside.

    The model itself is changed and returned. A saved model does not keep it: call `jit` again after loading. Each new
    input shape is compiled separately, so batch with `drop_remainder=True`.

    Args:
        model: A `keras.Model`.

    Returns:
        The same model.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
        RuntimeError: On a backend other than TensorFlow; there `compile(jit_compile=True)` is enough.
        ValueError: Here or when the model is first called: for synchronized batch normalisation under several replicas
            (its exchange cannot be in the compiled part), for layers and inputs that XLA cannot take (strings, random
            rotations, ragged or sparse tensors), for a layer that assigns its own trainable weight, or a variable that
            is not the model's (stateful recurrent layers, random numbers without a seed generator), for a recurrent
            layer in a model with a `train_step` of its own, and for `compile(jit_compile=True)` afterwards under
            several replicas (before, it is switched off).
        RuntimeError: In the first step, if XLA cannot compile an operation.

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
    if is_jitted(model):
        return model
    _refuse_layers(model, model.distribute_strategy)
    has_own_step = is_replaced(model, "train_step") or type(model).train_step is not keras.Model.train_step
    call = _CompiledCall(model)
    replace(model, "call", call)
    replace(model, "train_step", (_Step if has_own_step else _CompiledTrainStep)(call, "train"))
    replace(model, "test_step", _Step(call, "test"))
    replace(model, "predict_step", _Step(call, "predict"))
    for name in ("train_function", "test_function", "predict_function"):
        replace(model, f"make_{name}", functools.partial(_make_explained, model, name))
    if model.compiled:
        # The step functions may have been traced without `jit`, and Keras' XLA would enclose ours.
        model.jit_compile = False
        model.train_function = model.test_function = model.predict_function = None
    return model


def is_jitted(model):
    """Whether `jit` has changed the model."""
    return any(isinstance(function, _CompiledCall) for function in replacing(model, "call"))


class _CompiledCall:
    """Stands in for `model.call`: compiled where a step of the model is traced, or another call in training.

    Any other graph may be traced for an export, whose formats know nothing of XLA: there, as without a graph, it is the
    plain call.
    """

    def __init__(self, model):
        self.model = model
        self._traced = threading.local()  # each replica is traced by a thread of its own

    @property
    def step(self):
        """The step of the model that this thread is in: "train", "test", "predict", "without jit" or `None`."""
        return getattr(self._traced, "step", None)

    @contextlib.contextmanager
    def within(self, step):
        before, self._traced.step = self.step, step
        try:
            yield
        finally:
            self._traced.step = before

    def __call__(self, plain, *args, **kwargs):
        if not self._is_to_be_compiled(args, kwargs):
            return plain(*args, **kwargs)
        _refuse_what_cannot_work(self.model)
        _refuse_inputs((args, kwargs))
        in_training = self.step == "train" or kwargs.get("training")
        outputs, masks, losses, new_values = _xla(functools.partial(self._pure, plain))(args, kwargs, in_training)
        tensors = [
            x if mask is None else with_mask(x, mask=mask)
            for x, mask in zip(keras.tree.flatten(outputs), masks, strict=True)
        ]
        outputs = keras.tree.pack_sequence_as(outputs, tensors)
        for loss in losses:
            keras.Layer.add_loss(self.model, loss)  # a Functional model's own refuses losses
        _assign(self.model, new_values)
        return outputs

    def _is_to_be_compiled(self, args, kwargs):
        if not self.model.built or _runs_eagerly() or open_scope() is not None or _holds_symbols(args, kwargs):
            return False  # not a graph, or being built, traced for shapes, or part of what is compiled as a whole
        if self.step is None:
            return bool(kwargs.get("training")) or _is_a_replica()
        return self.step != "without jit"

    def _pure(self, plain, args, kwargs, in_training):
        with pure_scope() as scope:
            outputs = plain(*args, **kwargs)
        if in_training:
            _refuse_loops(self.model)
        masks = [mask_of(x) for x in keras.tree.flatten(outputs)]
        return outputs, masks, list(scope.losses), _new_values(self.model, scope, {})


class _Step:
    """Stands in for a step of the model: what it calls of the model is compiled."""

    def __init__(self, call, name):
        self.call, self.name = call, name

    def __call__(self, plain, data):
        with self.call.within(self.name):
            return plain(data)


class _CompiledTrainStep(_Step):
    """Stands in for Keras' own `train_step`: all of it compiled, up to the optimizer."""

    def __init__(self, call, name):
        super().__init__(call, name)
        self._built_for = ()

    def __call__(self, plain, data):
        if _runs_eagerly():
            return plain(data)
        model = self.call.model
        self._build(plain, data)
        _refuse_what_cannot_work(model)
        _refuse_variables_of_one_device(model)
        _refuse_inputs(data)
        logs, gradients, new_values = _xla(functools.partial(self._pure, plain))(data)
        _assign(model, new_values)
        if gradients is not None:
            model.optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
        return logs

    def _build(self, plain, data):
        """Makes the variables of metrics, loss and optimizer, which Keras leaves to the first trace of the step.

        With an optimizer without variables, such as plain SGD, the step is traced only once, so it must be compiled in
        that trace already. With a strategy Keras has made the variables before; otherwise a throw-away trace does.
        Every `compile` makes new metrics.
        """
        import tensorflow as tf

        model = self.call.model
        if tf.distribute.has_strategy() or _are_the_same(self._built_for, _compiled_parts(model)):
            return
        specs = keras.tree.map_structure(lambda x: None if x is None else tf.type_spec_from_value(x), data)

        def trace():
            with self.call.within("without jit"):
                tf.function(plain, autograph=False).get_concrete_function(specs)

        # In a thread of its own, in which no graph is open. `tf.init_scope` would leave the graph, but records no
        # gradients.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            thread.submit(trace).result()
        self._built_for = _compiled_parts(model)

    def _pure(self, plain, data):
        model, applied = self.call.model, []

        def apply_gradients(plain, pairs):
            applied.extend(gradient for gradient, _ in pairs)

        scope = pure_scope((v, v.value) for v in model.trainable_weights)  # Keras looks regularized weights up in it
        before = dict(scope.state_mapping)
        without_a_step = contextlib.nullcontext()
        if model.optimizer is not None:
            without_a_step = replaced(model.optimizer, "apply_gradients", apply_gradients)
        with scope, without_a_step:
            logs = plain(data)
        return logs, applied or None, _new_values(model, scope, before)


def _compiled_parts(model):
    return [model.optimizer, *model.metrics]


def _are_the_same(these, those):
    return len(these) == len(those) and all(a is b for a, b in zip(these, those, strict=True))


def _make_explained(model, name, plain, force=False):
    """XLA refuses in its own words, and only when the function first runs: this says what can be done instead."""
    before = getattr(model, name)
    plain(force)
    made = getattr(model, name)
    if made is not before:
        setattr(model, name, _explained(made))
    return getattr(model, name)


def _explained(function):
    import tensorflow as tf

    @functools.wraps(function)
    def explained(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except tf.errors.OpError as error:
            if not re.search("XLA|compil", error.message):
                raise
            raise RuntimeError(
                "`jit`: XLA cannot compile this model. An operation that it does not know, named below, is in a layer, "
                "the loss or a metric: move what prepares the input into the tf.data pipeline, write the layer in "
                "`keras.ops`, or train this model without `jit`. TensorFlow says:\n"
                f"{error.message}"
            ) from error

    return explained


def _xla(function):
    """`function` compiled, separately for each graph that it goes into, so that it never outlives a new `compile()`."""
    import tensorflow as tf

    return tf.function(tf.autograph.experimental.do_not_convert(function), jit_compile=True)


def _new_values(model, scope, before):
    """Values that the model assigned inside `scope`, by the variable's position in `_state(model)`."""
    import tensorflow as tf

    state = _state(model)
    values = assigned(scope, before, state)
    if None in values:
        raise ValueError(
            f"`jit`: model {model.name!r} assigns a variable that is not one of its own while it is called, which "
            "would be lost. Random numbers do this without a seed generator: set `self.seed = "
            "keras.random.SeedGenerator()` "
            "in the layer and pass `seed=self.seed`. A stateful recurrent layer does it too: train it without `jit`. "
            "Other variables must be attributes of a layer."
        )
    for v in (state[index] for index in values):
        if v.trainable:
            raise ValueError(
                f"`jit`: the model assigns its trainable weight {v.path!r} while it is called (spectral normalisation "
                "does so). That cannot be compiled with the right gradient: train this model without `jit`."
            )
    return {index: tf.stop_gradient(value) for index, value in values.items()}


def _assign(model, new_values):
    state = _state(model)
    for index, value in new_values.items():
        state[index].assign(value)


def _state(model):
    return [*model.variables, *model.metrics_variables]


def _runs_eagerly():
    import tensorflow as tf

    return tf.executing_eagerly()


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
    _refuse_layers(model, strategy)


def _refuse_layers(model, strategy):
    for layer in _all_layers(model):
        if not getattr(layer, "supports_jit", True) and layer is not model and not getattr(layer, "layers", ()):
            raise ValueError(
                f"`jit`: layer {layer.name!r} ({type(layer).__name__}) has operations that XLA cannot compile. Move it "
                "into the tf.data pipeline, as in `data.map(lambda x, y: (preprocessing(x), y))`, or train this model "
                "without `jit`. A recurrent layer on a GPU can be compiled with use_cudnn=False."
            )
        if strategy.num_replicas_in_sync > 1 and getattr(layer, "synchronized", False):
            raise ValueError(
                f"`jit`: layer {layer.name!r} has synchronized=True, whose exchange between replicas cannot be in the "
                "part that XLA compiles. Use synchronized=False, or train without `jit`."
            )


def _refuse_inputs(data):
    import tensorflow as tf

    for x in keras.tree.flatten(data):
        kind = {tf.RaggedTensor: "ragged", tf.SparseTensor: "sparse"}.get(type(x))
        kind = "of strings" if kind is None and getattr(x, "dtype", None) == tf.string else kind
        if kind:
            raise ValueError(
                f"`jit`: the data have a tensor that is {kind}, which XLA cannot take. Make it dense or numbers in the "
                "tf.data pipeline (`tf.RaggedTensor.to_tensor`, `tf.sparse.to_dense`, `keras.layers.StringLookup`), or "
                "train this model without `jit`."
            )


def _refuse_loops(model):
    import tensorflow as tf

    if any(op.type in ("While", "StatelessWhile") for op in tf.compat.v1.get_default_graph().get_operations()):
        raise ValueError(
            f"`jit`: model {model.name!r} has a loop, as a recurrent layer has, and is called by a training step that "
            "is not Keras' own. Of that only the forward pass is compiled, and the gradient of a loop cannot cross the "
            "border. Use `unroll=True` in the recurrent layers, or train this model without `jit`."
        )


def _is_a_replica():
    """Whether this is within `strategy.run` on several devices, and not in the scope, as an export may be."""
    import tensorflow as tf

    context = tf.distribute.get_replica_context()
    return context is not None and context.num_replicas_in_sync > 1


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
