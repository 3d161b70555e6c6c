"""Initial weights and activations: what too small and too large a range does to a network of several layers.

    python examples/initial_weights.py
    python examples/initial_weights.py --data mnist --data-dir DIR    # a folder of tensorflow_datasets

Asks of a handwritten digit whether it is odd. Draws the outputs of each layer at the start, for tanh and for logistic
units (sigmoids) and for four ranges of initial weights, watches the first step, and trains. Then it compares
activations, each with the range that fits it; among them none, and a model that has no hidden layers at all.
"""

import argparse
import functools
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import image_data
import keras
import numpy as np
import rich.console
import rich.table
from matplotlib.figure import Figure

import keras_tricks as kt


def uniform(factor):
    """Weights in ± factor · sqrt(6 / (inputs + outputs)), so many times the range of Glorot and Bengio, 2010."""
    return keras.initializers.VarianceScaling(factor**2, "fan_avg", "uniform")


# Functions that make an initializer: one instance would give the same weights to all layers of the same shape.
RANGES = {
    "Glorot / 4": functools.partial(uniform, 1 / 4),
    "Glorot": keras.initializers.GlorotUniform,
    "4 x Glorot": kt.initializers.LogisticGlorotUniform,
    "16 x Glorot": functools.partial(uniform, 16),
}
OTHERS = {
    "softsign": keras.initializers.GlorotUniform,
    "relu": keras.initializers.HeUniform,
    "gelu": keras.initializers.HeUniform,
    None: keras.initializers.GlorotUniform,
}


def load(options):
    """((images, odd or not) for training, the same for testing); the pixels have mean 0 and variance 1."""
    train, test = image_data.load(options.data, options.data_dir)
    mean, deviation = train[0].mean(), train[0].std()
    return [((images.reshape(len(images), -1) - mean) / deviation, labels % 2) for images, labels in (train, test)]


