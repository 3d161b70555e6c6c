"""Numerical against automatic gradients, layer by layer: for everybody who writes a layer.

    f(θ) = Σ c · layer(θ)   for one fixed random c       numerical: (f(θ_i + h) - f(θ_i - h)) / 2h       error: O(h²)

Each layer is checked by itself, on the inputs that reach it when the model runs, so a wrong gradient is found where it
is made and not in all layers before it. Then the whole model is, along one random direction of all its weights. All of
it runs in float64, which makes the numerical derivative right to about nine digits; in float32 it would be to three.

No paper; Griewank and Walther, "Evaluating Derivatives", 2008, have the arithmetic.
"""

import contextlib
import dataclasses

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_count, check_number
from keras_tricks._keras.patches import replace
from keras_tricks._keras.scopes import pure_scope, said_to_be
from keras_tricks.models._graph import walk
from keras_tricks.models._report import as_text

STEP = 1e-5  # relative to the value, if that is above 1
EPSILON = 2.0**-52
# A layer that computes in float32 inside has noise of about 1e-7, which a larger step divides by more.
COARSE_STEP, COARSE_TOLERANCE = 1e-2, 1e-2


@dataclasses.dataclass(frozen=True)
class Check:
    """What was found for one tensor of one layer.

    Attributes:
        layer: Path of the layer, `"the whole model"` or `"the loss"`.
        tensor: `"input 0"`, the path of a weight, or `"all weights"`.
        entries: How many entries were compared.
        error: Largest relative difference of the two gradients.
        automatic: The automatic gradient of the entry where they differ most.
        numerical: The numerical one.
        kinks: How many entries were left out, since the function has a corner there.
        is_coarse: Whether they agree only as far as they would if the layer computed in float32.
        is_right: Whether they agree.
    """

    layer: str
    tensor: str
    entries: int
    error: float
    automatic: float
    numerical: float
    kinks: int
    is_coarse: bool
    is_right: bool

    def __str__(self):
        return (
            f"{self.layer}, {self.tensor}: automatic {self.automatic:.6g}, numerical {self.numerical:.6g} "
            f"(relative difference {self.error:.1e}, {self.entries} entries)"
        )


@dataclasses.dataclass(frozen=True)
class GradientReport:
    """The checks of a model; printed, what is wrong and what is not.

    Attributes:
        checks: A `Check` for each tensor of each layer.
    """

    checks: tuple

    @property
    def wrong(self):
        """The checks in which the gradients differ; of layers inside of each other, those of the innermost."""
        found = [check for check in self.checks if not check.is_right]
        layers = {check.layer for check in found}
        holds_another = lambda path: any(other.startswith(f"{path}/") for other in layers)  # noqa: E731
        return [check for check in found if not holds_another(check.layer)]

    def __str__(self):
        right = [check for check in self.checks if check.is_right]
        worst = max(right, key=lambda check: check.error, default=None)
        entries = sum(check.entries for check in self.checks)
        summary = [
            f"{len(self.checks)} tensors of {len({check.layer for check in self.checks})} layers, {entries} entries: "
            + (f"{len(self.wrong)} wrong" if self.wrong else "all gradients are right")
        ]
        if worst is not None:
            summary.append(f"largest difference among those that are right: {worst.error:.1e} ({worst.layer})")
        return as_text(
            summary,
            wrong=[str(check) for check in self.wrong],
            **{
                "right with a large step only, as where a layer computes in float32": [
                    str(check) for check in right if check.is_coarse
                ]
            },
        )


