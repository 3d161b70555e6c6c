"""What callbacks keep of a model between epochs, and across a restart."""

import os
import pathlib
import weakref

import keras
import numpy as np
from keras import ops

# Callbacks that have validation run on other weights than training's, by the model: they hold what was evaluated.
_AVERAGING = weakref.WeakKeyDictionary()


def set_averaging(model, callback):
    if callback is None:
        _AVERAGING.pop(model, None)
    else:
        _AVERAGING[model] = callback


def averaging_of(model):
    """The callback that has averaged weights evaluated in place of the model's, or `None`."""
    return _AVERAGING.get(model)


def save_arrays(path, arrays):
    """Writes a dict of arrays; a crash in the middle leaves what was there before."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("wb") as file:
        np.savez(file, **{name: _of_numpy(value) for name, value in arrays.items()})
    os.replace(unfinished, path)


def load_arrays(path):
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def is_float(variable):
    return "float" in keras.backend.standardize_dtype(variable.dtype)


def assign_weights(model, values):
    for variable, value in zip(model.weights, values, strict=True):
        variable.assign(ops.cast(value, variable.dtype))


def _of_numpy(value):
    value = np.asarray(value)
    # NumPy's files do not know bfloat16 and float8; float32 holds their values exactly.
    return value.astype("float32") if value.dtype.isbuiltin == 2 else value