def run(data, activation, initializer, depth, options):
    """Trains one network; returns what was seen in its first step, and the results."""
    keras.utils.set_random_seed(options.seed)
    train, test = data
    x = inputs = keras.Input(train[0].shape[1:])
    hidden = []
    for number in range(1, depth + 1):
        x = keras.layers.Dense(64, activation, kernel_initializer=initializer(), name=f"hidden{number}")(x)
        hidden.append(x)
    model = keras.Model(inputs, keras.layers.Dense(2, name="output")(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(options.rate, momentum=0.9), loss, metrics=["accuracy"])
    first = [part[:256] for part in train]
    # The outputs themselves, for the picture. Histograms counts by size, and all that logistic units give is near 0.5.
    outputs = keras.Model(inputs, hidden).predict(first[0], verbose=0) if hidden else []
    watch = kt.callbacks.Histograms(what=("gradients", "activations"))
    model.fit(*first, batch_size=256, callbacks=[watch], verbose=0)
    history = model.fit(*train, batch_size=32, epochs=options.epochs, verbose=0).history
    return {
        "outputs": outputs,
        "gradients": [r["norm"] for r in watch.history if r["what"] == "gradients" and r["rank"] == 2],
        "layers": [r for r in watch.history if r["what"] == "activations"][:depth],
        "findings": ", ".join(finding.kind for finding in watch.diagnosis()),
        "losses": history["loss"],
        "train": model.evaluate(*train, batch_size=500, verbose=0)[1],
        "test": model.evaluate(*test, batch_size=500, verbose=0)[1],
    }


def compare_ranges(data, options):
    """Each unit with each range: the table, and what `draw` needs."""
    columns = ("spread, first", "spread, last", "saturated, last", "gradient, first", "gradient, output")
    table = rich.table.Table("unit", "range", *columns, "found in the first step", "training accuracy")
    table.title = f"Outputs and gradients of the first and last of {options.depth} hidden layers in the first step"
    results = {}
    for activation in ("tanh", "sigmoid"):
        for name, initializer in RANGES.items():
            found = results[activation, name] = run(data, activation, initializer, options.depth, options)
            layers, gradients = found["layers"], found["gradients"]
            cells = [f"{layers[0]['std']:.3f}", f"{layers[-1]['std']:.1e}", f"{layers[-1]['saturated']:.0%}"]
            cells += [f"{gradients[0]:.1e}", f"{gradients[-1]:.1e}", found["findings"], f"{found['train']:.1%}"]
            table.add_row(activation, name, *cells)
        table.add_section()
    rich.console.Console(width=120).print(table)
    return results


def compare_activations(data, ranges, options):
    """Each activation with the range that fits it, and a model without hidden layers."""
    table = rich.table.Table("activation", "training loss", "training accuracy", "test accuracy")
    results = {"tanh": ranges["tanh", "Glorot"], "sigmoid": ranges["sigmoid", "4 x Glorot"]}
    for activation, initializer in OTHERS.items():
        results[activation or "none"] = run(data, activation, initializer, options.depth, options)
    results["no hidden layers"] = run(data, None, None, 0, options)
    for name, found in results.items():
        table.add_row(name, f"{found['losses'][-1]:.3f}", f"{found['train']:.1%}", f"{found['test']:.1%}")
    rich.console.Console(width=120).print(table)
    return results


def verdict(ranges, activations, count):
    """What is seen, in words."""
    said = []
    for unit in ("tanh", "sigmoid"):
        accuracy = {name: found["train"] for (of, name), found in ranges.items() if of == unit}
        best, worst = max(accuracy, key=accuracy.get), min(accuracy, key=accuracy.get)
        most, fewest = f"most from {best} ({accuracy[best]:.1%})", f"fewest from {worst} ({accuracy[worst]:.1%})"
        said.append(f"{unit} gets {most} and {fewest}")
    deep, linear = activations["none"]["train"], activations["no hidden layers"]["train"]
    others = [found["train"] for name, found in activations.items() if name not in ("none", "no hidden layers")]
    error = np.sqrt(2 * linear * (1 - linear) / count)
    like = "like" if abs(deep - linear) <= 2 * error else "unlike"
    return (
        f"Training images that are right after training: {'; '.join(said)}. Without a non-linearity the layers get "
        f"{deep:.1%} right, {like} a model without hidden layers ({linear:.1%}); with one, {min(others):.1%} to "
        f"{max(others):.1%}."
    )


def draw(ranges, activations, path):
    """Outputs by layer at the start, gradients by layer in the first step, and the training losses."""
    figure = Figure(figsize=(12, 9), layout="constrained")
    panels = figure.subplots(3, 4)
    colors = dict(zip(RANGES, ("tab:blue", "tab:green", "tab:orange", "tab:red"), strict=True))
    for panel, ((unit, name), found) in zip(panels.flat, ranges.items(), strict=False):
        for number, outputs in enumerate(found["outputs"], start=1):
            share, edges = np.histogram(outputs, 60, (-1.0 if unit == "tanh" else 0.0, 1.0))
            panel.stairs(0.9 * share / share.max() - number, edges, baseline=-number, fill=True, color=colors[name])
        panel.set_yticks(-np.arange(1, number + 1), [f"layer {n}" for n in range(1, number + 1)], fontsize=8)
        panel.set_title(f"{unit}, {name}", fontsize=10)
    for (unit, name), found in ranges.items():
        style = {"color": colors[name], "linestyle": "-" if unit == "tanh" else "--", "label": name}
        style["linewidth"] = 3.5 - 0.8 * list(RANGES).index(name)  # so that a curve behind another is seen
        panels[2, 0].semilogy(range(1, len(found["gradients"]) + 1), found["gradients"], marker=".", **style)
        panels[2, 1 if unit == "tanh" else 2].plot(range(1, len(found["losses"]) + 1), found["losses"], **style)
    for name, found in activations.items():
        panels[2, 3].plot(range(1, len(found["losses"]) + 1), found["losses"], label=name)
    panels[2, 0].set(title="gradients, first step (dashed: sigmoid)", xlabel="kernel, from the input", ylabel="norm")
    for panel, title in zip(panels[2, 1:], ("tanh", "sigmoid", "activations"), strict=True):
        panel.set(title=f"training loss: {title}", xlabel="epoch", ylim=(0, 0.9))
        panel.legend(fontsize=7)
    for panel in panels[2]:
        panel.title.set_fontsize(10)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=["digits", "mnist"])
    parser.add_argument("--data-dir", help="folder of prepared tensorflow_datasets")
    parser.add_argument("--depth", type=int, default=6, help="hidden layers (default 6)")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--rate", type=float, default=0.01, help="learning rate of all runs (default 0.01)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/initial_weights"))
    options = parser.parse_args()
    if min(options.depth, options.epochs) < 1:
        parser.error(f"--depth and --epochs must be at least 1. Received: {options.depth}, {options.epochs}")
    data = load(options)
    ranges = compare_ranges(data, options)
    activations = compare_activations(data, ranges, options)
    print(verdict(ranges, activations, len(data[0][1])))
    options.out.mkdir(parents=True, exist_ok=True)
    draw(ranges, activations, options.out / "initial_weights.png")
    print(f"Picture: {options.out / 'initial_weights.png'}")


if __name__ == "__main__":
    main()
