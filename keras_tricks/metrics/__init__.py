"""Metrics for imbalanced classes, written in `keras.ops`: they run on every Keras backend."""

from keras_tricks.metrics.balanced_accuracy import BalancedAccuracy
from keras_tricks.metrics.recall_by_class import plot_recalls, recall_by_class
from keras_tricks.metrics.shot_accuracy import ShotAccuracy

__all__ = [
    "BalancedAccuracy",
    "ShotAccuracy",
    "plot_recalls",
    "recall_by_class",
]
