"""The classifier of a trained network, corrected for rare classes while the features stay as they are.

    adjust_logits        z_j - τ · log π_j        π_j = n_j / N, the classes' shares of the training data
    tau_normalize        W_j / ‖W_j‖^τ            W_j the weights of class j; without bias
    retrain_classifier   W, b anew, trained on class-balanced data, the rest frozen
    learn_scale          f_j · z_j                f trained on class-balanced data, all else frozen; folded into W, b

Features that were learned from long-tailed data as they are serve all classes well; it is the last layer that favours
the frequent ones. Menon et al., 2021, arXiv:2007.07314 (the first); Kang et al., 2020, arXiv:1910.09217 (the others:
τ-normalisation, cRT and LWS of facebookresearch/classifier-balancing, with its optimizer and rate as the default).
"""

import collections
import inspect
import math
import threading
import warnings

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_count, check_number
from keras_tricks._keras.masks import mask_of
from keras_tricks._keras.replicas import scope_of
from keras_tricks._keras.snapshot import copies
from keras_tricks._labels.class_counts import as_class_counts, log_priors
from keras_tricks._labels.targets import Targets, weights_of
from keras_tricks.layers.normalized_dense import SMALLEST_NORM, NormalizedDense
from keras_tricks.losses import LDAM, BalancedSoftmax, LogitAdjusted, SparseFocal
from keras_tricks.models._copy import carry_everything, carry_nothing, plain_copy, unbuilt
from keras_tricks.models._graph import (
    as_float64,
    builds_as_keras_does,
    described,
    edges_of,
    has_other_kernel,
    opens,
    require_graph,
    trace,
    walk,
)
from keras_tricks.models.convert import Conversion, Rule
from keras_tricks.models.jit import is_jitted, jit
from keras_tricks.optimizers.loss_scale import LossScaleOptimizer

_INSTEAD = "Build a functional model of the same layers, keras.Model(inputs, outputs), and give that."
ADJUSTMENT = "logit_adjustment"  # the name by which a model shows, also when it was saved, that it is adjusted


def adjust_logits(model, class_counts, tau=1.0):
    """A model whose logits are corrected for the classes' frequencies: `z_j - tau · log(n_j / N)`.

    A network that was trained with plain cross-entropy on long-tailed data favours the frequent classes by their
    frequency; this takes it away again, without training. The adjusted model has the same layers, so the same weights,
    and one more, a plain `keras.layers.Rescaling` in float32: its file loads where this package is not installed.
    `model` itself is not changed. The result is not compiled, and is for prediction: do not train it.

    Args:
        model: A built Functional or Sequential model with one output, logits of shape `(batch, ..., classes)`.
        class_counts: Number of training examples of each class, of shape `(classes,)`, or the training dataset, which
            is then read once. A class without examples counts as one with a single example.
        tau: τ, at least 0. 0 changes nothing, 1 (default) is right for equally frequent classes if the probabilities
            are. Look for the best in 0 to 2.5 on validation data.

    Returns:
        A functional `keras.Model`.

    Raises:
        TypeError: If `model` is not a Keras model, or `tau` is not a number.
        ValueError: If the model is not built, subclassed or has several outputs; if its outputs are probabilities; if
            it is adjusted already, by this function or by the loss that it was compiled with, or that loss is LDAM; if
            the counts are not one a class.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, kernel_initializer="zeros")])
    >>> adjusted = kt.models.adjust_logits(model, [900, 90, 10])
    >>> np.round(adjusted.predict(np.ones((1, 4)), verbose=0), 2)
    array([[0.11, 2.41, 4.61]], dtype=float32)

    Reference:
        Aditya Krishna Menon, Sadeep Jayasumana, Ankit Singh Rawat, Himanshu Jain, Andreas Veit, Sanjiv Kumar,
        "Long-tail learning via logit adjustment", 2021, arXiv:2007.07314.
    """
    require_graph("adjust_logits", model, _INSTEAD)
    tau = check_number("tau", tau, at_least=0)
    _check_output("adjust_logits", model)
    for loss in keras.tree.flatten(model.loss) if model.compiled else ():
        if isinstance(loss, BalancedSoftmax | LogitAdjusted):
            raise ValueError(
                f"`adjust_logits`: model {model.name!r} was trained with {type(loss).__name__}, which adjusts the "
                "logits in training. They are right as they are; a second adjustment would favour the rare classes."
            )
        if isinstance(loss, LDAM):
            raise ValueError(
                f"`adjust_logits`: model {model.name!r} was trained with LDAM, so its outputs are cosines, and the "
                f"logits {loss.scale:g} times as large. Give it with that factor: keras.Model(model.input, "
                f"keras.layers.Rescaling({loss.scale:g})(model.output))."
            )
    counts = as_class_counts(class_counts)
    classes = _outputs(model)[0].shape[-1]
    if len(counts) != classes:
        raise ValueError(
            f"`adjust_logits`: model {model.name!r} has {classes} classes, and `class_counts` has {len(counts)}. Give "
            "one count a class; `data.class_counts(dataset, num_classes=...)` counts classes without examples too."
        )
    with scope_of(model):
        inputs, outputs = _ends(model)
        # Not to round the correction to half precision, in which the difference of two logits can vanish.
        dtype = "float64" if _outputs(model)[0].dtype == "float64" else "float32"
        adjustment = keras.layers.Rescaling(1.0, (-tau * log_priors(counts)).tolist(), name=ADJUSTMENT, dtype=dtype)
        adjusted = keras.Model(inputs, keras.tree.map_structure(adjustment, outputs), name=model.name)
        adjusted.dtype_policy = model.dtype_policy
        return adjusted