def check_gradients(model, x, y=None, entries=8, tolerance=1e-5, training=False, seed=0):
    """Compares the automatic gradients of each layer with numerical ones, and says which layer is wrong.

    A layer of your own may have a wrong gradient through `custom_gradient`, a rounding or a comparison in the middle, a
    `stop_gradient` too many, or a detour through NumPy. Training then goes on, only worse. Here every layer is run
    again on the inputs that reach it, its weights and inputs are moved a little, one entry at a time, and the change is
    compared with what automatic differentiation says.

    It runs eagerly and in float64; neither weights nor anything else of the model change. Where the function has a
    corner (a relu at 0) another entry is taken. A gradient that is meant to differ, as that of a straight-through
    estimator, is reported as wrong.

    Args:
        model: A built `keras.Model`, of any kind.
        x: One small batch of inputs, as arrays. Two to eight examples are enough.
        y: Targets. With them the loss that the model was compiled with is checked too. Defaults to `None`.
        entries: Number of entries per tensor. Defaults to `8`.
        tolerance: Largest relative difference that counts as right. Defaults to `1e-5`.
        training: Whether layers run as in training. Random numbers are the same in all runs. Defaults to `False`.
        seed: Of the entries that are chosen. Defaults to `0`.

    Returns:
        A report: `print(report)` reads well, `report.wrong` is a list that should be empty.

    Raises:
        TypeError: If `model` is not a Keras model.
        ValueError: If it is not built or is quantized, if `y` comes without a compiled loss, or for a number that is
            out of range.
        RuntimeError: On a backend other than TensorFlow, where Keras does not compute in float64.

    Example:
    >>> import keras, numpy as np, keras_tricks as kt
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh"), kt.layers.NormalizedDense(2)])
    >>> report = kt.models.check_gradients(model, np.random.normal(size=(2, 4)))
    >>> assert not report.wrong, report

    Reference:
        Andreas Griewank, Andrea Walther, "Evaluating Derivatives", 2008.
    """
    if keras.backend.backend() != "tensorflow":
        raise RuntimeError(
            f"`check_gradients` computes in float64, which Keras does on TensorFlow alone; this is "
            f"{keras.backend.backend()}. Check a layer that is written in `keras.ops` on TensorFlow."
        )
    if not isinstance(model, keras.Model):
        raise TypeError(f"`check_gradients` expects a keras.Model. Received: {model!r}")
    if not model.built:
        raise ValueError(f"`check_gradients`: model {model.name!r} is not built. Call it on a batch first.")
    if y is not None and not (model.compiled and callable(model.loss)):
        received = f"loss={model.loss!r}" if model.compiled else "a model that is not compiled"
        raise ValueError(
            "`check_gradients` checks the loss of a model that was compiled with one loss. Compile it with that, or "
            f"leave `y` out. Received: {received}"
        )
    entries = check_count("entries", entries)
    tolerance = check_number("tolerance", tolerance, above=0)
    checker = _Checker(entries, tolerance, np.random.default_rng(seed))
    places = {id(model): ("", model)}
    for place in walk(model):
        places.setdefault(id(place.layer), (place.path, place.layer))
    floats = [v for v in model.variables if _is_float(v)]
    values = {id(v): (v, _float64(v)) for v in floats}
    with _in_float64([layer for _, layer in places.values()]), said_to_be("float64", floats):
        x = keras.tree.map_structure(_float64, x)
        calls, outputs = _calls(model, x, training, places, values)
        checks = [check for path, call in calls for check in checker.of_layer(path, *call, values)]
        checks += checker.of_model(model, x, training, values)
        if y is not None:
            checks += checker.of_loss(model.loss, keras.tree.map_structure(_float64, y), outputs)
    return GradientReport(tuple(checks))


