"""Overfitting, and what is done about it: one small network trained in seven ways, with its curves side by side.

    python examples/overfitting.py                             # 200 of scikit-learn's digits
    python examples/overfitting.py --data imdb --data-dir DIR  # film reviews, as bags of 10,000 words

As it is; smaller; larger; with an L1 or L2 penalty on its weights; with dropout; and stopped when the gap between
validation and training keeps growing. All curves are cross-entropies without the penalties, so that they compare.
"""

import argparse
import dataclasses
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import image_data
import keras
import numpy as np
import review_data
import rich.console
import rich.table
from matplotlib.figure import Figure

import keras_tricks as kt


@dataclasses.dataclass
class Budget:
    """What suits a data set."""

    examples: int
    batch: int
    epochs: int
    rate: float  # of Adam
    sizes: tuple  # units of each hidden layer: original, smaller, larger
    penalties: tuple  # L1, L2
    strip: int  # epochs over which early stopping takes the mean of the gap

    def ways(self):
        """The arguments of `train` for each network."""
        size, smaller, larger = self.sizes
        return {
            "original": {"units": size},
            "smaller": {"units": smaller},
            "larger": {"units": larger},
            "L1": {"units": size, "penalty": keras.regularizers.L1(self.penalties[0])},
            "L2": {"units": size, "penalty": keras.regularizers.L2(self.penalties[1])},
            "dropout": {"units": size, "dropout": 0.5},
            "early stopping": {"units": size, "stop": True},
        }


REVIEWS = Budget(15_000, 512, 20, 1e-3, (16, 4, 512), (1e-3, 1e-3), 2)
IMAGES = Budget(200, 32, 80, 3e-3, (64, 8, 512), (2e-3, 1e-2), 5)


def load(name, data_dir, count):
    """(inputs, labels) for training, for validation and for the test. Inputs are vectors."""
    if name == "imdb":
        return review_data.load(data_dir or ".", count)
    (images, labels), test = image_data.load(name, data_dir)
    # Few images are learned by heart soon, but this does little harm unless some labels are wrong: here about a tenth.
    random, mislabelled = np.random.default_rng(0), labels[:count].copy()
    wrong = random.random(count) < 0.1
    mislabelled[wrong] = random.integers(0, 10, wrong.sum())
    parts = [(images[:count], mislabelled), (images[count:][:2000], labels[count:][:2000]), test]
    return [(images.reshape(len(images), -1), labels) for images, labels in parts]


def train(data, budget, seed, units, penalty=None, dropout=0.0, stop=False):
    """Trains one network; returns its two curves, its size, its test accuracy, and why it was stopped."""
    keras.utils.set_random_seed(seed)
    train_set, validation, test = data
    inputs = keras.Input(train_set[0].shape[1:], dtype=train_set[0].dtype.name)
    x = keras.ops.cast(inputs, "float32")
    for _ in range(2):
        x = keras.layers.Dense(units, "relu", kernel_regularizer=penalty)(x)
        x = keras.layers.Dropout(dropout)(x) if dropout else x
    model = keras.Model(inputs, keras.layers.Dense(int(test[1].max()) + 1)(x))
    # The loss contains the penalty; this metric is the same without it.
    metric = keras.metrics.SparseCategoricalCrossentropy(name="cross_entropy", from_logits=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(budget.rate), loss, metrics=[metric, "accuracy"])
    stopping = kt.callbacks.EarlyStopping(
        # After training the model has the weights that were best in validation.
        "gap",
        "val_cross_entropy",
        "cross_entropy",
        strip=budget.strip,
        min_delta=0.02,
        restore_best_weights=True,
    )
    history = model.fit(
        *train_set,
        batch_size=budget.batch,
        epochs=budget.epochs,
        validation_data=validation,
        validation_batch_size=1000,
        callbacks=[stopping] if stop else [],
        verbose=0,
    ).history
    accuracy = model.evaluate(*test, batch_size=1000, verbose=0, return_dict=True)["accuracy"]
    curves = np.array([history["cross_entropy"], history["val_cross_entropy"]])
    return {"curves": curves, "weights": model.count_params(), "accuracy": accuracy, "why": stopping.stopped_because}


def tabulate(results):
    validation = ("validation: last", "lowest", "in epoch")
    table = rich.table.Table("", "weights", "training", *validation, "gap", "test accuracy")
    for name, found in results.items():
        training, validation = found["curves"]
        table.add_row(
            name,
            f"{found['weights']:,}",
            *(f"{loss:.3f}" for loss in (training[-1], validation[-1], validation.min())),
            f"{validation.argmin() + 1} of {len(validation)}",
            f"{validation[-1] - training[-1]:.3f}",
            f"{found['accuracy']:.1%}",
        )
    rich.console.Console(width=110).print(table)