def tau_normalize(layer, tau=1.0):
    """Divides each class's weights by their norm to the power of tau, and sets the bias to 0.

    `W_j <- W_j / ‖W_j‖^tau`: frequent classes grow long weight vectors, and win by them. Norms are computed in float64;
    columns shorter than 1e-12 count as that long, so zeros stay zeros.

    Args:
        layer: A built `Dense`, or a convolution whose outputs are the classes: it is changed in place. Or a built
            Functional or Sequential model: a copy of it is changed, and the model stays as it is, which is what a
            search for tau wants. The copy is not compiled.
        tau: τ, at least 0. 0 only drops the bias, 1 (default) makes all columns equally long. Look for the best in 0
            to 2 on validation data.

    Returns:
        The layer, or the new model.

    Raises:
        TypeError: If `layer` is neither a layer nor a model, or `tau` is not a number.
        ValueError: If the layer is not built or not one of those, has LoRA or is quantized; for a model, if its last
            layer is not one of those, or its outputs are probabilities.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> layer = keras.layers.Dense(2)
    >>> layer.build((None, 2))
    >>> layer.set_weights([np.array([[3.0, 0.5], [4.0, 0.0]]), np.array([1.0, 2.0])])
    >>> kt.models.tau_normalize(layer, 0.5).get_weights()[0].round(3)
    array([[1.342, 0.707],
           [1.789, 0.   ]], dtype=float32)

    Reference:
        Bingyi Kang, Saining Xie, Marcus Rohrbach, Zhicheng Yan, Albert Gordo, Jiashi Feng, Yannis Kalantidis,
        "Decoupling Representation and Classifier for Long-Tailed Recognition", 2020, arXiv:1910.09217.
    """
    if not isinstance(layer, keras.Layer):
        raise TypeError(f"`tau_normalize` expects a built Dense layer, or a keras.Model. Received: {layer!r}")
    tau = check_number("tau", tau, at_least=0)
    if isinstance(layer, keras.Model):
        found = _find("tau_normalize", layer, None)
        _require_linear("tau_normalize", found.layer)
        copy, (*_, classifier) = _copy(found, plain_copy, carry_everything)
        _normalize(classifier, tau)
        return copy
    _require_linear("tau_normalize", layer)
    _normalize(layer, tau)
    return layer


