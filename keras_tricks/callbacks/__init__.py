"""Callbacks that see what training does, and steer it."""

from keras_tricks.callbacks.cyclic_lr import CyclicLR
from keras_tricks.callbacks.histograms import Histograms

__all__ = ["CyclicLR", "Histograms"]
