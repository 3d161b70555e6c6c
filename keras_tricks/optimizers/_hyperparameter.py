"""Arguments of an optimizer that are attributes too: checked whenever they are set, and never set without effect."""

import warnings


class Hyperparameter:
    """An attribute whose value passes `check(name, value, **bounds)` in the constructor and whenever it is set again.

    A new value acts on the next step. A step that has been compiled keeps the old one, and a warning says so. What
    shapes the state, `fixed=True`, cannot be set once there is one.
    """

    def __init__(self, check, optional=False, fixed=False, instead_of=(), **bounds):
        self.checker = check
        self.optional = optional  # whether None is a value
        self.fixed = fixed
        self.instead_of = instead_of  # arguments of which only one can be given
        self.bounds = bounds

    def __set_name__(self, owner, name):
        self.name = name

    def __get__(self, optimizer, owner=None):
        if optimizer is None:
            return self
        try:
            return vars(optimizer)[self.name]
        except KeyError:  # TensorFlow's tracking looks before it sets
            raise AttributeError(self.name) from None

    def __set__(self, optimizer, value):
        value = self.check(value)
        values = vars(optimizer)
        if self.name in values and value != values[self.name]:
            if value is not None:
                for other in self.instead_of:
                    if values.get(other) is not None:
                        raise ValueError(
                            f"Only one of `{self.name}` and `{other}` can be set. Set `{other}` to None first."
                        )
            if self.fixed and values.get("built"):
                raise AttributeError(
                    f"`{self.name}` of {type(optimizer).__name__} shapes its state, which has been built with "
                    f"{self.name}={values[self.name]!r}. Make a new optimizer for another value."
                )
            tell_if_compiled(optimizer, self.name)
        values[self.name] = value

    def check(self, value):
        """Returns the value, as a plain one that a config can hold; raises TypeError or ValueError."""
        if value is None and self.optional:
            return None
        return self.checker(self.name, value, **self.bounds)


def tell_if_compiled(optimizer, name):
    """Warns that a new value of `name` does not reach steps that are compiled, if there are any."""
    if vars(optimizer).get("has_been_traced"):
        warnings.warn(
            f"`{name}` was set after a step of {type(optimizer).__name__} had been compiled. That step keeps the old "
            "value: call `model.compile(...)` with this optimizer again, or trace your `tf.function` anew. In eager "
            "mode it acts at once.",
            stacklevel=5,
        )