def retrain_classifier(model, data, epochs=10, optimizer=None, loss=None, layer=None, seed=None, **kwargs):
    """Trains a fresh classifier on class-balanced data, on top of the features that a model has learned (cRT).

    Returns a copy of the model. Its last layer is initialised anew, by its own initializers, and trained; all other
    weights and statistics, seeds and `trainable` flags are those of `model`, bit for bit, and `model` itself is not
    changed. In this training all other layers run as in inference: batch normalisation uses its moving statistics,
    dropout and augmentation layers are off, so augment in the data.

    The result is not compiled; its `history` is that of the training. Under the strategy and with the precision of
    `model`, compiled as it is if it comes from `kt.jit`.

    Args:
        model: A built Functional or Sequential model whose output are logits.
        data: What `fit` takes, class-balanced, such as `dataset.apply(data.class_balanced(counts)).batch(64)`. Labels
            are integers, or one-hot of the shape of the logits. A warning says so if the labels that training drew,
            with their sample weights, were not balanced: some class more than twice as often as another.
        epochs: Number of epochs. Defaults to 10.
        optimizer: Defaults to that of the paper's authors: SGD with momentum 0.9, a rate of 0.2 for a batch of 512, in
            proportion for others, that falls as a cosine, and an L2 decay of 5e-4 on the kernel. Where the classifier
            computes in float16, `kt.LossScaleOptimizer` is put around either. Make yours in the scope of the
            model's strategy.
        loss: Defaults to softmax cross-entropy on the logits.
        layer: The classifier, as a layer or its name, where it is not the last layer. Defaults to `None`: the last
            `Dense`, `NormalizedDense` or convolution; linear activations, as for a cast to float32, may follow.
        seed: An int, to fix the new weights. Defaults to `None`: another draw each time, which
            `keras.utils.set_random_seed` fixes.
        **kwargs: Arguments of `fit` (`y`, `batch_size`, `steps_per_epoch`, `validation_data`, `callbacks`, ...) and
            `compile` (`metrics`, `jit_compile`, ...). Callbacks see a model around the one that is trained.

    Returns:
        The new model, of the same class as `model`.

    Raises:
        TypeError: If `model` is not a Keras model; for an argument that neither `fit` nor `compile` has.
        ValueError: If the model is not built, subclassed or has several outputs, its outputs are probabilities, or it
            is adjusted already; if the classifier is not found, or called twice; for an optimizer
            that was used before, or made outside of the model's strategy; without `optimizer`, for data that do not
            show their batch size before they are read, such as a generator.

    Example:
    >>> import keras, numpy as np, tensorflow as tf, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(3)])
    >>> x, y = np.random.normal(size=(100, 4)).astype("float32"), np.repeat([0, 1, 2], [80, 15, 5])
    >>> examples = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(100)
    >>> balanced = examples.apply(kt.data.class_balanced([80, 15, 5])).batch(20)
    >>> retrained = kt.models.retrain_classifier(model, balanced, epochs=2, shuffle=False, verbose=0)
    >>> len(retrained.history.history["loss"])
    2

    Reference:
        Bingyi Kang, Saining Xie, Marcus Rohrbach, Zhicheng Yan, Albert Gordo, Jiashi Feng, Yannis Kalantidis,
        "Decoupling Representation and Classifier for Long-Tailed Recognition", 2020, arXiv:1910.09217.
    """
    found = _find("retrain_classifier", model, layer)
    if not found.layer.weights:
        raise ValueError(f"`retrain_classifier`: {described(found.layer)} has nothing to train. Name another layer.")
    _require_plain_kernel("retrain_classifier", found.layer)
    training = _Training("retrain_classifier", model, data, epochs, optimizer, loss, kwargs)
    _, path = _copy(found, lambda layer: _fresh(layer, seed), carry_nothing)
    history = training.run(path)

    def carry(old, new):
        carry_everything(old, new)  # for the flags
        for variable, trained in zip(new.variables, path[-1].variables, strict=True):
            variable.assign(ops.convert_to_numpy(trained))

    return _result(found, carry, history)


