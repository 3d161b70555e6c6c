"""Finds the optimizer that does the work, under the wrappers around it."""


def innermost_optimizer(optimizer):
    """The optimizer that owns the learning rate and the slots, under loss scaling and other wrappers."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer
