"""Operations on whole models."""

from keras_tricks.models.convert import convert
from keras_tricks.models.fuse import fuse
from keras_tricks.models.jit import jit
from keras_tricks.models.recompute import recompute

__all__ = ["convert", "fuse", "jit", "recompute"]
