"""The one way in which callbacks replace methods while a `fit` runs, and find out that it was interrupted.

`fit` does not call `on_train_end` after an exception or Ctrl-C. So whatever uses the model next, when no `fit` of it is
running any more, first has the callback put everything back.
"""

import functools
import sys

USES = (
    *("fit", "train_on_batch", "evaluate", "test_on_batch", "predict", "predict_on_batch"),
    *("save", "save_weights", "export", "compile"),
)


def replace(owner, name, function):
    """Has `owner.name(...)` call `function(plain, ...)`; returns a function that takes the replacement out again.

    That removes only what was put in here. Where something else lies on top, it stays, and calls what was there before.
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
        below = own
        while getattr(below, "released", False):  # taken out while this one lay on top
            below = below.below
        if below is None:
            delattr(owner, name)
        else:
            setattr(owner, name, below)

    replacement.released, replacement.below = False, own
    setattr(owner, name, replacement)
    return take_out


class Replacements:
    """What a callback replaces for the time of one `fit` of a model; `release` is called if that is interrupted."""

    def __init__(self, model, release):
        self.model = model
        self._taking_out = []

        def use(plain, *args, **kwargs):
            if not fit_is_running(model):
                release()
            return plain(*args, **kwargs)

        for name in USES:
            self.put(model, name, use)

    def put(self, owner, name, function):
        """Has `owner.name(...)` call `function(plain, ...)`."""
        self._taking_out.append(replace(owner, name, function))

    def take_out(self):
        """Puts back what was there; a second call does nothing."""
        while self._taking_out:
            self._taking_out.pop()()


def fit_is_running(model):
    """Whether a `fit` of the model is being executed by any thread."""
    for frame in sys._current_frames().values():
        while frame is not None:
            if frame.f_code.co_name == "fit" and frame.f_locals.get("self") is model:
                return True
            frame = frame.f_back
    return False
