"""The one way in which methods are replaced at run time, by callbacks while a `fit` runs and by `jit` permanently.

`fit` does not call `on_train_end` after an exception or Ctrl-C. So the next use of the model, once no `fit` of it is
running any more, first makes the callback put everything back.
"""

import contextlib
import functools
import sys

USES = (
    *("fit", "train_on_batch", "evaluate", "test_on_batch", "predict", "predict_on_batch"),
    *("save", "save_weights", "export", "compile"),
)


def replace(owner, name, function):
    """Makes `owner.name(...)` call `function(plain, ...)`; returns a function that takes the replacement out again.

    That removes only what was put in here. If something else lies on top, the replacement stays as a mere pass-through
    to what was there before.
    """
    own, plain = vars(owner).get(name), getattr(owner, name)

    @functools.wraps(plain, updated=())  # Keras asks for the signature in its error messages
    def replacement(*args, **kwargs):
        if replacement.released:
            return plain(*args, **kwargs)
        return function(plain, *args, **kwargs)

    def take_out():
        if vars(owner).get(name) is not replacement:
            replacement.released = True
            return
        below = _not_released(own)
        if below is None:
            delattr(owner, name)
        else:
            setattr(owner, name, below)

    replacement.released, replacement.below, replacement.function = False, own, function
    setattr(owner, name, replacement)
    return take_out


@contextlib.contextmanager
def replaced(owner, name, function):
    """`replace`, for the time of a `with` block."""
    take_out = replace(owner, name, function)
    try:
        yield
    finally:
        take_out()


def is_replaced(owner, name):
    """Whether something, ours or anybody's, stands in for the method of the owner's class."""
    return _not_released(vars(owner).get(name)) is not None


def replacing(owner, name):
    """The functions that stand in for a method, the last one first; what others put on top is unknown."""
    found = _not_released(vars(owner).get(name))
    while hasattr(found, "function"):
        yield found.function
        found = _not_released(found.below)


def _not_released(method):
    while getattr(method, "released", False):  # taken out while another one lay on top
        method = method.below
    return method


class Replacements:
    """What a callback replaces for the time of one `fit` of a model; its `release` is called if that is interrupted."""

    def __init__(self, model, release):
        self.model = model
        self.callback = release.__self__
        self._taking_out = []
        vars(model).setdefault(_WATCHING, []).append(self.callback)

        def use(plain, *args, **kwargs):
            if not fit_is_running(model):
                release()
            return plain(*args, **kwargs)

        for name in USES:
            self.put(model, name, use)

    def put(self, owner, name, function):
        """Makes `owner.name(...)` call `function(plain, ...)`."""
        self._taking_out.append(replace(owner, name, function))

    def take_out(self):
        """Puts back what was there; a second call does nothing."""
        while self._taking_out:
            self._taking_out.pop()()
        watching = vars(self.model).get(_WATCHING, [])
        if self.callback in watching:
            watching.remove(self.callback)
        if not watching:
            vars(self.model).pop(_WATCHING, None)


# The attribute by which a model knows the callbacks that have replaced something of it.
_WATCHING = "_callbacks_of_keras_tricks"


def watching(model):
    """The callbacks that have replaced something of the model, in the order in which they did."""
    return tuple(vars(model).get(_WATCHING, ()))


def fit_is_running(model):
    """Whether a `fit` of the model is being executed by any thread."""
    for frame in sys._current_frames().values():
        while frame is not None:
            if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
                return True
            frame = frame.f_back
    return False
