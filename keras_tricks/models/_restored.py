"""Puts a model back exactly as it was after a trial run of `fit`."""

import contextlib

import keras
import numpy as np


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


def remember_variables(model, variables):
    """Copies variables of a model to host memory, and returns a function that puts them back, bit for bit."""
    variables = {id(v): v for v in variables}.values()
    values = [[np.array(copy) for copy in copies(model, v)] for v in variables]

    def put_back():
        for variable, of_replicas in zip(variables, values, strict=True):
            if keras.backend.backend() == "tensorflow":
                for copy, value in zip(_of_replicas(model, variable), of_replicas, strict=True):
                    copy.assign(value)
            else:
                variable.assign(of_replicas[0])

    return put_back


@contextlib.contextmanager
def restored(model):
    """Leaves a built model as it was, with its `history` and `stop_training`, also after an error or Ctrl-C."""
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


def copies(model, variable):
    """The values of a variable, one for each replica: statistics, metrics and seeds may differ between them."""
    if keras.backend.backend() == "tensorflow":
        return [copy.numpy() for copy in _of_replicas(model, variable)]
    return [keras.ops.convert_to_numpy(variable)]


def _of_replicas(model, variable):
    return model.distribute_strategy.experimental_local_results(variable.value)


def sync(model):
    # On JAX the state of an interrupted `fit` is not in the variables yet, and would be written there later.
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()
