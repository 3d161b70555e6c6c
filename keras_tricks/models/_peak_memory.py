"""The memory that a training step takes on the CPU, measured in a process of its own."""

import os
import subprocess
import sys
import tempfile

import keras
import numpy as np
from keras import tree

from keras_tricks.models._graph import plain_functional


def peak_in_a_process(model, batch_size):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1", "JAX_PLATFORMS": "cpu"}
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "model.keras")
        model.save(path)
        code = f"from keras_tricks.models._peak_memory import print_peak; print_peak({path!r}, {batch_size})"
        child = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
    if child.returncode:
        raise RuntimeError(f"A training step of {model.name!r} could not be measured:\n{child.stderr[-2000:]}")
    return int(child.stdout.split()[-1])


def print_peak(path, batch_size):
    """Prints by how many bytes a training step, on zeros, raises the peak memory of this process."""
    model = plain_functional(keras.models.load_model(path, compile=False))
    x, y = (
        tree.map_structure(lambda t: np.zeros((batch_size, *(d or 1 for d in t.shape[1:])), t.dtype), tensors)
        for tensors in (model.input, model.output)
    )
    model.compile("sgd", tree.map_structure(lambda t: "mse", model.output))
    model.train_on_batch(tree.map_structure(lambda t: t[:1], x), tree.map_structure(lambda t: t[:1], y))
    start = _peak_memory()
    model.train_on_batch(x, y)
    print(_peak_memory() - start)


def _peak_memory():
    # Not `resource.getrusage`: there a process starts with the peak of the one that started it.
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))
