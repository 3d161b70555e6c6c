"""Losses for classes of very different sizes, on logits, for integer labels or class probabilities."""

from keras_tricks.losses.balanced_softmax import BalancedSoftmax
from keras_tricks.losses.class_balanced import ClassBalanced
from keras_tricks.losses.focal import SparseFocal
from keras_tricks.losses.label_aware_smoothing import LabelAwareSmoothing
from keras_tricks.losses.ldam import LDAM
from keras_tricks.losses.logit_adjusted import LogitAdjusted

__all__ = ["LDAM", "BalancedSoftmax", "ClassBalanced", "LabelAwareSmoothing", "LogitAdjusted", "SparseFocal"]
