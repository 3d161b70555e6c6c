"""A network of 1,000 layers: plain, with residual connections, with layer normalisation too, and with ReZero.

    python examples/deep_rezero.py                                      # about a minute on two cores
    python examples/deep_rezero.py --layers 10000 --networks ReZero     # recomputes activations

Trains dense layers on images, and draws how the loss falls, and how much of its gradient reaches each depth.
"""

import argparse
import functools
import math
import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import image_data
import keras
import numpy as np
import rich.console
import rich.table
import tensorflow as tf
from keras import layers
from matplotlib.figure import Figure

import keras_tricks as kt

COLORS = {"plain": "tab:gray", "residual": "tab:red", "layer normalisation": "tab:blue", "ReZero": "tab:green"}


def block(network, width):
    """One layer of the network, as a model of its own."""
    x = inputs = keras.Input((width,), dtype=keras.config.dtype_policy().compute_dtype)
    dense = layers.Dense(width, "relu")
    if network == "ReZero":
        return keras.Model(inputs, kt.layers.ReZero(dense)(x))
    if network == "layer normalisation":
        x = layers.LayerNormalization()(x)
    return keras.Model(inputs, dense(x) if network == "plain" else layers.Add()([inputs, dense(x)]))


class Stack(layers.Layer):
    """`depth` blocks of the same form, each with its own weights: the kernels of all of them are one variable.

    A loop calls the one block with the weights of each in turn, so the graph is as small for 10,000 blocks as for ten.
    """

    def __init__(self, block, depth):
        super().__init__()
        self.depth = depth
        # As attributes, the block's own weights would be trained. They are only a pattern.
        self.pattern = lambda: block.trainable_variables
        self.step = lambda x, weights: block.stateless_call(weights, [], x)[0]

    def build(self, shape):
        def stack(v):
            return self.add_weight((self.depth, *v.shape), functools.partial(self.draw, v), name=v.name)

        self.stacks = [stack(v) for v in self.pattern()]

    def draw(self, v, shape, dtype):
        if v.name != "kernel":  # all blocks start with the same: biases and alpha with 0, gamma with 1
            return tf.repeat(v.value[None], self.depth, axis=0)
        limit = math.sqrt(6 / sum(v.shape[-2:]))  # Glorot's, for one layer
        return keras.random.uniform(shape, -limit, limit, dtype)

    def call(self, x, nudges=None):
        weights = [tf.convert_to_tensor(v) for v in self.stacks]
        if nudges is None:
            return tf.foldl(self.step, weights, initializer=x)
        return tf.foldl(lambda x, now: self.step(x + now[0], now[1:]), [nudges, *weights], initializer=x)

    def compute_output_shape(self, shape):
        return shape


def build(network, shape, options, recompute):
    stack = Stack(block(network, options.width), options.layers)
    if recompute:
        # A stack of stacks keeps the inputs of the inner ones, and the activations of one of these at a time.
        count = max(n for n in range(1, math.isqrt(options.layers) + 1) if options.layers % n == 0)
        part = Stack(block(network, options.width), options.layers // count)
        part.build((None, options.width))
        inputs = keras.Input((options.width,))
        stack = Stack(keras.Model(inputs, kt.layers.Recompute(part)(inputs)), count)
    head = [layers.LayerNormalization()] * (network == "layer normalisation") + [layers.Dense(10)]
    return keras.Sequential([keras.Input(shape), layers.Flatten(), layers.Dense(options.width), stack, *head])


def gradient_by_depth(network, images, labels, options):
    """The largest number in the gradient of the loss by the input of each layer, before training."""
    keras.utils.set_random_seed(options.seed)
    keras.config.set_dtype_policy("float64")  # float32 would overflow, and not show by how much
    flatten, first, stack, *head = build(network, images.shape[1:], options, recompute=False).layers
    keras.config.set_dtype_policy("float32")

    @tf.function
    def gradient(x):
        # Zeros that are added to the inputs of the layers have the gradients of these.
        nudges = tf.zeros((options.layers, *x.shape), x.dtype)
        with tf.GradientTape() as tape:
            tape.watch(nudges)
            x = stack(x, nudges)
            for layer in head:
                x = layer(x)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, x))
        return tf.reduce_max(tf.abs(tape.gradient(loss, nudges)), axis=(1, 2))

    return gradient(first(flatten(images))).numpy()


