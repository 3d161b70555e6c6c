"""Statistics of batch normalisation, recomputed over data where those of training do not fit the weights or the data.

    for each batch, its n_b, μ_b and M_b = Σ (x - μ_b)²:
    d = μ_b - μ      μ <- μ + d · n_b/(n + n_b)      M <- M + M_b + d² · n · n_b/(n + n_b)      n <- n + n_b
    moving_mean = μ      moving_variance = M/n                                                   in float64

Chan, Golub and LeVeque, 1983. This is E[x²] - E[x]² over all of the data, without its cancellation. `update_bn` of
PyTorch takes the mean of the batches' variances instead, which misses the variance between batches.
"""

import itertools

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_count
from keras_tricks._keras.patches import replace
from keras_tricks._keras.snapshot import remember_variables


def recompute_statistics(model, data, steps=None):
    """Gives batch normalisation the means and variances of what reaches it from `data`, in place of its moving ones.

    For weights that the statistics were not taken with: averages of weights, or weights that were set, converted or
    fused by hand. Also for data that are distributed differently from those of training. The batches run through the
    model in training mode, so each normalisation layer passes on what it does there. All values count alike, whatever
    the sizes of the batches; masked steps do not count. Nothing else in the model changes: weights, seeds, optimizer.

    It is one eager pass on one device. The statistics are the same on each replica of the model's strategy. Layers with
    `trainable=False` keep theirs, as in training.

    Args:
        model: A built `keras.Model` with `BatchNormalization` or `ExtendedBatchNormalization`, however deep inside.
        data: Batches as for `fit`: a dataset, a `PyDataset`, or any iterable. Targets are ignored. Batches of the size
            used in training give what training would; shuffle data that are sorted.
        steps: Number of batches to take, or `None` for all. Defaults to `None`.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If `data` gives no batches or never ends, or if no layer of the model has statistics to recompute.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(1)])
    >>> kt.models.recompute_statistics(model, [np.full((8, 4), 3.0), np.full((8, 4), 5.0)])
    >>> model.layers[0].moving_mean.numpy().tolist(), model.layers[0].moving_variance.numpy().tolist()
    ([4.0, 4.0, 4.0, 4.0], [1.0, 1.0, 1.0, 1.0])

    Reference:
        Tony F. Chan, Gene H. Golub, Randall J. LeVeque, "Algorithms for Computing the Sample Variance: Analysis and
        Recommendations", The American Statistician 37, 1983.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`recompute_statistics` expects a keras.Model. Received: {model!r}")
    if not model.built:
        raise ValueError(f"`recompute_statistics`: model {model.name!r} is not built. Call it on a batch first.")
    if steps is not None:
        steps = check_count("steps", steps)
    check_batches("data", data, is_cut=steps is not None, twice=False)
    layers = normalization_layers(model)
    for layer in layers:
        if getattr(layer, "renorm", False):
            raise ValueError(
                f"`recompute_statistics`: layer {layer.name!r} has renorm=True, and keeps more than a mean and a "
                "variance. Use `renorm=False`."
            )
    if not any(layer.trainable for layer in layers):
        frozen = f" {layers[0].name!r} and others are frozen: set `trainable=True` first." if layers else ""
        raise ValueError(
            f"`recompute_statistics`: no layer of model {model.name!r} has statistics of batch normalisation to take "
            f"anew.{frozen}"
        )
    for position, value in statistics(model, layers, data, "data", steps).items():
        model.weights[position].assign(value)


def normalization_layers(model):
    """All batch normalisation in a model that keeps statistics of its own, however deep inside other layers."""
    found, seen = [], set()

    def visit(thing):
        if id(thing) in seen:
            return
        seen.add(id(thing))
        if isinstance(thing, keras.Layer):
            if isinstance(thing, keras.layers.BatchNormalization):
                found.append(thing)
            inside = [*getattr(thing, "layers", []), *vars(thing).values()]
        elif isinstance(thing, dict):
            inside = thing.values()
        elif isinstance(thing, (list, tuple)):
            inside = thing
        else:
            return
        for part in inside:
            visit(part)

    visit(model)
    return found


class _Moments:
    """Count, mean and sum of squared deviations for each channel, merged batch by batch in float64."""

    def __init__(self):
        self.count, self.mean, self.deviations = 0.0, 0.0, 0.0

    def add(self, x, mask, axis):
        x = np.moveaxis(x, axis, -1)
        if mask is not None:
            # The mask lacks the last axis of the inputs, which the layer then has as its channels.
            x = x[np.broadcast_to(np.asarray(mask, bool), x.shape[:-1])]
        x = x.reshape(-1, x.shape[-1])
        if not len(x):
            return
        count, mean = len(x), x.mean(axis=0, dtype="float64")
        # Around a constant c near the mean, which keeps the tensor in float32: Σ (x - μ)² = Σ (x - c)² - n (μ - c)².
        constant = mean.astype(x.dtype)
        deviations = np.square(x - constant).sum(axis=0, dtype="float64") - count * np.square(mean - constant)
        total = self.count + count
        apart = mean - self.mean
        self.mean = self.mean + apart * count / total
        self.deviations = self.deviations + deviations + np.square(apart) * self.count * count / total
        self.count = total

    @property
    def variance(self):
        return self.deviations / self.count


def statistics(model, layers, data, argument, steps=None):
    """Means and variances of what reaches the layers in training mode, by the position in `model.weights`."""
    layers = [layer for layer in layers if layer.trainable]  # frozen layers keep theirs, as in training
    moments = {id(layer): _Moments() for layer in layers}
    put_back = remember_variables(model, model.variables, on_host=False)  # seeds and statistics move in the passes
    taking_out = []
    try:
        for layer in layers:
            taking_out.append(replace(layer, "call", _watching(layer, moments[id(layer)])))
        batches = 0
        for batch in itertools.islice(_batches(data), steps):
            x, _, _ = keras.utils.unpack_x_y_sample_weight(batch)
            model(x, training=True)  # eagerly: it runs as many layers as there are, and no variable is left behind
            batches += 1
    finally:
        for take_out in reversed(taking_out):
            take_out()
        put_back()
    if not batches:
        raise ValueError(
            f"`{argument}` gave no batches. If it is a generator that was read before, pass something that can be gone "
            "through again, such as a tf.data.Dataset."
        )
    positions = {id(w): i for i, w in enumerate(model.weights)}
    values = {}
    for layer in layers:
        seen = moments[id(layer)]
        if not seen.count:
            continue  # a branch that training does not use
        scalar = layer.moving_variance.shape == ()
        values[positions[id(layer.moving_mean)]] = seen.mean
        values[positions[id(layer.moving_variance)]] = seen.variance.mean() if scalar else seen.variance
    return values


def _watching(layer, moments):
    def call(plain, inputs, training=None, mask=None):
        if training:
            moments.add(ops.convert_to_numpy(ops.cast(inputs, "float32")), mask, layer.axis)
        return plain(inputs, training=training, mask=mask)

    return call


def _batches(data):
    if isinstance(data, keras.utils.PyDataset):
        return (data[i] for i in range(len(data)))
    return data


def check_batches(argument, data, is_cut=False, twice=True):
    """Raises ValueError for what gives no batches, can be read only once, or goes on for ever, unless it is cut."""
    if isinstance(data, keras.utils.PyDataset):
        return
    if (
        isinstance(data, (bool, np.ndarray, dict, str))
        or ops.is_tensor(data)
        or not hasattr(data, "__iter__")
        or (twice and hasattr(data, "__next__"))  # a generator can be read once only
    ):
        raise ValueError(
            f"`{argument}` must give batches, as a tf.data.Dataset does; for arrays, use "
            "tf.data.Dataset.from_tensor_slices(x).batch(n), or a list of batches. "
            f"Received: {type(data).__name__}"
        )
    cardinality = getattr(data, "cardinality", None)
    if not is_cut and cardinality is not None and int(cardinality()) == -1:
        raise ValueError(f"`{argument}` never ends. Cut it: dataset.take(steps).")
