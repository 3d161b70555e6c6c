"""Nine learning-rate schedules with the same peak on LeNet: the rate at each step beside the loss.

    python examples/schedules_on_lenet.py
    python examples/schedules_on_lenet.py --rate 0.6 --epochs 30 --seeds 5
    python examples/schedules_on_lenet.py --data fashion_mnist --data-dir DIR --rate 0.1 --epochs 3 --seeds 1

Plain gradient descent, so that nothing but the schedule differs.
"""

import argparse
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import image_data
import keras
import modern_lenet
import numpy as np
import rich.console
import rich.table
from keras.optimizers.schedules import CosineDecay, ExponentialDecay

import keras_tricks as kt

BATCH = 64


def schedules(rate, epoch, epochs):
    """The schedules by name, for a run of `epochs` times `epoch` steps."""
    total = epoch * epochs
    tenth = max(1, total // 10)
    return {
        "constant": kt.schedules.Factor(rate, 1.0),  # the number alone would do, but has no picture
        "halving each epoch": ExponentialDecay(rate, epoch, 0.5, staircase=True),
        "factor": kt.schedules.Factor(rate, 0.01 ** (1 / total)),
        "square root": kt.schedules.SquareRoot(rate),
        "multi-factor": kt.schedules.MultiFactor(rate, 0.1, milestones=[total // 2, total * 3 // 4]),
        "cosine": CosineDecay(rate, total),
        "warm-up + cosine": kt.schedules.WarmUp(CosineDecay(rate, total - tenth), tenth),
        "cyclical": kt.schedules.CyclicalLearningRate(rate / 20, rate, step_size=total / 8),
        "one cycle": kt.schedules.OneCycle(rate, total),
    }


def train(schedule, train_set, test_set, options):
    """Final test accuracy, and the training loss of each epoch, for every seed: arrays (seeds,) and (seeds, epochs)."""
    optimizer = keras.optimizers.SGD(schedule)
    model = modern_lenet.compiled(train_set[0].shape[1:], optimizer)
    accuracies, losses = [], []
    for seed in range(options.seed, options.seed + options.seeds):
        keras.utils.set_random_seed(seed)
        # New weights in the same model, which is not compiled anew, and the schedule from its first step on.
        model.set_weights(modern_lenet.compiled(train_set[0].shape[1:], "sgd").get_weights())
        optimizer.iterations.assign(0)
        losses.append(model.fit(*train_set, BATCH, options.epochs, verbose=0).history["loss"])
        accuracies.append(model.evaluate(*test_set, batch_size=500, verbose=0)[1])
    return np.array(accuracies), np.nan_to_num(losses, nan=np.inf)  # where training diverges


def spread(values, digits):
    """Mean ± standard deviation, in words; of a single seed, the value alone."""
    deviation = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{deviation}"


def conclude(results):
    """What is seen, in words."""
    loss = {name: losses[:, -1].mean() for name, (_, _, losses) in results.items()}
    accuracy = {name: accuracies.mean() for name, (_, accuracies, _) in results.items()}
    low, high = min(loss, key=loss.get), max(loss, key=loss.get)
    best, worst = max(accuracy, key=accuracy.get), min(accuracy, key=accuracy.get)
    gain = ""
    if "constant" in results and best != "constant":
        points = 100 * (results[best][1] - results["constant"][1])  # seed by seed
        gain = f", {spread(points, 2)} points above the constant rate"
    return (
        f"The training loss ends lowest with {low} ({loss[low]:.4f}) and highest with {high} ({loss[high]:.4f}); on "
        f"test images {best} is best ({accuracy[best]:.1%}{gain}) and {worst} worst ({accuracy[worst]:.1%})."
    )


def draw(results, options):
    """Of each schedule the rate, and beside it the loss in front of those of all the others."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 8), layout="constrained")
    panels = figure.subplots(3, 6, width_ratios=(1, 1.15) * 3)
    epochs = np.arange(1, options.epochs + 1)
    for i, (name, (rates, _, losses)) in enumerate(results.items()):
        rate, loss = panels[i // 3, i % 3 * 2 : i % 3 * 2 + 2]
        rate.plot(np.arange(len(rates)) * options.epochs / len(rates), rates, "#0072b2")
        rate.set(title=name, ylim=(0, 1.05 * options.rate), ylabel="rate")
        for _, _, others in results.values():
            loss.semilogy(epochs, others.mean(axis=0), color="#cccccc", linewidth=0.8)
        loss.semilogy(epochs, losses.mean(axis=0), color="#d55e00", linewidth=2)
        loss.set(ylabel="training loss")
        for axes in (rate, loss):
            axes.set(xlabel="epoch", xlim=(0, options.epochs))
            axes.grid(alpha=0.3)
    for axes in panels.reshape(-1, 2)[len(results) :].ravel():
        axes.axis("off")
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "schedules.png", dpi=100)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=image_data.NAMES)
    parser.add_argument("--data-dir", help="folder of prepared tensorflow_datasets")
    parser.add_argument("--rate", type=float, default=0.3, help="the highest rate of each schedule (default 0.3)")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each schedule (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some of the schedules, by their names in the table")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/schedules_on_lenet"))
    options = parser.parse_args()

    train_set, test_set = image_data.load(options.data, options.data_dir)
    epoch = -(-len(train_set[1]) // BATCH)
    chosen = schedules(options.rate, epoch, options.epochs)
    if unknown := set(options.only or ()) - set(chosen):
        parser.error(f"--only knows {', '.join(chosen)}. Received: {', '.join(sorted(unknown))}")
    columns = ("", "mean rate", "last rate", "training loss", "test accuracy, %")
    table = rich.table.Table(*columns, title=f"{options.data}, {options.epochs} epochs, {options.seeds} seed(s)")
    results = {}
    for name in options.only or chosen:
        rates = [float(chosen[name](step)) for step in range(epoch * options.epochs)]
        accuracies, losses = train(chosen[name], train_set, test_set, options)
        results[name] = rates, accuracies, losses
        cells = spread(losses[:, -1], 4), spread(100 * accuracies, 2)
        table.add_row(name, f"{np.mean(rates):.3f}", f"{rates[-1]:.2g}", *cells)
        print(f"{name}: {accuracies.mean():.1%}", flush=True)
    rich.console.Console(width=96).print("", table)
    print(conclude(results))
    draw(results, options)
    print(f"Picture: {options.out / 'schedules.png'}")


if __name__ == "__main__":
    main()
