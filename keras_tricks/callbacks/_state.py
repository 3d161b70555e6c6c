"""What callbacks keep of a model between epochs, and across a restart."""

import contextlib
import os
import pathlib
import zipfile

import keras
import numpy as np
from keras import ops

from keras_tricks._keras.patches import watching


def averaging_of(model):
    """The callback that holds averaged weights and has them evaluated in place of the model's, or `None`."""
    return next((callback for callback in watching(model) if hasattr(callback, "evaluated_weights")), None)


@contextlib.contextmanager
def unfinished(path):
    """A path next to `path` to write to; it replaces `path` once everything is written, and is removed otherwise."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name("unfinished_" + path.name)
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def save_arrays(path, arrays):
    """Writes a dict of arrays; a crash in the middle leaves what was there before."""
    with unfinished(path) as beside, beside.open("wb") as file:
        np.savez(file, **{name: _of_numpy(value) for name, value in arrays.items()})


def load_arrays(path):
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"The backup {path} cannot be read: it is damaged, or not a backup. Delete it, and train without what it "
            f"held, or put a copy of it in its place. ({type(error).__name__}: {error})"
        ) from error


def is_float(variable):
    return "float" in keras.backend.standardize_dtype(variable.dtype)


def assign_weights(model, values):
    for variable, value in zip(model.weights, values, strict=True):
        variable.assign(ops.cast(value, variable.dtype))


def _of_numpy(value):
    value = np.asarray(value)
    # NumPy's files do not know bfloat16 and float8; float32 holds their values exactly.
    return value.astype("float32") if value.dtype.isbuiltin == 2 else value
