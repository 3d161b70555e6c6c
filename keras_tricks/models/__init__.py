"""Operations on whole models."""

from keras_tricks.models.classifier import adjust_logits, learn_scale, retrain_classifier, tau_normalize
from keras_tricks.models.convert import convert
from keras_tricks.models.fuse import fuse
from keras_tricks.models.jit import jit
from keras_tricks.models.recompute import recompute
from keras_tricks.models.recompute_statistics import recompute_statistics

__all__ = [
    "adjust_logits",
    "convert",
    "fuse",
    "jit",
    "learn_scale",
    "recompute",
    "recompute_statistics",
    "retrain_classifier",
    "tau_normalize",
]
