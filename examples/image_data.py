"""Small image sets for the examples: scikit-learn's digits, or a data set from tensorflow_datasets."""

import dataclasses
import sys

import numpy as np

NAMES = ("digits", "mnist", "fashion_mnist", "cifar10")


def reader(name, data_dir=None):
    """A `tf.data.Dataset` of the (image, label) pairs for training, read one by one; images in 0..1, float32."""
    import tensorflow as tf

    if name == "digits":
        return tf.data.Dataset.from_tensor_slices(load(name)[0])
    import tensorflow_datasets as tfds

    examples = tfds.load(name, data_dir=data_dir, download=not data_dir, split="train", as_supervised=True)
    return examples.map(lambda image, label: (tf.cast(image, tf.float32) / 255, label), num_parallel_calls=2)


def load(name, data_dir=None):
    """((images, labels) for training, the same for testing), images in 0..1, float32; or exits with a message.

    `digits` comes with scikit-learn. The others are read from `data_dir`, a folder of prepared tensorflow_datasets, or
    downloaded by tensorflow_datasets if no folder is named.
    """
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        images, labels = (digits.images[..., None] / 16).astype("float32"), digits.target
        order = np.random.default_rng(0).permutation(len(labels))
        return [(images[part], labels[part]) for part in (order[360:], order[:360])]
    import tensorflow_datasets as tfds

    try:
        parts = tfds.load(
            name, data_dir=data_dir, download=not data_dir, split=["train", "test"], as_supervised=True, batch_size=-1
        )
    except Exception as error:  # a missing folder, no network, a broken download: tfds raises many kinds
        tried = f"prepared in {data_dir}" if data_dir else "in ~/tensorflow_datasets and could not be downloaded"
        sys.exit(
            f"\n{name} is not {tried} ({type(error).__name__}).\n"
            f"With a network, prepare it by:\n  python -c \"import tensorflow_datasets as tfds; tfds.load('{name}')\"\n"
            f"Without, copy the prepared folder from another machine and name the folder that holds {name}/ by "
            "--data-dir, or use --data digits, which needs nothing."
        )
    return [(np.asarray(images, "float32") / 255, np.asarray(labels)) for images, labels in parts]


@dataclasses.dataclass
class LongTailed:
    """A set with classes of very different sizes; `train` and `test` are (inputs, labels).

    `many` and `few` bound the groups of classes: of ten classes, the first four lie above `many`, the last three below
    `few`.
    """

    train: tuple
    test: tuple
    counts: np.ndarray
    names: list
    many: int
    few: int


def load_long_tailed(name, data_dir=None, imbalance=100):
    """A long-tailed version of one of the sets: the same examples each time, and the test set unchanged."""
    import tensorflow as tf

    import keras_tricks as kt

    train, test = load(name, data_dir)
    names = [str(j) for j in range(10)]
    if name not in ("digits", "mnist"):
        import tensorflow_datasets as tfds

        names = tfds.builder(name, data_dir=data_dir).info.features["label"].names
    examples = tf.data.Dataset.from_tensor_slices(tuple(train)).apply(kt.data.make_long_tailed(10, imbalance))
    images, labels = (part.numpy() for part in examples.batch(len(train[1])).get_single_element())
    counts = np.bincount(labels, minlength=10)
    return LongTailed((images, labels), tuple(test), counts, names, many=int(counts[4]), few=int(counts[6]))
