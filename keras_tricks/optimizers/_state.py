"""How an optimizer saves and restores its state, with nothing lost and nothing mistaken for something else.

Keras skips the state in a file, with a warning, if the optimizer is not built yet, as in a model that was only
compiled. Here it waits until the optimizer is built, and training continues where it was. Besides the variables, the
file holds the optimizer's class, since another class may have as many variables of the same shapes.

As for numbers that the user chose: an optimizer that is built takes the learning rate and `momentum` or `beta_1` from
the file, as Keras' optimizers do with the learning rate. One that is not built keeps those that its constructor was
given.
"""

import contextlib
import functools
import warnings

import keras
import numpy as np

KIND = "class"
GIVEN = "given_"  # and the name of a VariableHyperparameter


class SavedState:
    """State that waits for its optimizer to be built. An object of its own, so that Keras does not track the arrays."""

    def __init__(self, values):
        self.values = values


def own_variables(optimizer):
    """The optimizer's variables without those of an optimizer inside it."""
    return keras.optimizers.Optimizer.variables.fget(optimizer)


def save(optimizer, store):
    """Writes the optimizer's own variables, its class, and the numbers that were set last."""
    store[KIND] = np.frombuffer(type(optimizer).__name__.encode(), "uint8")
    if not optimizer.built:
        _save_what_waits_inside(optimizer)
        waiting = optimizer.waiting_state.values if optimizer.waiting_state else {}
        for key in waiting.keys() - {KIND}:
            store[key] = waiting[key]
        return
    for index, variable in enumerate(own_variables(optimizer)):
        store[str(index)] = keras.ops.convert_to_numpy(variable)
        if hasattr(variable, "given"):
            store[GIVEN + variable.name] = np.float64(variable.given)


def load(optimizer, store):
    """Restores what `save`, or an earlier version of it, has written; once the optimizer is built, if it is not yet."""
    values = {key: np.array(store[key]) for key in store.keys()}  # noqa: SIM118
    _check_kind(optimizer, values)
    if values.keys() == {KIND}:  # saved before it was built, and what is inside too
        _once_instead(optimizer, "load_own_variables", lambda store: None)
        return
    if not getattr(optimizer, "inner_optimizer", optimizer).built:
        _let_the_inner_one_wait(optimizer)
    if not values:
        warnings.warn(f"The file holds no state of an optimizer. {optimizer.name!r} goes on as it is.", stacklevel=3)
    elif optimizer.built:
        _take_up(optimizer, values, numbers=True)
    else:
        optimizer.waiting_state = SavedState(values)


def takes_up_saved_state(build):
    """A `build` that also restores the state that was loaded before; the outermost `build` does it."""

    @functools.wraps(build)
    def build_and_take_up(optimizer, variables):
        build(optimizer, variables)
        if type(optimizer).build is build_and_take_up:
            take_up_waiting(optimizer)

    return build_and_take_up


def take_up_waiting(optimizer):
    """Gives a built optimizer the state that was loaded before it was built."""
    state, optimizer.waiting_state = optimizer.waiting_state, None
    if state is not None:
        with _outside_of_the_graph():
            _take_up(optimizer, state.values, numbers=False)


def take_up_what_waits_inside(wrapper):
    """The same for a Keras optimizer inside one of ours, once that is built."""
    state, wrapper.waiting_inside = wrapper.waiting_inside, None
    if state is not None:
        with _outside_of_the_graph():
            _take_up(wrapper.inner_optimizer, state.values, numbers=False)


def _let_the_inner_one_wait(wrapper):
    """Keras would skip the state of its own optimizer if that is not built; here the wrapper keeps it."""

    def load_own_variables(store):
        values = {key: np.array(store[key]) for key in store.keys()}  # noqa: SIM118
        wrapper.waiting_inside = SavedState(values)

    _once_instead(wrapper, "load_own_variables", load_own_variables)


def _save_what_waits_inside(wrapper):
    def save_own_variables(store):
        for key, value in wrapper.waiting_inside.values.items():
            store[key] = value

    if wrapper.waiting_inside is not None:
        _once_instead(wrapper, "save_own_variables", save_own_variables)


def _once_instead(wrapper, name, function):
    """Lets `function` stand in for one call of a method of the Keras optimizer inside.

    Keras saves and loads what is in an optimizer right after the optimizer itself.
    """
    inner = getattr(wrapper, "inner_optimizer", None)
    if inner is None or hasattr(inner, "waiting_state"):
        return

    def once(store):
        delattr(inner, name)
        function(store)

    setattr(inner, name, once)


def set_weights(optimizer, weights):
    """Sets all variables, those inside too, in the order of `variables`."""
    if not optimizer.built:
        raise ValueError("`set_weights()` needs a built optimizer: call `optimizer.build(variables)` first.")
    variables, weights = optimizer.variables, list(weights)
    expected, received = [tuple(v.shape) for v in variables], [np.shape(w) for w in weights]
    if expected != received:
        raise ValueError(
            f"`set_weights()` of {type(optimizer).__name__} expects {len(expected)} arrays in the order of "
            f"`optimizer.variables`, of the shapes {expected}. Received {len(received)}, of the shapes {received}."
        )
    for variable, weight in zip(variables, weights, strict=True):
        variable.assign(weight)
        if hasattr(variable, "given"):
            variable.given = float(keras.ops.convert_to_numpy(variable))


def _outside_of_the_graph():
    """Where variables can be set once, even if the first step builds the optimizer while it is traced."""
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.init_scope()


def _check_kind(optimizer, values):
    name = type(optimizer).__name__
    saved = bytes(values[KIND]).decode() if KIND in values else name
    if saved != name:
        raise ValueError(
            f"The state in the file is that of the optimizer {saved}, and this one is {name}. Compile the model with "
            f"{saved} to go on with its state. To begin anew with {name}, load the weights before the model is "
            "compiled, or with `skip_mismatch=True`."
        )


def _take_up(optimizer, values, numbers):
    own = own_variables(optimizer)
    saved = [values[str(index)] for index in range(len(values)) if str(index) in values]
    # Earlier versions of LossScaleOptimizer wrote the variables of the optimizer inside as well.
    if KIND not in values and len(saved) == len(optimizer.variables):
        saved = saved[: len(own)]
    expected, received = [tuple(v.shape) for v in own], [w.shape for w in saved]
    if expected != received:
        different = [f"{v.path} {e}" for v, e, r in zip(own, expected, received, strict=False) if e != r][:3]
        warnings.warn(
            f"The saved state does not fit the optimizer {optimizer.name!r}, which has {len(expected)} variables where "
            f"{len(received)} were saved{', or others: ' + ', '.join(different) if different else ''}. It was saved "
            "with other arguments, or when other layers were trained. It is not loaded: the optimizer goes on as it "
            "is.",
            stacklevel=2,
        )
        return
    rate = optimizer.learning_rate
    for variable, value in zip(own, saved, strict=True):
        given = values.get(GIVEN + variable.name, value) if hasattr(variable, "given") else None
        if numbers or not (variable is rate or given is not None):
            variable.assign(value if given is None else given)
            if given is not None:
                variable.given = float(given)
            continue
        now = float(keras.ops.convert_to_numpy(variable))
        then = float(value if given is None else given)
        if now != then:
            name = "learning_rate" if variable is rate else variable.name
            warnings.warn(
                f"`{name}` of the optimizer {optimizer.name!r} was {then:g} when its state was saved. It stays "
                f"{now:g}, as it was given to the constructor; set `optimizer.{name}` to change that.",
                stacklevel=2,
            )