def train(network, train_set, test_set, options):
    """Trains one network; returns its losses, its test accuracy, and the milliseconds of a step."""
    keras.utils.set_random_seed(options.seed)
    model = build(network, train_set[0].shape[1:], options, options.recompute)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(options.rate), loss, metrics=["accuracy"], jit_compile=True)
    print(f"{network}: {model.count_params():,} weights", flush=True)
    ends = []
    timer = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: ends.append(time.perf_counter()))
    callbacks = [timer, keras.callbacks.TerminateOnNaN()]
    history = model.fit(*train_set, batch_size=options.batch, epochs=options.epochs, callbacks=callbacks, verbose=0)
    accuracy = model.evaluate(*test_set, batch_size=options.batch, verbose=0)[1]
    return history.history["loss"], accuracy, 1000 * np.median(np.diff(ends)) if len(ends) > 1 else math.nan


def verdict(results, options):
    """What is seen, in a sentence."""
    learned, ratios = [], []
    for network, (gradient, losses, accuracy, _) in results.items():
        words = "stays near chance with" if accuracy < 0.2 else "reaches"
        learned.append(f"{network} {words} {accuracy:.1%}" if np.isfinite(losses[-1]) else f"{network} overflows")
        if np.isfinite(gradient).all() and gradient[-1]:
            ratios.append(f"{gradient[0] / gradient[-1]:.0e} ({network})")
    epochs = f"{options.epochs} epoch{'s' * (options.epochs != 1)}"
    return (
        f"With {options.layers:,} layers, after {epochs}, {', '.join(learned)}; before training, the gradient at the "
        f"first layer is that at the last times {', '.join(ratios) or 'what float64 does not hold'}."
    )


def draw(results, title, file):
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for network, (gradient, losses, _, _) in results.items():
        label = network if np.isfinite(losses).any() else f"{network}: not finite"
        left.plot(range(1, len(losses) + 1), losses, color=COLORS[network], label=label)
        with np.errstate(divide="ignore"):
            right.plot(range(1, len(gradient) + 1), np.log10(gradient), color=COLORS[network], label=network)
    left.set(xlabel="epoch", ylabel="training loss")
    left.legend()
    lowest, highest = np.log10([np.finfo("float32").smallest_subnormal, np.finfo("float32").max])
    right.axhspan(lowest, highest, color="0.92", label="range of float32", zorder=0)
    right.set(xlabel="layer", ylabel="log10 of the largest gradient before training")
    right.legend()
    figure.suptitle(title)
    figure.savefig(file, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=image_data.NAMES)
    parser.add_argument("--data-dir", help="folder of prepared tensorflow_datasets")
    parser.add_argument("--networks", nargs="+", default=list(COLORS), choices=list(COLORS), metavar="NETWORK")
    for name, default in {"layers": 1000, "width": 32, "epochs": 10, "batch": 120, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate (default 0.001)")
    parser.add_argument("--recompute", action=argparse.BooleanOptionalAction, help="default: from 2,000 layers on")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/deep_rezero"))
    options = parser.parse_args()
    for name in ("layers", "width", "epochs", "batch"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1. Received: {getattr(options, name)}")
    options.recompute = options.layers >= 2000 if options.recompute is None else options.recompute
    train_set, test_set = image_data.load(options.data, options.data_dir)
    whole = len(train_set[1]) // options.batch * options.batch  # a smaller last batch would be compiled anew
    train_set = [part[:whole] for part in train_set]
    options.out.mkdir(parents=True, exist_ok=True)

    tf.get_logger().setLevel("ERROR")  # each network is traced anew, and TensorFlow would advise against it
    title = f"{options.data}, {options.layers:,} layers of {options.width} units"
    columns = ("", "test accuracy", "training loss", "gradient at layer 1", "at the last", "ms a step")
    table = rich.table.Table(*columns, title=title)
    results = {}
    for network in options.networks:
        gradient = gradient_by_depth(network, train_set[0][:8], train_set[1][:8], options)
        losses, accuracy, step = train(network, train_set, test_set, options)
        results[network] = gradient, losses, accuracy, step
        numbers = [f"{accuracy:.1%}", f"{losses[-1]:.3f}", f"{gradient[0]:.0e}", f"{gradient[-1]:.0e}", f"{step:.0f}"]
        table.add_row(network, *numbers)
    rich.console.Console(width=110).print("", table)
    print(verdict(results, options))
    draw(results, title, options.out / "deep_rezero.png")
    print(f"Picture: {options.out / 'deep_rezero.png'}")


if __name__ == "__main__":
    main()
