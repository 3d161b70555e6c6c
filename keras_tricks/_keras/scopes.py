"""Scopes in which variables are values: code run in one changes no variable; the scope holds what it assigned."""

import contextlib

import keras


def open_scope():
    """The scope that is open, or `None`."""
    probe = keras.StatelessScope(initialize_variables=False)
    with probe:
        return probe.original_scope


def pure_scope(values=(), outer=None):
    """A scope that collects losses, in which variables have these values, `(variable, value)`, or those of `outer`."""
    scope = keras.StatelessScope(collect_losses=True, initialize_variables=False)
    if outer is not None:
        scope.state_mapping.update(outer.state_mapping)
    for pair in values:
        scope.add_update(pair)
    return scope


def assigned(scope, before, variables):
    """What was assigned since the scope's `state_mapping` was `before`: {position in `variables`: value}.

    A variable that is not among `variables` has the position `None`.
    """
    positions = {id(v): position for position, v in enumerate(variables)}
    return {positions.get(key): value for key, value in scope.state_mapping.items() if value is not before.get(key)}


@contextlib.contextmanager
def said_to_be(dtype, variables):
    """Has variables say that they are of a dtype, for a scope in which their values are."""
    before = [v._dtype for v in variables]
    try:
        for v in variables:
            v._dtype = dtype
        yield
    finally:
        for v, its_own in zip(variables, before, strict=True):
            v._dtype = its_own


class _Running(keras.Layer):
    def call(self, function, training=None):
        return function()


def as_within(layer, function, training):
    """`function()` as within the call of the layer: variables have its compute dtype, layers know of `training`."""
    return _Running(name="running", dtype=layer.dtype_policy, autocast=layer.autocast)(
        function=function, training=training
    )
