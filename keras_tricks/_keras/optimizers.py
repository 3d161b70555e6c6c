"""Finds what callbacks act on in an optimizer with wrappers around it."""

import keras


def innermost_optimizer(optimizer):
    """The optimizer that owns the learning rate and the slots, under loss scaling and other wrappers."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def stepping_optimizer(optimizer):
    """The optimizer whose `apply` takes the steps: the first under loss scaling; wrappers step for what they wrap."""
    while isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        optimizer = optimizer.inner_optimizer
    return optimizer


def accumulation_steps(optimizer):
    """The number of batches for one optimizer step."""
    while not getattr(optimizer, "gradient_accumulation_steps", None) and hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return getattr(optimizer, "gradient_accumulation_steps", None) or 1
