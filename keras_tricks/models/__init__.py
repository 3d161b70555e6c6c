"""Operations on whole models."""

from keras_tricks.models.classifier import adjust_logits, learn_scale, retrain_classifier, tau_normalize
from keras_tricks.models.convert import convert
from keras_tricks.models.fuse import fuse
from keras_tricks.models.jit import jit
from keras_tricks.models.recompute import recompute

__all__ = [
    "adjust_logits",
    "convert",
    "fuse",
    "jit",
    "learn_scale",
    "recompute",
    "retrain_classifier",
    "tau_normalize",
]
