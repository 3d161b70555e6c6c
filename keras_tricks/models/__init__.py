"""Operations on whole models."""

from keras_tricks.models.jit import jit

__all__ = ["jit"]
