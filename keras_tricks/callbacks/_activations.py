"""Layers' outputs counted where they arise: `call` of the layers is wrapped while somebody watches.

A layer runs for other reasons than the training step's forward pass: validation, and `Recompute`, which runs it again
in the backward pass. So an output counts only if `train_step` is running and the layer was called by the layer that
holds it, up to the model itself; what runs again in the backward pass is called by nobody.
"""

import functools
import math
import threading

import keras

from keras_tricks.callbacks._patches import replace
from keras_tricks.callbacks._tallies import LocalTally, flat, traced_tally

# Of one example's output at most so many values are binned, evenly spaced. Whole outputs of convolutions are hundreds
# of times as many values as the weights.
SAMPLE = 256
SATURATED = 0.97


class Activations:
    """Counts the outputs of `layers`, pairs of a path and a layer, in the training step of `model`."""

    def __init__(self, model, layers, counts_now):
        self.model = model
        self.counts_now = counts_now
        self.strategy = model.distribute_strategy
        self.paths = {id(layer): path for path, layer in layers}
        self.layers = layers
        self.output = list(watchable(model).values())[-1]
        self.parents = {}
        for layer, _, parent in walk(model):
            self.parents.setdefault(id(layer), {})[id(parent)] = parent
        for layer, parents in self.parents.items():
            # A layer that was made as an attribute of the model, then wrapped, runs again without its wrapper.
            wrappers = {key for key, parent in parents.items() if isinstance(parent, keras.layers.Wrapper)}
            self.parents[layer] = wrappers or set(parents)
        with self.strategy.scope():
            self.tallies = {id(layer): LocalTally(self.strategy, channels_of(layer)) for _, layer in layers}
        self.running = threading.local()  # each replica is traced by a thread of its own
        # A training step of one's own may call parts of the model instead of the model.
        self.free = type(model).train_step is not keras.Model.train_step
        self.taking_out = []
        # Inside of `jit` a step is compiled without `model.jit_compile`, and the way that is fast elsewhere fails.
        self.tally = traced_tally(model.jit_compile or "call" in vars(model))

    def __enter__(self):
        self.taking_out = [replace(self.model, "train_step", self._train_step)]
        for layer in {id(layer): layer for layer, _, _ in walk(self.model)}.values():
            self.taking_out.append(replace(layer, "call", functools.partial(self._call, layer)))

    def __exit__(self, *error):
        while self.taking_out:
            self.taking_out.pop()()

    def _train_step(self, plain, *args, **kwargs):
        self.running.layers = [None]
        try:
            return plain(*args, **kwargs)
        finally:
            self.running.layers = []

    def _call(self, layer, plain, *args, **kwargs):
        running = getattr(self.running, "layers", [])
        parents = self.parents[id(layer)]
        held = running and (
            not parents.isdisjoint(running) or layer is self.model or (self.free and id(self.model) in parents)
        )
        if not held or any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten((args, kwargs))):
            return plain(*args, **kwargs)
        running.append(id(layer))
        try:
            outputs = plain(*args, **kwargs)
        finally:
            running.pop()
        if id(layer) in self.paths:
            for x in keras.tree.flatten(outputs):
                self._count(layer, x)
        return outputs

    def _count(self, layer, x):
        import tensorflow as tf

        if not isinstance(x, tf.Tensor) or not x.dtype.is_floating:
            return
        x = tf.stop_gradient(x)
        mine = self.tallies[id(layer)]
        axis = _channel_axis(layer, x.shape)
        channels = mine.channels if axis is not None and x.shape[axis] == mine.channels else 0

        def add():
            values = _sample(x)
            counts, moments = self.tally(flat(values))
            alive = tf.zeros([mine.channels], "int32")
            if channels:
                others = [a for a in range(len(x.shape)) if a != axis % len(x.shape)]
                alive = tf.cast(tf.reduce_any(tf.not_equal(x, 0), axis=others), "int32")
            mine.add(counts, moments, _saturated(layer, x, values), alive)
            return tf.constant(0)

        tf.cond(self.counts_now(), add, lambda: tf.constant(0))


def walk(model):
    """Every (layer, path, parent) inside of a model, from the input to the output; a shared layer several times."""
    yield model, "", None
    yield from _inside(model, set())