def learn_scale(model, data, epochs=10, optimizer=None, loss=None, layer=None, **kwargs):
    """Learns one factor for each class's logit on class-balanced data, all weights frozen (LWS).

    `z_j <- f_j · z_j`, with f from 1. The result is a copy of the model with f folded into the kernel and the bias of
    its classifier; everything else is as in `retrain_classifier`: what is copied, how the other layers run, the
    warning, the defaults. As there are only as many numbers to learn as classes, little data is enough.

    Args:
        model: A built Functional or Sequential model whose output are logits, from a `Dense` layer or a convolution.
        data: What `fit` takes, class-balanced, as in `retrain_classifier`.
        epochs: Number of epochs. Defaults to 10.
        optimizer: Defaults to that of `retrain_classifier`, without decay.
        loss: Defaults to softmax cross-entropy on the logits.
        layer: The classifier, as a layer or its name, where it is not the last layer. Defaults to `None`.
        **kwargs: Arguments of `fit` and `compile`, as in `retrain_classifier`.

    Returns:
        The new model, of the same class as `model`. It is not compiled; its `history` is that of the training.

    Raises:
        TypeError: As `retrain_classifier`.
        ValueError: As `retrain_classifier`, and if the classifier is not a plain layer, or has an activation.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    >>> x, y = np.random.normal(size=(60, 4)).astype("float32"), np.arange(60) % 3
    >>> scaled = kt.models.learn_scale(model, x, y=y, epochs=2, verbose=0)
    >>> f = scaled.get_weights()[0] / model.get_weights()[0]
    >>> bool(np.allclose(f, f[0], rtol=1e-4))  # one factor a class
    True

    Reference:
        Bingyi Kang, Saining Xie, Marcus Rohrbach, Zhicheng Yan, Albert Gordo, Jiashi Feng, Yannis Kalantidis,
        "Decoupling Representation and Classifier for Long-Tailed Recognition", 2020, arXiv:1910.09217.
    """
    found = _find("learn_scale", model, layer)
    _require_linear("learn_scale", found.layer)
    if found.layer.activation not in (None, keras.activations.linear):
        raise ValueError(
            f"`learn_scale`: {described(found.layer)} has an activation, so factors behind it cannot be folded into "
            "its weights. Make the activation a layer of its own."
        )
    training = _Training("learn_scale", model, data, epochs, optimizer, loss, kwargs)
    _, path = _copy(
        found,
        lambda layer: ScaledClasses(plain_copy(layer), name=layer.name),
        lambda old, new: carry_everything(old, new.layer),
    )
    history = training.run(path, frozen=[path[-1].layer])
    scale = as_float64(path[-1].scale)

    def carry(old, new):
        carry_everything(old, new)
        _set(new, as_float64(old.kernel) * scale, None if old.bias is None else as_float64(old.bias) * scale)

    return _result(found, carry, history)


@keras.saving.register_keras_serializable(package="keras_tricks")
class ScaledClasses(keras.layers.Wrapper):
    """A layer whose outputs are multiplied by a factor each, in float32 or wider; while these are learned."""

    def __init__(self, layer, **kwargs):
        kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, autocast=False, **kwargs)

    def build(self, input_shape=None):
        super().build(input_shape)
        # Steps of a usual size would be lost in a variable of half precision.
        dtype = "float64" if self.layer.variable_dtype == "float64" else "float32"
        self.scale = self.add_weight(
            name="scale", shape=self.layer.kernel.shape[-1:], initializer="ones", dtype=dtype, autocast=False
        )

    def call(self, inputs):
        outputs = self.layer(inputs)
        scale = ops.convert_to_tensor(self.scale)
        return ops.cast(ops.cast(outputs, scale.dtype) * scale, outputs.dtype)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)


