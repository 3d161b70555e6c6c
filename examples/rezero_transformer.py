"""A deep transformer without normalisation and without warm-up: ReZero against the usual layer normalisation.

    python examples/rezero_transformer.py                     # on Python's own manual, about a minute on two cores
    python examples/rezero_transformer.py --text FILE --depth 24 --steps 2000

Trains the same character model three times: with residual connections alone, with layer normalisation before each part
of a block, and with ReZero. Prints each model's loss on text that it has not seen.
"""

import argparse
import os
import pathlib
import pydoc_data.topics

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rich.console
import rich.table
from keras import layers

import keras_tricks as kt


def block(x, width, kind):
    """Self-attention, then two dense layers, each with its residual connection."""

    def part(layer):
        if kind == "ReZero":
            return lambda x: kt.layers.ReZero(layer)(x)
        if kind == "layer normalisation":
            return lambda x: x + layer(layers.LayerNormalization()(x))
        return lambda x: x + layer(x)

    x = part(CausalAttention(width))(x)
    return part(keras.Sequential([layers.Dense(4 * width, "relu"), layers.Dense(width)]))(x)


@keras.saving.register_keras_serializable(package="examples")
class CausalAttention(layers.Layer):
    """Self-attention in which a position sees itself and what came before."""

    def __init__(self, width, heads=4, **kwargs):
        super().__init__(**kwargs)
        self.width, self.heads = width, heads
        self.attention = layers.MultiHeadAttention(heads, width // heads)

    def build(self, shape):
        self.attention.build(shape, shape)

    def call(self, x):
        return self.attention(x, x, use_causal_mask=True)

    def compute_output_shape(self, shape):
        return shape

    def get_config(self):
        return {**super().get_config(), "width": self.width, "heads": self.heads}


def transformer(characters, length, width, depth, kind):
    tokens = keras.Input((length,), dtype="int32")
    positions = keras.ops.arange(length)
    x = layers.Embedding(characters, width)(tokens) + layers.Embedding(length, width)(positions)
    for _ in range(depth):
        x = block(x, width, kind)
    if kind == "layer normalisation":
        x = layers.LayerNormalization()(x)
    return keras.Model(tokens, layers.Dense(characters, dtype="float32")(x))


def windows(codes, length, count, seed):
    """`count` pieces of the text, and for each of their characters the one that follows it."""
    starts = np.random.default_rng(seed).integers(0, len(codes) - length - 1, count)
    pieces = codes[starts[:, None] + np.arange(length + 1)]
    return pieces[:, :-1], pieces[:, 1:]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=pathlib.Path, help="a text file; default: the manual that comes with Python")
    for name, default in {"depth": 12, "width": 32, "length": 32, "batch": 32, "steps": 200, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()

    manual = "\n".join(pydoc_data.topics.topics.values())
    text = options.text.read_text(encoding="utf-8") if options.text else manual
    names, codes = np.unique(np.array(list(text)), return_inverse=True)
    unseen = len(codes) // 10
    train = windows(codes[:-unseen], options.length, options.batch * options.steps, options.seed)
    test = windows(codes[-unseen:], options.length, 512, options.seed)

    table = rich.table.Table("", "loss on unseen text, nats a character", title=f"{options.depth} blocks")
    for kind in ("residual alone", "layer normalisation", "ReZero"):
        keras.utils.set_random_seed(options.seed)
        model = transformer(len(names), options.length, options.width, options.depth, kind)
        model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        print(f"{kind}:")
        model.fit(*train, batch_size=options.batch, epochs=1, verbose=2)
        table.add_row(kind, f"{model.evaluate(*test, batch_size=64, verbose=0):.3f}")
    rich.console.Console().print(table)


if __name__ == "__main__":
    main()
