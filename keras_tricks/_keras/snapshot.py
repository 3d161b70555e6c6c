"""Puts a model back exactly as it was after a trial run of `fit`."""

import contextlib

import keras
import numpy as np
from keras import ops


def remember(model):
    """Copies all state that training moves to host memory, and returns a function that puts it back, bit for bit.

    These are weights, statistics, seeds, metrics, and all that the optimizer has: slots, step counts, rate, loss scale.
    The model and its optimizer must be built.
    """
    variables = (*model.variables, *model.optimizer.variables, *model.metrics_variables)
    put_back_variables = remember_variables(model, variables)

    def put_back():
        sync(model)
        model.reset_metrics()  # those that the first step has made
        put_back_variables()

    return put_back


def remember_variables(model, variables, on_host=True):
    """Copies variables of a model, and returns a function that puts them back, bit for bit, on each replica.

    The copies are in host memory, or on the device, which is faster but takes device memory.
    """
    copy = (lambda part: np.array(_on_host(part))) if on_host else ops.copy
    parts = [part for v in {id(v): v for v in variables}.values() for part in _of_replicas(model, v)]
    values = [copy(part) for part in parts]

    def put_back():
        for part, value in zip(parts, values, strict=True):
            part.assign(value)

    return put_back


@contextlib.contextmanager
def restored(model):
    """Leaves a built model as it was, its `history` and `stop_training` included, even after an error or Ctrl-C."""
    put_back = remember(model)
    with attributes_restored(model):
        try:
            yield
        finally:
            put_back()


@contextlib.contextmanager
def attributes_restored(model):
    """Puts back what `fit` writes into the attributes of a model."""
    history, stopping = getattr(model, "history", None), model.stop_training
    try:
        yield
    finally:
        model.history, model.stop_training = history, stopping


@contextlib.contextmanager
def single_steps(model):
    """Sets `steps_per_execution` to 1, and afterwards restores it and the model's compiled step."""
    at_once = model.steps_per_execution
    if at_once == 1:
        yield
        return
    train_function = model.train_function
    model.steps_per_execution, model.train_function = 1, None
    try:
        yield
    finally:
        model.steps_per_execution, model.train_function = at_once, train_function


def copies(model, variable):
    """The values of a variable, one for each replica: statistics, metrics and seeds may differ between them."""
    return [_on_host(part) for part in _of_replicas(model, variable)]


def sync(model):
    """On JAX, brings the variables up to the state of the `fit` that runs, or was interrupted."""
    # That state is not in the variables yet, and would overwrite them later.
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def _of_replicas(model, variable):
    if keras.backend.backend() == "tensorflow":
        return model.distribute_strategy.experimental_local_results(variable.value)
    return [variable]


def _on_host(part):
    return ops.convert_to_numpy(part)