@keras.saving.register_keras_serializable(package="keras_tricks")
class FrozenBackbone(keras.Model):
    """What is trained while a classifier is: a model that runs as in inference, and tallies the labels it is given."""

    drawn = None  # the tally, once `fit` is about to run

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        if self.drawn is not None and not getattr(_validating, "now", False):
            self.drawn.update_state(keras.tree.flatten(y)[0], keras.tree.flatten(y_pred)[0], sample_weight)
        return super().compute_metrics(x, y, y_pred, sample_weight)

    def test_step(self, *args):
        _validating.now = True
        try:
            return super().test_step(*args)
        finally:
            _validating.now = False

    def get_metrics_result(self):
        results = super().get_metrics_result()
        if self.drawn is not None:
            results.pop(self.drawn.name)
        return results


_validating = threading.local()  # each replica has a thread, in which its step is traced


class _Drawn(keras.metrics.Metric):
    """How often training has drawn each class, by sample weight; over all epochs, so `reset_state` keeps it."""

    def __init__(self, num_classes):
        super().__init__(name="keras_tricks_labels_drawn", dtype="float32")
        self.sums = self.add_variable((num_classes,), "zeros", name="sums")

    def update_state(self, y_true, y_pred, sample_weight=None):
        targets = Targets(ops.convert_to_tensor(y_true), y_pred)
        weights = ops.cast(weights_of(targets, sample_weight, mask_of(y_pred)), self.dtype)
        num_classes = self.sums.shape[0]
        if targets.labels is None:
            rows = ops.cast(targets.rows, self.dtype) * ops.expand_dims(weights, -1)
            sums = ops.sum(ops.reshape(rows, (-1, num_classes)), 0)
        else:
            weights = ops.reshape(ops.where(targets.valid, weights, 0.0), (-1,))
            sums = ops.segment_sum(weights, ops.reshape(targets.labels, (-1,)), num_classes)
        self.sums.assign_add(sums)

    def reset_state(self):
        pass

    def result(self):
        return ops.sum(self.sums)


class _Training:
    """One run of `fit` for a classifier; its arguments are checked when it is made, before anything is copied."""

    def __init__(self, name, model, data, epochs, optimizer, loss, kwargs):
        self.name, self.model, self.data, self.loss = name, model, data, loss
        self.epochs = check_count("epochs", epochs)
        self.compile_arguments, self.fit_arguments = _sorted(name, kwargs)
        if optimizer is not None:
            with scope_of(model):
                optimizer = keras.optimizers.get(optimizer)
            _check_optimizer(name, model, optimizer)
        self.optimizer = optimizer
        self.rate = None if optimizer else 0.2 * _batch_size(name, data, self.fit_arguments) / 512

    def run(self, path, frozen=()):
        """Trains the last of `path`, which the models before it lead to, and returns the history."""
        model, classifier = path[0], path[-1]
        _freeze_all_but(path)
        for layer in frozen:
            layer.trainable = False
        with scope_of(self.model):
            stage = FrozenBackbone(*_ends(model), name=model.name)
            stage.dtype_policy = self.model.dtype_policy
            stage.drawn = _Drawn(_outputs(model)[0].shape[-1])
            optimizer = self.optimizer or self._default_optimizer(classifier)
            computes_in_float16 = "float16" in (classifier.compute_dtype, _outputs(model)[0].dtype)
            if computes_in_float16 and not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
                optimizer = LossScaleOptimizer(optimizer)
            stage.compile(
                optimizer=optimizer,
                loss=self.loss or SparseFocal(gamma=0.0, name="crossentropy"),
                **{"auto_scale_loss": False, **self.compile_arguments},
            )
        if is_jitted(self.model):
            jit(stage)
        history = stage.fit(self.data, epochs=self.epochs, **self._fit_arguments())
        _warn_of_imbalance(self.name, sum(part.astype("float64") for part in copies(stage, stage.drawn.sums)))
        return history

    def _default_optimizer(self, classifier):
        # Decay in the gradient, which the momentum makes 1 / (1 - 0.9) times as large, as decay beside it.
        optimizer = keras.optimizers.SGD(self.rate, momentum=0.9, weight_decay=5e-4 / (1 - 0.9))
        optimizer.exclude_from_weight_decay(var_list=[v for v in classifier.trainable_weights if len(v.shape) < 2])
        return optimizer

    def _fit_arguments(self):
        if self.rate is None:
            return self.fit_arguments
        rate, epochs = self.rate, self.epochs
        cosine = keras.callbacks.LearningRateScheduler(
            lambda epoch, _: rate * (1 + math.cos(math.pi * epoch / epochs)) / 2
        )
        callbacks = self.fit_arguments.get("callbacks") or []
        if isinstance(callbacks, keras.callbacks.CallbackList):
            callbacks = callbacks.callbacks
        return {**self.fit_arguments, "callbacks": [cosine, *keras.tree.flatten(callbacks)]}


