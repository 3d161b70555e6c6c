"""The distribution strategy that a model was made under."""

import contextlib

import keras


def scope_of(model):
    """Its scope, in which new variables are laid out over the replicas as those of the model are."""
    if keras.backend.backend() == "tensorflow":
        return model.distribute_strategy.scope()
    return contextlib.nullcontext()
