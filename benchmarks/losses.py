"""Seconds of each classification loss and metric against its counterpart in Keras: `make bench`.

Losses with their gradient, metrics with their update, in a graph and under XLA; for batches of 256 examples and for
1,024 positions in sequences. How figures are taken: benchmarks/speed.py. Rows go to benchmarks/results/losses.csv.
"""

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import speed
import tensorflow as tf

import keras_tricks as kt

RESULTS = pathlib.Path(__file__).parent / "results" / "losses.csv"
MODES = {"graph": False, "XLA": True}
SHAPES = ((256, 10), (256, 1000), (8, 128, 8000))


def data(shape):
    random = np.random.default_rng(0)
    return tf.constant(random.integers(0, shape[-1], shape[:-1])), tf.constant(random.normal(size=shape), "float32")


def waited_for(step):
    def run():
        step()
        tf.test.experimental.sync_devices()

    return run


def with_gradient(loss, shape, xla):
    labels, logits = data(shape)

    @tf.function(jit_compile=xla, autograph=False)
    def step():
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = loss(labels, logits)
        return value, tape.gradient(value, logits)

    return waited_for(step)


def update(metric, shape, xla):
    labels, logits = data(shape)
    return waited_for(tf.function(lambda: metric.update_state(labels, logits), jit_compile=xla, autograph=False))


def losses_and_metrics():
    for shape in SHAPES:
        counts = np.linspace(1000, 10, shape[-1]).astype(int)
        losses = {
            "Keras' cross-entropy": keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            "BalancedSoftmax": kt.losses.BalancedSoftmax(counts),
            "LogitAdjusted": kt.losses.LogitAdjusted(counts),
            "ClassBalanced": kt.losses.ClassBalanced(counts),
            "ClassBalanced, focal": kt.losses.ClassBalanced(counts, base="focal"),
            "ClassBalanced, sigmoid_focal": kt.losses.ClassBalanced(counts, base="sigmoid_focal"),
            "SparseFocal": kt.losses.SparseFocal(),
            "LDAM": kt.losses.LDAM(counts),
            "LabelAwareSmoothing": kt.losses.LabelAwareSmoothing(counts),
        }
        metrics = {
            "Keras' accuracy": keras.metrics.SparseCategoricalAccuracy,
            "BalancedAccuracy": lambda classes=shape[-1]: kt.metrics.BalancedAccuracy(classes),
        }
        where = "x".join(map(str, shape))
        for mode, xla in MODES.items():
            yield f"loss, {where}, {mode}", {name: with_gradient(loss, shape, xla) for name, loss in losses.items()}
            yield f"metric, {where}, {mode}", {name: update(make(), shape, xla) for name, make in metrics.items()}


if __name__ == "__main__":
    speed.run(((losses_and_metrics, 30),), RESULTS)