def _check_optimizer(name, model, optimizer):
    if optimizer.built:
        raise ValueError(
            f"`{name}`: this {type(optimizer).__name__} has state for the weights of another model. Give a new one."
        )
    if keras.backend.backend() != "tensorflow":
        return
    if not model.distribute_strategy.extended.variable_created_in_scope(optimizer.iterations.value):
        raise ValueError(
            f"`{name}`: model {model.name!r} was made under a {type(model.distribute_strategy).__name__}, and this "
            f"{type(optimizer).__name__} was not. Make it in the same `with strategy.scope():`."
        )


def _sorted(name, kwargs):
    """The arguments of `compile`, and those of `fit`."""
    known = {
        method: {*inspect.signature(getattr(keras.Model, method)).parameters} - {"self", "x", "epochs"}
        for method in ("compile", "fit")
    }
    for key in kwargs:
        if key not in known["compile"] | known["fit"]:
            raise TypeError(
                f"`{name}`: neither `fit` nor `compile` has an argument {key!r}. They take, besides those of `{name}` "
                f"itself: {', '.join(sorted((known['compile'] | known['fit']) - {'optimizer', 'loss'}))}."
            )
    return tuple({k: v for k, v in kwargs.items() if k in known[method]} for method in ("compile", "fit"))


def _batch_size(name, data, fit_arguments):
    """The number of examples in a batch, which the default learning rate is in proportion to."""
    if isinstance(data, keras.utils.PyDataset):
        return len(keras.tree.flatten(data[0])[0])
    if hasattr(data, "element_spec") and hasattr(data, "take"):
        size = keras.tree.flatten(data.element_spec)[0].shape[0]
        # Read only where it is not known. Keras looks at the first batch too, to build what is not built.
        return size or len(keras.tree.flatten(next(iter(data.take(1))))[0])
    leaves = keras.tree.flatten(data)
    if leaves and all(len(getattr(leaf, "shape", ())) > 0 for leaf in leaves):
        return min(fit_arguments.get("batch_size") or 32, leaves[0].shape[0])
    if isinstance(getattr(data, "batch_size", None), int):  # PyTorch's DataLoader
        return data.batch_size
    raise ValueError(
        f"`{name}`: the default learning rate is in proportion to the batch size, which a {type(data).__name__} does "
        "not show before it is read. Give `optimizer=`."
    )


def _warn_of_imbalance(name, drawn):
    """Warns if the labels were not class-balanced, and chance does not explain it."""
    among = np.flatnonzero(drawn > 0)
    if len(among) < 2:
        return
    most, least = among[np.argmax(drawn[among])], among[np.argmin(drawn[among])]
    if drawn[most] - 2 * drawn[least] > 4 * math.sqrt(drawn[most] + 4 * drawn[least]):
        warnings.warn(
            f"`{name}` is meant for class-balanced data, and drew class {most} {drawn[most] / drawn[least]:.3g} times "
            f"as often as class {least} ({drawn[most]:.0f} to {drawn[least]:.0f}). Give "
            "dataset.apply(keras_tricks.data.class_balanced(class_counts)) before `batch`, or class weights "
            "`class_weight=`.",
            stacklevel=4,
        )


# The classifier, and copies of the model around it


