"""Drop-in layers, written in `keras.ops`: they run on every Keras backend."""

from keras_tricks.layers.ws_conv import WSConv1D, WSConv2D, WSConv3D

__all__ = ["WSConv1D", "WSConv2D", "WSConv3D"]
