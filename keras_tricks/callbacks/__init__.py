"""Callbacks that see what training does, and steer it."""

from keras_tricks.callbacks.cyclic_lr import CyclicLR
from keras_tricks.callbacks.deferred_reweighting import DeferredReweighting
from keras_tricks.callbacks.early_stopping import EarlyStopping
from keras_tricks.callbacks.histograms import Histograms
from keras_tricks.callbacks.lr_finder import LRFinder, find_lr
from keras_tricks.callbacks.snapshot_ensemble import SnapshotEnsemble
from keras_tricks.callbacks.weight_averaging import WeightAveraging

__all__ = [
    "CyclicLR",
    "DeferredReweighting",
    "EarlyStopping",
    "Histograms",
    "LRFinder",
    "SnapshotEnsemble",
    "WeightAveraging",
    "find_lr",
]