_Found = collections.namedtuple("_Found", "path layer")  # the model and those inside it that lead to the classifier


def _find(name, model, layer):
    """The classifier, which must be in one place only."""
    require_graph(name, model, _INSTEAD)
    if not builds_as_keras_does(model):
        raise ValueError(
            f"`{name}`: {type(model).__name__} {model.name!r} has an `__init__` or `call` of its own, which a copy "
            "would lose. Give its graph, as a plain model: keras.Model(model.input, model.output)."
        )
    last = _check_output(name, model)
    if layer is None:
        if not isinstance(last, _CLASSIFIERS):
            raise ValueError(
                f"`{name}`: the output of model {model.name!r} comes from {described(last)}, and a classifier is a "
                "Dense layer, a NormalizedDense or a convolution. If it is further inside, name it: `layer=`."
            )
        layer = last
    places = [p for p in walk(model) if layer is p.layer or layer in (p.path, p.layer.name)]
    layers = {id(p.layer): p.layer for p in places}
    if len(layers) != 1:
        paths = ", ".join(dict.fromkeys(p.path for p in (places or walk(model)) if p.layer.weights))
        raise ValueError(
            f"`{name}`: model {model.name!r} has {len(layers) or 'no'} layers {getattr(layer, 'name', layer)!r}. Give "
            f"the layer, or one of these paths: {paths}."
        )
    place = places[0]
    path = (model, *place.holders)
    wrapper = next(
        (holder for holder in place.holders if not (isinstance(holder, keras.Model) and opens(holder))), None
    )
    if isinstance(place.layer, keras.Model) or wrapper is not None:
        where = "is a model" if wrapper is None else f"is inside {described(wrapper)}"
        raise ValueError(
            f"`{name}`: {described(place.layer)} {where}, and the classifier must be a layer of the model, or of "
            "models inside it."
        )
    calls = [_calls_of(inner, holder) for holder, inner in zip(path, [*path[1:], place.layer], strict=True)]
    if len(places) > 1 or any(times > 1 for times in calls):
        raise ValueError(
            f"`{name}`: {described(place.layer)} is called more than once in the model, so it is not only its "
            "classifier. Use a layer of its own for the output."
        )
    return _Found(path, place.layer)


def _calls_of(layer, model):
    return sum(call.layer is layer for call in trace(model)[1])


def _check_output(name, model):
    """The layer that the output comes from, behind linear activations; an error if it is no logits."""
    outputs = _outputs(model)
    if len(outputs) != 1:
        raise ValueError(
            f"`{name}`: model {model.name!r} has {len(outputs)} outputs. Give the part with the classifier's, "
            "keras.Model(model.input, model.outputs[i]), which shares the layers."
        )
    if len(outputs[0].shape) < 2 or (outputs[0].shape[-1] or 0) < 2:
        raise ValueError(
            f"`{name}`: expected logits of shape (batch, ..., classes) for at least 2 classes. Model {model.name!r} "
            f"has outputs of shape {tuple(outputs[0].shape)}; for 2 classes end it with Dense(2)."
        )
    last = _last(model)
    if last is None:
        raise ValueError(f"`{name}`: the output of model {model.name!r} is one of its inputs, not a classifier's.")
    if _gives_probabilities(last):
        raise ValueError(
            f"`{name}`: {described(last)} makes probabilities, and logits are needed. Build the model without that "
            "activation, and load the weights; softmax of the result gives probabilities."
        )
    if isinstance(last, keras.layers.Rescaling) and last.name == ADJUSTMENT:
        raise ValueError(
            f"`{name}`: the logits of model {model.name!r} are adjusted by `adjust_logits` already. Give the model "
            "from before; it has the same weights."
        )
    return last