class _Checker:
    def __init__(self, entries, tolerance, random):
        self.entries, self.tolerance, self.random = entries, tolerance, random

    def of_layer(self, path, layer, call, args, kwargs, values):
        """The checks of a layer's weights and inputs, where these and its outputs are floats."""
        given = keras.tree.flatten((args, kwargs))
        inputs = [i for i, leaf in enumerate(given) if _is_float(leaf)]
        weights = [v for v in layer.trainable_variables if _is_float(v)]

        def outputs(tensors):
            leaves = list(given)
            for i, tensor in zip(inputs, tensors, strict=False):
                leaves[i] = tensor
            new_args, new_kwargs = keras.tree.pack_sequence_as((args, kwargs), leaves)
            with _scope(values, zip(weights, tensors[len(inputs) :], strict=True)):
                return call(*new_args, **new_kwargs)

        names = [*(f"input {number}" for number in range(len(inputs))), *(v.path for v in weights)]
        tensors = [*(given[i] for i in inputs), *(values[id(v)][1] for v in weights)]
        return self.compare(path, names, outputs, tensors)

    def of_model(self, model, x, training, values):
        """The check of the whole model, along one direction of all its weights."""
        weights = [v for v in model.trainable_variables if _is_float(v)]
        start = [values[id(v)][1] for v in weights]
        directions = [
            ops.convert_to_tensor(self.random.normal(size=v.shape) / max(v.shape, default=1)) for v in weights
        ]

        def outputs(tensors):
            moved = [value + tensors[0] * way for value, way in zip(start, directions, strict=True)]
            with _scope(values, zip(weights, moved, strict=True)):
                return model(x, training=training)

        if not weights:
            return []
        return self.compare("the whole model", ["all weights"], outputs, [ops.zeros((), "float64")])

    def of_loss(self, loss, y, predictions):
        call = getattr(loss, "call", loss)  # of an object, without the cast to its dtype
        return self.compare("the loss", ["predictions"], lambda tensors: call(y, tensors[0]), [predictions])

    def compare(self, path, names, outputs, tensors):
        weights = None

        def function(tensors, of_each=lambda term: term):
            nonlocal weights
            results = [y for y in keras.tree.flatten(outputs(tensors)) if _is_float(y)]
            if weights is None:
                weights = [ops.convert_to_tensor(self.random.normal(size=y.shape)) for y in results]
            terms = [ops.sum(of_each(ops.cast(y, "float64") * c)) for y, c in zip(results, weights, strict=True)]
            return sum(terms[1:], start=terms[0]) if terms else None

        if not tensors or function(tensors) is None:
            return []
        gradients = _gradients(function, tensors)
        return [
            self._check(path, name, function, tensors, position, ops.convert_to_numpy(gradients[position]))
            for position, name in enumerate(names)
        ]

    def _check(self, path, name, function, tensors, position, gradient):
        value = ops.convert_to_numpy(tensors[position])

        def at(index, move):
            moved = value.copy()
            moved[index] += move
            changed = [*tensors[:position], ops.convert_to_tensor(moved), *tensors[position + 1 :]]
            return float(ops.convert_to_numpy(function(changed)))

        middle = float(ops.convert_to_numpy(function(tensors)))
        size = float(ops.convert_to_numpy(function(tensors, ops.abs)))
        smallest = 1e-4 * np.abs(gradient).max(initial=0.0) + 1e-300
        worst, compared, kinks, coarse = (0.0, 0.0, 0.0), 0, 0, False
        for flat in self.random.permutation(value.size)[: 4 * self.entries]:
            if compared == self.entries:
                break
            index = np.unravel_index(flat, value.shape)
            automatic = float(gradient[index])

            def differences(step, index=index):
                step *= max(1.0, abs(float(value[index])))
                after, before = at(index, step), at(index, -step)
                return (after - before) / (2 * step), (after - middle) / step, (middle - before) / step

            def error(numerical, step=STEP, tolerance=self.tolerance, automatic=automatic):
                rounding = 16 * EPSILON * size / step  # of the numerical one, which is no difference
                return abs(automatic - numerical) / max(abs(automatic), abs(numerical), smallest, rounding / tolerance)

            numerical, right, left = differences(STEP)
            found, is_coarse = error(numerical), False
            if found > self.tolerance:
                if min(error(right), error(left)) < 1e-3 < error(numerical):
                    kinks += 1
                    continue
                coarse_one = differences(COARSE_STEP)[0]
                coarse_error = error(coarse_one, COARSE_STEP, COARSE_TOLERANCE)
                if coarse_error <= COARSE_TOLERANCE:
                    numerical, is_coarse, found = coarse_one, True, coarse_error
            compared, coarse = compared + 1, coarse or is_coarse
            worst = max(worst, (found, automatic, numerical), key=lambda entry: entry[0])
        is_right = worst[0] <= (COARSE_TOLERANCE if coarse else self.tolerance)
        return Check(path, name, compared, *worst, kinks, coarse, is_right)


def _calls(model, x, training, places, values):
    """(path, (layer, call, args, kwargs)) of each layer's first call when the model runs, and the model's outputs."""
    calls, taking_out = {}, []

    def recording(path, layer):
        def call(plain, *args, **kwargs):
            calls.setdefault(id(layer), (path, (layer, plain, args, kwargs)))
            return plain(*args, **kwargs)

        return call

    try:
        for path, layer in places.values():
            if not isinstance(layer, keras.Model):
                taking_out.append(replace(layer, "call", recording(path, layer)))
        with _scope(values):
            outputs = model(x, training=training)
    finally:
        for take_out in reversed(taking_out):
            take_out()
    return list(calls.values()), outputs


@contextlib.contextmanager
def _in_float64(layers):
    policies = [(layer, layer.dtype_policy) for layer in layers]
    for layer, policy in policies:
        if policy.quantization_mode is not None:
            raise ValueError(
                f"`check_gradients`: layer {layer.name!r} is quantized, and its weights are whole numbers, which have "
                "no gradient. Check the model before it is quantized."
            )
    try:
        for layer, _ in policies:
            layer.dtype_policy = "float64"
        yield
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy


def _scope(values, others=()):
    """Where variables have these values, in float64, and nothing is assigned to them."""
    return pure_scope([*values.values(), *others])


def _gradients(function, tensors):
    import tensorflow as tf

    tensors = [tf.identity(x) for x in tensors]
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        result = function(tensors)
    return tape.gradient(result, tensors, unconnected_gradients="zero")


def _float64(x):
    x = ops.convert_to_tensor(x)
    return ops.cast(x, "float64") if _is_float(x) else x


def _is_float(x):
    return (ops.is_tensor(x) or isinstance(x, keras.Variable)) and keras.backend.is_float_dtype(x.dtype)
