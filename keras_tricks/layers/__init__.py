"""Drop-in layers, written in `keras.ops`: they run on every Keras backend."""

from keras_tricks.layers.ac_conv import ACConv2D
from keras_tricks.layers.extended_batch_normalization import ExtendedBatchNormalization
from keras_tricks.layers.normalized_dense import NormalizedDense
from keras_tricks.layers.recompute import Recompute, recompute_call
from keras_tricks.layers.rezero import ReZero, ReZeroAdd
from keras_tricks.layers.scaled_activation import ScaledActivation
from keras_tricks.layers.ws_conv import WSConv1D, WSConv2D, WSConv3D, WSDense, WSDepthwiseConv2D

__all__ = [
    "ACConv2D",
    "ExtendedBatchNormalization",
    "NormalizedDense",
    "ReZero",
    "ReZeroAdd",
    "Recompute",
    "ScaledActivation",
    "WSConv1D",
    "WSConv2D",
    "WSConv3D",
    "WSDense",
    "WSDepthwiseConv2D",
    "recompute_call",
]