def _last(model):
    """The operation that makes the output, behind what only casts or passes on; `None` if there is none."""
    _, calls, outputs = trace(model)
    producers = {edge: call for call in calls for edge in edges_of(call.outputs)}
    call = producers.get(edges_of(outputs)[0])
    while call is not None:
        layer = call.layer
        if isinstance(layer, keras.Model) and opens(layer) and len(_outputs(layer)) == 1:
            inner = _last(layer)
            if inner is not None:
                return inner
        elif type(layer) is not keras.layers.Identity and not (
            type(layer) is keras.layers.Activation and layer.activation is keras.activations.linear
        ):
            return layer
        call = producers.get(edges_of([call.args, call.kwargs])[0])
    return None


def _gives_probabilities(operation):
    activations = (keras.activations.softmax, keras.activations.sigmoid, keras.activations.hard_sigmoid)
    return (
        isinstance(operation, keras.layers.Softmax)
        or getattr(operation, "activation", None) in activations
        or type(operation).__name__ in ("Softmax", "Sigmoid", "HardSigmoid")  # of keras.ops
    )


def _outputs(model):
    return keras.tree.flatten(model.outputs)


def _ends(model):
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


_LINEAR = (keras.layers.Dense, keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_CLASSIFIERS = (*_LINEAR, NormalizedDense)


def _require_linear(name, layer):
    """Refuses a layer that is not `x·kernel + bias` with one column a class."""
    if type(layer) not in _LINEAR or getattr(layer, "data_format", None) == "channels_first":
        raise ValueError(
            f"`{name}` works on the kernel and bias of a Dense layer, or of a convolution with the classes on its last "
            f"axis. Received: {described(layer)}. NormalizedDense has columns of equal length already; for layers "
            "that standardise their kernel, keras_tricks.fuse(model) makes plain ones first."
        )
    if not layer.built:
        raise ValueError(f"`{name}`: {described(layer)} is not built, so it has no kernel yet. Train or load it.")
    _require_plain_kernel(name, layer)


def _require_plain_kernel(name, layer):
    reason = has_other_kernel(layer)
    if reason:
        raise ValueError(
            f"`{name}`: {described(layer)} cannot be changed, as {reason}. Give a model without, as it was trained: a "
            "LoRA is merged by saving and loading the model."
        )


def _normalize(layer, tau):
    kernel = as_float64(layer.kernel)
    norms = np.sqrt(np.square(kernel).sum(axis=tuple(range(kernel.ndim - 1))))
    _set(layer, kernel / np.maximum(norms, SMALLEST_NORM) ** tau, None if layer.bias is None else 0 * layer.bias)


def _set(layer, kernel, bias):
    layer.kernel.assign(kernel)
    if bias is not None:
        layer.bias.assign(bias)


def _copy(found, make, carry):
    """A copy of the model in which `make` makes the classifier; and the copies of the models that lead to it, and it.

    All other layers have the weights, seeds and flags of the originals; what the classifier gets is up to `carry`.
    """
    model, classifier = found.path[0], found.layer
    rule = Rule(lambda layer: make(layer) if layer is classifier else None, carry)
    with scope_of(model):
        conversion = Conversion(model, {type(classifier): rule}, None)
        copy, _ = conversion.result()
    return copy, [conversion.copies[id(layer)] for layer in (*found.path, classifier)]


def _result(found, carry, history):
    model, _ = _copy(found, plain_copy, carry)
    model.history = history
    return model


def _fresh(layer, seed):
    """An unbuilt copy of a layer that will draw other weights than the layer did, even if that one had a fixed seed."""
    config = unbuilt(layer.get_config())
    for key, value in config.items():
        if key.endswith("_initializer") and isinstance(value, dict) and "seed" in value.get("config", {}):
            config[key] = {**value, "config": {**value["config"], "seed": seed}}
    return type(layer).from_config(config)


def _freeze_all_but(path):
    """Leaves only the last of `path` trainable: a model, those inside of it that lead there, and the layer."""
    # One by one: Keras passes a flag on to what is inside, but on TensorFlow only where it changes.
    for layer in path:
        layer.trainable = True
    for place in walk(path[0]):
        if not any(layer is place.layer for layer in path) and path[-1] not in place.holders:
            place.layer.trainable = False
