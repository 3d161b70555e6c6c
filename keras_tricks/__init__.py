"""keras_tricks: training tricks for Keras 3 on TensorFlow that work together.

>>> import keras_tricks as kt
>>> optimizer = kt.LAMB(1e-3, weight_decay=0.01)
"""

try:
    import keras as _keras  # noqa: F401
except ImportError as _error:  # Keras is installed, but its backend is not.
    import importlib.util as _importlib_util
    import os as _os

    _tried = _os.environ.get("KERAS_BACKEND") or "tensorflow"
    _installed = [name for name in ("tensorflow", "jax") if name != _tried and _importlib_util.find_spec(name)]
    raise ImportError(
        f"keras_tricks needs a backend for Keras, and importing Keras failed ({_error}). "
        + (
            f"Keras tried {_tried}, but {_installed[0]} is installed. Set KERAS_BACKEND={_installed[0]} before Python "
            "starts, or install one of:\n"
            if _installed
            else "Install one of:\n"
        )
        + "  pip install 'keras_tricks[cpu]'          # TensorFlow for CPUs, half the download\n"
        "  pip install 'keras_tricks[gpu]'          # TensorFlow with CUDA\n"
        "  pip install 'keras_tricks[tensorflow]'   # TensorFlow as its makers package it\n"
        "  pip install 'keras_tricks[jax]'          # JAX; set KERAS_BACKEND=jax"
    ) from _error

from keras_tricks import (
    callbacks,
    data,
    distribute,
    initializers,
    layers,
    losses,
    metrics,
    models,
    optimizers,
    schedules,
)
from keras_tricks._version import __version__
from keras_tricks.models import convert, fuse, jit, recompute
from keras_tricks.optimizers import (
    LAMB,
    LARS,
    SM3,
    Adafactor,
    AdaptiveGradientClipping,
    GradientAccumulation,
    Lookahead,
    LossScaleOptimizer,
    Yogi,
    state_bytes,
)

__all__ = [
    "LAMB",
    "LARS",
    "SM3",
    "Adafactor",
    "AdaptiveGradientClipping",
    "GradientAccumulation",
    "Lookahead",
    "LossScaleOptimizer",
    "Yogi",
    "__version__",
    "callbacks",
    "convert",
    "data",
    "distribute",
    "fuse",
    "initializers",
    "jit",
    "layers",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "recompute",
    "schedules",
    "state_bytes",
]