def verdict(results, tested):
    """What is seen, in words."""
    original = results["original"]
    validation = original["curves"][1]
    lowest = f"lowest in epoch {validation.argmin() + 1} of {len(validation)}, {validation.min():.3f}"
    if validation[-1] > 1.02 * validation.min():
        said = f"The original network overfits: its validation loss is {lowest}, and {validation[-1]:.3f} in the last"
    else:
        said = f"The original network does not overfit yet: its validation loss is {lowest}"
    gaps = {name: found["curves"][1][-1] - found["curves"][0][-1] for name, found in results.items()}
    narrow, wide = min(gaps, key=gaps.get), max(gaps, key=gaps.get)
    said += f". The gap at the end is widest for {wide} ({gaps[wide]:.3f}), narrowest for {narrow} ({gaps[narrow]:.3f})"
    best = max(results, key=lambda name: results[name]["accuracy"])
    right = [original["accuracy"], results[best]["accuracy"]]
    if best == "original":
        return f"{said}. None has a better test accuracy than the original."
    # Two standard errors of the difference, for a test set of this size, as if the two erred independently.
    chance = 2 * np.sqrt(sum(share * (1 - share) / tested for share in right))
    more = "more" if right[1] - right[0] > chance else "no more"
    return (
        f"{said}. The best test accuracy, of {best}, is {100 * (right[1] - right[0]):.1f} points above the original's: "
        f"{more} than chance explains with this test set ({100 * chance:.1f})."
    )


def draw(results, path):
    """The curves of each network; the original's validation is in each panel, to compare with."""
    figure = Figure(figsize=(12, 5.6), layout="constrained")
    panels = list(figure.subplots(2, 4, sharex=True, sharey=True).flat)
    original = results["original"]["curves"][1]
    for panel, (name, found) in zip(panels, results.items(), strict=False):
        training, validation = found["curves"]
        epochs = range(1, len(training) + 1)
        panel.plot(range(1, len(original) + 1), original, color="0.75", linewidth=3, label="the original's validation")
        panel.plot(epochs, training, color="tab:blue", linestyle="--", label="training")
        panel.plot(epochs, validation, color="tab:orange", label="validation")
        panel.plot(validation.argmin() + 1, validation.min(), "o", color="tab:orange", label="its lowest")
        panel.set_title(f"{name}: test accuracy {found['accuracy']:.1%}", fontsize=10)
        panel.grid(alpha=0.3)
    panels[0].set_ylim(0, 1.6 * original.max())
    handles, labels = panels[0].get_legend_handles_labels()
    panels[3].tick_params(labelbottom=True)  # it has none below it
    panels[7].axis("off")
    panels[7].legend(handles, labels, loc="center")
    figure.supxlabel("epoch")
    figure.supylabel("cross-entropy, without penalties")
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=["imdb", *image_data.NAMES])
    parser.add_argument("--data-dir", help="folder of the reviews, or of prepared tensorflow_datasets")
    parser.add_argument("--examples", type=int, help=f"default {REVIEWS.examples} for imdb, else {IMAGES.examples}")
    parser.add_argument("--epochs", type=int, help=f"default {REVIEWS.epochs} for imdb, else {IMAGES.epochs}")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/overfitting"))
    options = parser.parse_args()
    budget = REVIEWS if options.data == "imdb" else IMAGES
    given = {name: vars(options)[name] for name in ("examples", "epochs") if vars(options)[name] is not None}
    if min(given.values(), default=1) < 1:
        parser.error(f"--epochs and --examples must be at least 1. Received: {given}")
    budget = dataclasses.replace(budget, **given)
    data = load(options.data, options.data_dir, budget.examples)
    if not len(data[1][1]):
        parser.error(f"--examples must leave some for validation. Received: {budget.examples}")
    results = {}
    for name, way in budget.ways().items():
        results[name] = train(data, budget, options.seed, **way)
        print(f"{name}: trained for {len(results[name]['curves'][0])} epochs", flush=True)
    print(f"Early stopping: {results['early stopping']['why'] or 'the gap never grew enough to stop.'}")
    tabulate(results)
    print(verdict(results, len(data[2][1])))
    options.out.mkdir(parents=True, exist_ok=True)
    draw(results, options.out / "overfitting.png")
    print(f"Picture: {options.out / 'overfitting.png'}")


if __name__ == "__main__":
    main()
