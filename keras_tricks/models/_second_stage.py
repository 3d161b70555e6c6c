"""The second stage of training: a classifier on class-balanced data, on features that stay as they are.

Features learned from long-tailed data without re-balancing serve all classes well; it is the last layer that favours
the frequent ones. Kang et al., 2020, arXiv:1910.09217.
"""

import inspect
import math
import warnings

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_count
from keras_tricks._keras.masks import mask_of
from keras_tricks._keras.replicas import scope_of
from keras_tricks._keras.snapshot import copies
from keras_tricks._labels.targets import Targets, weights_of
from keras_tricks.losses import SparseFocal
from keras_tricks.models._classifier import copy_around, ends_of, outputs_of
from keras_tricks.models._copy import plain_copy
from keras_tricks.models._graph import walk
from keras_tricks.models.jit import is_jitted, jit
from keras_tricks.optimizers.loss_scale import LossScaleOptimizer


@keras.saving.register_keras_serializable(package="keras_tricks")
class FrozenBackbone(keras.Model):
    """The model that `fit` sees when a classifier is trained: it runs as in inference, and tallies its labels."""

    drawn = None  # the tally, once `fit` is about to run

    def call(self, inputs, training=None, mask=None):
        return super().call(inputs, training=False, mask=mask)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        if self.drawn is not None and training:
            self.drawn.update_state(keras.tree.flatten(y)[0], keras.tree.flatten(y_pred)[0], sample_weight)
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def get_metrics_result(self):
        results = super().get_metrics_result()
        if self.drawn is not None:
            results.pop(self.drawn.name)
        return results


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
            rows = ops.cast(targets.probabilities, self.dtype) * ops.expand_dims(weights, -1)
            sums = ops.sum(ops.reshape(rows, (-1, num_classes)), 0)
        else:
            weights = ops.reshape(ops.where(targets.valid, weights, 0.0), (-1,))
            sums = ops.segment_sum(weights, ops.reshape(targets.labels, (-1,)), num_classes)
        self.sums.assign_add(sums)

    def reset_state(self):
        pass

    def result(self):
        return ops.sum(self.sums)


class Training:
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
            stage = FrozenBackbone(*ends_of(model), name=model.name)
            stage.dtype_policy = self.model.dtype_policy
            stage.drawn = _Drawn(outputs_of(model)[0].shape[-1])
            optimizer = self.optimizer or self._default_optimizer(classifier)
            computes_in_float16 = "float16" in (classifier.compute_dtype, outputs_of(model)[0].dtype)
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
        # The authors' decay is in the gradient, where momentum amplifies it 1 / (1 - 0.9) times; Keras' is decoupled.
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
    """The number of examples in a batch, to which the default learning rate is proportional."""
    if isinstance(data, keras.utils.PyDataset):
        return len(keras.tree.flatten(data[0])[0])
    if hasattr(data, "element_spec") and hasattr(data, "take"):
        size = keras.tree.flatten(data.element_spec)[0].shape[0]
        # A batch is read only if its size is not known. Keras looks at the first batch too, to build what is not built.
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
    """Warns if the labels were not class-balanced by more than chance explains."""
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


def _freeze_all_but(path):
    """Leaves only the last of `path` trainable: a model, those inside it that lead there, and the layer."""
    # One by one: Keras passes a flag on to what is inside, but on TensorFlow only where it changes.
    for layer in path:
        layer.trainable = True
    for place in walk(path[0]):
        if not any(layer is place.layer for layer in path) and path[-1] not in place.holders:
            place.layer.trainable = False


def result_of(found, carry, history):
    model, _ = copy_around(found, plain_copy, carry)
    model.history = history
    return model
