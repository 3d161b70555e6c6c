"""Counts layers' outputs where they arise: the layers' `call` is wrapped while they are watched.

A layer also runs outside the training step's forward pass: in validation, and under `Recompute` once more in the
backward pass. So an output counts only if `train_step` is running and the layer was called by the layer that holds it,
and so on up to the model itself; what runs again in the backward pass has no such caller.
"""

import contextlib
import functools
import math
import threading

import keras
import numpy as np

from keras_tricks._keras.patches import is_replaced, replace
from keras_tricks.callbacks._tallies import LocalTallies, count, count_for_xla

# At most this many evenly spaced values of one example's output are binned. The whole output of a convolution has
# hundreds of times as many values as its weights.
SAMPLE = 256
SATURATED = 0.97


class Activations:
    """Counts the outputs of `layers`, pairs of a path and a layer, in the training step of `model`."""

    def __init__(self, model, layers, counts_now):
        self.model = model
        self.counts_now = counts_now
        self.positions = {id(layer): position for position, (_, layer) in enumerate(layers)}
        self.layers = layers
        self.output = list(watchable(model).values())[-1]
        self.parents = {}
        for layer, _, parent in walk(model):
            self.parents.setdefault(id(layer), {})[id(parent)] = parent
        for layer, parents in self.parents.items():
            # A layer that was made as an attribute of the model, then wrapped, runs again without its wrapper.
            wrappers = {key for key, parent in parents.items() if isinstance(parent, keras.layers.Wrapper)}
            self.parents[layer] = wrappers or set(parents)
        # Under `jit` a step is compiled although `model.jit_compile` is off, and the counting that is fast elsewhere
        # fails.
        counting = count_for_xla if model.jit_compile or is_replaced(model, "call") else count
        self.tallies = LocalTallies(model.distribute_strategy, [channels_of(layer) for _, layer in layers], counting)
        self.running = threading.local()  # each replica is traced by a thread of its own
        # A custom `train_step` may call parts of the model instead of the model.
        self.free = type(model).train_step is not keras.Model.train_step
        self.taking_out = []

    def __enter__(self):
        self.taking_out = [replace(self.model, "train_step", self._train_step)]
        for layer in {id(layer): layer for layer, _, _ in walk(self.model)}.values():
            name = "quantized_call" if layer.quantization_mode else "call"
            self.taking_out.append(replace(layer, name, functools.partial(self._call, layer)))

    def __exit__(self, *error):
        while self.taking_out:
            self.taking_out.pop()()

    def _train_step(self, plain, *args, **kwargs):
        self.running.layers, self.running.graphs = [None], []
        try:
            with self._outputs_of_this_graph():
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
            with self._outputs_of_this_graph() as outputs:
                result = plain(*args, **kwargs)
                if id(layer) in self.positions:
                    for x in keras.tree.flatten(result):
                        outputs += self._observed(layer, x)
        finally:
            running.pop()
        return result

    @contextlib.contextmanager
    def _outputs_of_this_graph(self):
        """A list of outputs, all counted at once when the first call in this graph ends.

        `jit`, `Recompute` and conditions trace graphs of their own, whose tensors cannot be read outside.
        """
        import tensorflow as tf

        graphs, graph = self.running.graphs, tf.compat.v1.get_default_graph()
        if graphs and graphs[-1][0] is graph:
            yield graphs[-1][1]
            return
        counts_now, outputs = self.counts_now(), []  # asked now: at the end of the step the optimizer has moved on
        graphs.append((graph, outputs))
        try:
            yield outputs
            if outputs:
                positions, values, saturated, alive = zip(*outputs, strict=True)
                self.tallies.add_if(counts_now, values, positions, saturated, alive)
        finally:
            graphs.pop()

    def _observed(self, layer, x):
        """What is counted of an output: the layer's position, a sample, saturated units, and channels alive."""
        import tensorflow as tf

        if not isinstance(x, tf.Tensor) or not x.dtype.is_floating:
            return []
        x = tf.stop_gradient(x)
        position = self.positions[id(layer)]
        channels, axis = self.tallies.channels[position], _channel_axis(layer, x.shape)
        alive = None
        if channels and axis is not None and x.shape[axis] == channels:
            others = [a for a in range(len(x.shape)) if a != axis % len(x.shape)]
            alive = tf.reduce_any(tf.not_equal(x, 0), axis=others)
        values = _sample(x)
        return [(position, values, _saturated(layer, x, values) if saturates(layer) else None, alive)]


def walk(model):
    """Every (layer, path, parent) inside a model, from the input to the output; a shared layer several times."""
    yield model, "", None
    yield from _inside(model, set())


def _inside(holder, above):
    layers = holder.layers if isinstance(holder, keras.Model) else [holder.layer] if _holds_one(holder) else []
    for layer in layers:
        if isinstance(layer, keras.Layer) and id(layer) not in above:
            yield layer, layer.path or layer.name, holder
            yield from _inside(layer, above | {id(layer)})


def _holds_one(layer):
    # These call their layer in a loop, where nothing can be counted.
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
    """The paths, with a number after those that occur again, as in two towers with equal layers."""
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
    x = tf.reshape(x, (-1, size))
    return x if stride == 1 else tf.gather(x, np.arange(0, size, stride), axis=1)


def _saturated(layer, x, values):
    """[saturated, all] units; of a softmax, the examples for which one class has all."""
    import tensorflow as tf

    name = activation_of(layer)
    if name == "softmax":
        axis = layer.axis if isinstance(layer, keras.layers.Softmax) else -1
        units = tf.reduce_max(tf.cast(x, "float32"), axis=axis) > SATURATED
    else:
        values = tf.cast(values, "float32")
        units = tf.abs(values) > SATURATED if "tanh" in name else tf.abs(2 * values - 1) > 2 * SATURATED - 1
    units = tf.cast(units, "float32")
    return tf.stack([tf.reduce_sum(units), tf.cast(tf.size(units), "float32")])
