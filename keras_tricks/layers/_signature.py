"""Signatures for `help` and for completion."""

import functools
import inspect

_Kind = inspect.Parameter


def with_arguments_of(plain):
    """Decorates a drop-in for the layer class `plain`: its signature names what `*args` and `**kwargs` stand for."""

    def decorate(cls):
        takes = cls.__init__

        @functools.wraps(takes)
        def __init__(self, *args, **kwargs):
            takes(self, *args, **kwargs)

        own = inspect.signature(takes).parameters
        named = [
            p for p in inspect.signature(plain.__init__).parameters.values() if p.kind is _Kind.POSITIONAL_OR_KEYWORD
        ]
        parameters = [p for p in own.values() if p.kind is _Kind.POSITIONAL_OR_KEYWORD]
        parameters += [p for p in named if p.name not in own]
        parameters += [p for p in own.values() if p.kind in (_Kind.KEYWORD_ONLY, _Kind.VAR_KEYWORD)]
        __init__.__signature__ = inspect.Signature(parameters)
        cls.__init__ = __init__
        return cls

    return decorate
