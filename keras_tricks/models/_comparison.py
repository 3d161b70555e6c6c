"""Two models compared on one batch: a difference that rounding does not explain is an error."""

import keras
import numpy as np

from keras_tricks.models._graph import as_float64, walk


def compare(model, fused, probe, limit):
    """The largest absolute and relative difference of the outputs; an error where rounding does not explain it.

    How much rounding explains depends on the model, so it is measured: the change of the model's outputs when each
    weight moves by up to a unit in the last place of the precision it computes in. Folding rounds each weight once and
    the activations differently, which came to 0.08 to 0.75 times that change in models of 1 to 53 convolutions, in
    float32, float16 and bfloat16. Five times the change is the usual `limit`.
    """
    given = "random inputs" if probe is None else "your `probe`"
    try:
        probe = _random_probe(model) if probe is None else probe
        expected = _outputs(model, probe)
    except Exception as error:
        raise ValueError(
            f"The two models are compared on {given}, and model {model.name!r} cannot run on them "
            f"({type(error).__name__}, see above). Give `probe=` inputs that it takes, as one batch."
        ) from error
    received = _outputs(fused, probe)
    layers = [place.layer for m in (model, fused) for place in walk(m)]
    unit = max((_UNITS.get(layer.compute_dtype, 0.0) for layer in layers), default=0.0)
    perturbed = _outputs(model, probe, _perturbed(model.variables, unit))
    absolute = relative = 0.0
    for index, (a, b, c) in enumerate(zip(expected, received, perturbed, strict=True)):
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            difference, rounding, largest = np.inf, 0.0, 0.0
        else:
            largest = np.abs(a[np.isfinite(a)]).max(initial=0.0)
            difference = np.abs((a - b)[np.isfinite(a)]).max(initial=0.0)
            rounding = np.abs((a - c)[np.isfinite(a - c)]).max(initial=0.0) + unit * largest
        if difference > limit * rounding:
            raise ValueError(
                f"The fused model computes something else: output {index} differs by {difference:.3g}, its largest "
                f"value is {largest:.3g}, and rounding explains about {rounding:.1g}. A layer's `fused()` is wrong, a "
                "layer is random at inference, weights overflow in low precision, or Keras adds the bias of a "
                "channels_first convolution along the last axis, which is as long. `probe=` sets the inputs compared."
            )
        absolute, relative = max(absolute, difference), max(relative, difference / (largest or 1.0))
    return float(absolute), float(relative)


_UNITS = {"float64": 2.0**-52, "float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}


def _outputs(model, probe, values=()):
    # In the scope nothing is assigned: seeds and moving statistics stay as they are.
    with keras.StatelessScope(state_mapping=values):
        outputs = model(probe, training=False)
    return [as_float64(keras.ops.convert_to_tensor(y)) for y in keras.tree.flatten(outputs)]


def _perturbed(variables, unit):
    random = np.random.default_rng(0)
    for v in variables:
        if keras.backend.is_float_dtype(v.dtype):
            value = as_float64(v) * (1 + unit * random.uniform(-1, 1, v.shape))
            yield v, keras.ops.convert_to_tensor(value, v.dtype)


def _random_probe(model):
    random = np.random.default_rng(0)

    def numbers(x):
        shape = [2, *(size or 32 for size in x.shape[1:])]
        if keras.backend.is_float_dtype(x.dtype):
            return random.normal(size=shape).astype("float32")
        return random.integers(0, 2, shape).astype(x.dtype)

    return keras.tree.map_structure(numbers, model.inputs[0] if isinstance(model, keras.Sequential) else model.input)
