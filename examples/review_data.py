"""Film reviews for the examples: the texts of Maas et al., 2011, as bags of words."""

import gzip
import itertools
import pathlib
import sys

import numpy as np


def read(file, count):
    """The first reviews of a file, as texts and labels; or exits with a message."""
    try:
        with gzip.open(file, "rt", encoding="utf-8", newline="\n") as lines:
            rows = [line.rstrip("\n").split("\t", 2) for line in itertools.islice(lines, count)]
    except OSError as error:
        sys.exit(
            f"\nThe reviews cannot be read from {file} ({type(error).__name__}).\nTake them from "
            "https://ai.stanford.edu/~amaas/data/sentiment/, write train.tsv.gz and test.tsv.gz with one review a "
            "line, as label (0 or 1), rating and text with tabs between them, in mixed order, and name their folder by "
            "--data-dir. Or use --data digits, which needs nothing."
        )
    return np.array([text for _, _, text in rows]), np.array([label for label, _, _ in rows], "int32")


def load(folder, count, words=10_000):
    """(bags of words, labels) of `count` reviews for training, and of 10,000 each for validation and for the test."""
    import keras

    folder = pathlib.Path(folder)
    texts, labels = read(folder / "train.tsv.gz", count + 10_000)
    parts = [(texts[:count], labels[:count]), (texts[count:], labels[count:]), read(folder / "test.tsv.gz", 10_000)]
    vectorize = keras.layers.TextVectorization(words, output_mode="multi_hot")
    vectorize.adapt(texts[:count])

    def bags(texts):  # in bytes, which take a quarter of the memory
        pieces = [texts[start : start + 1000] for start in range(0, len(texts), 1000)]
        return np.concatenate([np.asarray(vectorize(piece), "uint8") for piece in pieces])

    return [(bags(texts), labels) for texts, labels in parts]