def _inside(holder, above):
    layers = holder.layers if isinstance(holder, keras.Model) else [holder.layer] if _holds_one(holder) else []
    for layer in layers:
        if isinstance(layer, keras.Layer) and id(layer) not in above:
            yield layer, layer.path or layer.name, holder
            yield from _inside(layer, above | {id(layer)})


def _holds_one(layer):
    # These call their layer within a loop, from where nothing can be counted.
    loops = (keras.layers.TimeDistributed, keras.layers.Bidirectional)
    return isinstance(layer, keras.layers.Wrapper) and not isinstance(layer, loops)


def watchable(model):
    """{path: layer} of the layers with an output of their own: no models, no inputs."""
    layers = {}
    for layer, path, _ in walk(model):
        if not isinstance(layer, keras.Model | keras.layers.InputLayer):
            layers.setdefault(id(layer), (path, layer))
    paths = unique([path for path, _ in layers.values()])
    return {path: layer for path, (_, layer) in zip(paths, layers.values(), strict=True)}


def unique(paths):
    """The paths with a number behind those that have been there before, as two towers with equal layers have them."""
    found = []
    for path in paths:
        other, number = path, 1
        while other in found:
            number += 1
            other = f"{path}_{number}"
        found.append(other)
    return found


def _name_of(activation):
    # `Activation` and `ScaledActivation` have the function or layer that they apply as an attribute too.
    if isinstance(activation, keras.layers.Activation):
        return _name_of(activation.activation)
    return getattr(activation, "__name__", "")


def activation_of(layer):
    """The name of the function that a layer's output comes from, or `""`."""
    if isinstance(layer, keras.layers.ReLU):
        return "leaky_relu" if layer.negative_slope else "relu"
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    if isinstance(layer, keras.layers.RNN):  # its output is a product of several
        return ""
    return _name_of(getattr(layer, "activation", None))


def is_rectifier(layer):
    return activation_of(layer) in ("relu", "relu6", "squared_relu")


def saturates(layer):
    return activation_of(layer) in ("sigmoid", "hard_sigmoid", "tanh", "hard_tanh", "softmax")


def _channel_axis(layer, shape):
    if len(shape) < 2:
        return None
    of_images = len(shape) > 2 and not isinstance(layer, keras.layers.Dense | keras.layers.EinsumDense)
    data_format = getattr(layer, "data_format", None) or keras.config.image_data_format()
    return 1 if of_images and data_format == "channels_first" else -1


def channels_of(layer):
    """The number of a rectifier's channels; 0 for other layers, and where it cannot be known before it runs."""
    if not is_rectifier(layer):
        return 0
    shape = (layer.get_build_config() or {}).get("input_shape")
    if not shape or not isinstance(shape[0], int | None):
        return 0
    shape = layer.compute_output_shape(tuple(shape))
    axis = _channel_axis(layer, shape)
    return 0 if axis is None else shape[axis] or 0


def _sample(x):
    """At most SAMPLE values of each example, the same ones in every batch, from all channels alike."""
    import tensorflow as tf

    if len(x.shape) < 2 or None in x.shape[1:]:
        return x
    size, channels = math.prod(x.shape[1:]), x.shape[-1]
    stride = -(-size // SAMPLE)
    while stride > 1 and math.gcd(stride, channels) > 1:
        stride += 1
    return tf.reshape(x, (-1, size))[:, ::stride]


def _saturated(layer, x, values):
    """[saturated, all] units; of a softmax, the examples for which one class has all."""
    import tensorflow as tf

    name = activation_of(layer)
    if not saturates(layer):
        return tf.zeros([2], "float32")
    if name == "softmax":
        axis = layer.axis if isinstance(layer, keras.layers.Softmax) else -1
        units = tf.reduce_max(tf.cast(x, "float32"), axis=axis) > SATURATED
    else:
        values = tf.cast(values, "float32")
        units = tf.abs(values) > SATURATED if "tanh" in name else tf.abs(2 * values - 1) > 2 * SATURATED - 1
    units = tf.cast(units, "float32")
    return tf.stack([tf.reduce_sum(units), tf.cast(tf.size(units), "float32")])
