"""Operations on whole models."""

from keras_tricks.models.adjust_logits import adjust_logits
from keras_tricks.models.check_gradients import check_gradients
from keras_tricks.models.convert import convert
from keras_tricks.models.fuse import fuse
from keras_tricks.models.jit import jit
from keras_tricks.models.learn_scale import learn_scale
from keras_tricks.models.recompute import recompute
from keras_tricks.models.recompute_statistics import recompute_statistics
from keras_tricks.models.retrain_classifier import retrain_classifier
from keras_tricks.models.tau_normalize import tau_normalize

__all__ = [
    "adjust_logits",
    "check_gradients",
    "convert",
    "fuse",
    "jit",
    "learn_scale",
    "recompute",
    "recompute_statistics",
    "retrain_classifier",
    "tau_normalize",
]
