"""Seconds of each layer against the Keras layer that it replaces, and of fused models against plain ones: `make bench`.

Forward and backward pass of one layer at batch 64, in a graph and under XLA; for fused models the forward pass alone.
How figures are taken: benchmarks/speed.py. Rows go to benchmarks/results/layers.csv.
"""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import speed
import tensorflow as tf
from keras import layers

import keras_tricks as kt

RESULTS = pathlib.Path(__file__).parent / "results" / "layers.csv"
BATCH = 64
MODES = {"graph": False, "XLA": True}


def normal(shape, seed=0):
    return tf.constant(np.random.default_rng(seed).standard_normal(shape, dtype="float32"))


def both_passes(layer, shape, xla):
    """A function that runs the layer and its gradient with respect to its input and its weights."""
    x = normal((BATCH, *shape))
    gradient = normal(layer(x).shape, seed=1)

    @tf.function(jit_compile=xla, autograph=False)
    def step():
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True)
        return tape.gradient(y, [x, *(v.value for v in layer.trainable_variables)], output_gradients=gradient)

    def run():
        step()
        tf.test.experimental.sync_devices()

    return run


class Branches(keras.layers.Layer):
    """ACConv2D written out in layers: the sum of three convolutions, each with batch normalisation."""

    def __init__(self, filters):
        super().__init__()
        self.branches = [
            keras.Sequential([layers.Conv2D(filters, k, padding="same", use_bias=False), layers.BatchNormalization()])
            for k in ((3, 3), (1, 3), (3, 1))
        ]

    def call(self, x, training=None):
        return sum(branch(x, training=training) for branch in self.branches)


def one_layer():
    for mode, xla in MODES.items():
        for size, channels in ((32, 32), (16, 64)):
            shape = (size, size, channels)
            where = f"{size}x{size}x{channels}, {mode}"
            plain = layers.Conv2D(channels, 3, padding="same")
            standardized = kt.layers.WSConv2D(channels, 3, padding="same")
            yield (
                f"convolution, {where}",
                {"Conv2D": both_passes(plain, shape, xla), "WSConv2D": both_passes(standardized, shape, xla)},
            )
            yield (
                f"three branches, {where}",
                {
                    "3 Conv2D, 3 BatchNormalization": both_passes(Branches(channels), shape, xla),
                    "ACConv2D": both_passes(kt.layers.ACConv2D(channels, 3, padding="same"), shape, xla),
                    "one Conv2D": both_passes(layers.Conv2D(channels, 3, padding="same"), shape, xla),
                },
            )
        for shape in ((32, 32, 64), (8, 8, 256)):
            yield (
                f"normalisation, {'x'.join(map(str, shape))}, {mode}",
                {
                    "BatchNormalization": both_passes(layers.BatchNormalization(), shape, xla),
                    "ExtendedBatchNormalization": both_passes(kt.layers.ExtendedBatchNormalization(), shape, xla),
                },
            )


def network(convolution, normalize=False):
    x = inputs = keras.Input((32, 32, 3))
    for filters, strides in ((32, 1), (32, 2), (64, 2)):
        x = convolution(filters, 3, padding="same", strides=strides)(x)
        x = layers.ReLU()(layers.BatchNormalization()(x) if normalize else x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def inference(model):
    x = normal((BATCH, 32, 32, 3))
    call = tf.function(lambda: model(x, training=False), autograph=False)

    def run():
        call()
        tf.test.experimental.sync_devices()

    return run


def fused():
    """Forward passes of the same network: plain, as it was trained, and fused."""
    plain = network(layers.Conv2D)
    for name, model in {
        "ACConv2D": network(kt.layers.ACConv2D),
        "WSConv2D": network(kt.layers.WSConv2D),
        "Conv2D, BatchNormalization": network(layers.Conv2D, normalize=True),
    }.items():
        variants = {"plain Conv2D": plain, "as trained": model, "fused": kt.models.fuse(model)}
        yield f"inference, {name}", {variant: inference(m) for variant, m in variants.items()}


if __name__ == "__main__":
    speed.run(((one_layer, 20), (fused, 50)), RESULTS)
