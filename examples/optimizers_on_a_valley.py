"""Nine optimizers in a long valley, whose condition number you choose, and then on LeNet.

    python examples/optimizers_on_a_valley.py
    python examples/optimizers_on_a_valley.py --condition 300 --angle 10 --rules momentum Adam Yogi
    python examples/optimizers_on_a_valley.py --data fashion_mnist --data-dir DIR --epochs 2

The valley is a quadratic in two weights, with curvature 1 across and 1/condition along: once along an axis, and once
turned. Every rule gets the best of a grid of rates (momentum and Nesterov: of their betas, too), and the steps are
counted until the distance to the minimum stays small. On LeNet, the best rate is the one with the lowest training loss.
"""

import argparse
import dataclasses
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import image_data
import keras
import modern_lenet
import numpy as np
import rich.console
import rich.table
from valley_walks import MINIMUM, NEAR, STEPS, best_walk, restart, valley, walker

import keras_tricks as kt

CONDITIONS, BETAS = (3, 10, 30, 100, 300, 1000), (0.3, 0.6, 0.8, 0.9, 0.95)
LENET_RATES = 0.003, 0.01, 0.03, 0.1, 0.3, 1.0
RULES = {
    "gradient descent": lambda beta: keras.optimizers.SGD(),
    "momentum": lambda beta: keras.optimizers.SGD(momentum=beta),
    "Nesterov": lambda beta: keras.optimizers.SGD(momentum=beta, nesterov=True),
    "Adagrad": lambda beta: keras.optimizers.Adagrad(initial_accumulator_value=0.0),  # as published; Keras: 0.1
    "RMSProp": lambda beta: keras.optimizers.RMSprop(),
    "Adadelta": lambda beta: keras.optimizers.Adadelta(),
    "Adam": lambda beta: keras.optimizers.Adam(),
    "Yogi": lambda beta: kt.Yogi(),
    # By default LAMB takes Adam's step on vectors, which are biases in a network. Here the vector is all there is.
    "LAMB": lambda beta: kt.LAMB(exclude_from_layer_adaptation=[]),
}


@dataclasses.dataclass
class Result:
    """Steps in the straight valley; steps, rate and path in the turned one; steps by condition; LeNet's losses."""

    straight: float
    turned: tuple
    steps: np.ndarray
    growth: float
    losses: np.ndarray


def train(optimizer, options, train_set, test_set):
    """(loss of each epoch, rate, test accuracy) of LeNet, for the rate with the lowest training loss at the end."""
    keras.utils.set_random_seed(options.seed)
    model = modern_lenet.compiled(train_set[0].shape[1:], optimizer)
    optimizer.build(model.trainable_variables)
    state, weights, best = [variable.numpy() for variable in optimizer.variables], model.get_weights(), None
    for rate in options.rates:
        keras.utils.set_random_seed(options.seed)  # the same order of examples
        restart(optimizer, state, rate)
        model.set_weights(weights)
        losses = np.nan_to_num(model.fit(*train_set, 64, options.epochs, verbose=0).history["loss"], nan=np.inf)
        if best is None or losses[-1] < best[0][-1]:
            best = losses, rate, model.evaluate(*test_set, batch_size=500, verbose=0)[1]
    return best


def compare(options):
    """Walks, trains, and prints the table; returns for each rule its paths, steps and losses."""
    data, results = image_data.load(options.data, options.data_dir), {}
    columns = ("", "straight", "turned", "growth", "LeNet: rate", "training loss", "test accuracy")
    title = f"Steps in a valley of condition {options.condition:g}, turned by {options.angle:g}°; {options.data}"
    table = rich.table.Table(*columns, title=title)
    for name in options.rules:
        print(name, flush=True)
        walks = [walker(RULES[name](beta)) for beta in (BETAS if name in ("momentum", "Nesterov") else [None])]
        straight, turned = (best_walk(walks, options.condition, angle) for angle in (0, options.angle))
        steps = np.array([best_walk(walks, condition, options.angle)[0] for condition in CONDITIONS])
        there = np.isfinite(steps)
        # The slope in the picture with two logarithmic axes is the power with which the steps grow.
        growth = np.polyfit(np.log(CONDITIONS)[there], np.log(steps[there]), 1)[0] if there.sum() > 1 else np.nan
        losses, rate, accuracy = train(RULES[name](0.9), options, *data)
        results[name] = Result(straight[0], turned, steps, growth, losses)
        cells = [f"{n:.0f}" if np.isfinite(n) else f"> {STEPS}" for n in (straight[0], turned[0])]
        table.add_row(name, *cells, f"{growth:.2f}", f"{rate:g}", f"{losses[-1]:.4f}", f"{accuracy:.1%}")
    rich.console.Console(width=100).print("", table)
    return results


def span(results, value, digits=2):
    """The lowest and the highest value with their rules, in words; without rules that have none."""
    values = [(value(result), name) for name, result in results.items() if not np.isnan(value(result))]
    if not values:
        return "an unknown value"
    return " to ".join(f"{number:.{digits}f} ({name})" for number, name in sorted({min(values), max(values)}))


def conclude(results):
    """What is seen, in words; `inf` where a rule does not get there."""
    return (
        f"The steps grow with the condition number to the power of {span(results, lambda r: r.growth)}; turning the "
        f"valley multiplies them by {span(results, lambda r: r.turned[0] / r.straight)}; LeNet's training loss ends at "
        f"{span(results, lambda r: r.losses[-1], digits=4)}."
    )


def draw(results, options):
    """The paths, the leaky averages, the growth of the steps, and LeNet's losses."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 9.5), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.15, 1))
    panels = upper.subplots(2, 5, subplot_kw={"box_aspect": 1}).ravel()
    hessian, start = valley(options.condition, options.angle)
    reach = 1.15 * np.hypot(*(start - MINIMUM))
    sides = [np.linspace(centre - reach, centre + reach, 120) for centre in MINIMUM]
    off = np.stack(np.meshgrid(*sides), axis=-1) - MINIMUM
    root = np.sqrt(np.einsum("...i,ij,...j", off, hessian, off))  # of the height, or far contours would crowd
    looks = [(colour, style) for style in ("-", "--") for colour in ("#0072b2", "#d55e00", "#009e73", "k", "#cc79a7")]
    left, right = lower.subplots(1, 2)
    for axes, (colour, style), (name, result) in zip(panels, looks, results.items(), strict=False):
        steps, rate, path = result.turned
        axes.contour(*sides, root, 10, colors="#bbbbbb", linewidths=0.7)
        if path is not None:
            axes.plot(*path[: steps + 1].T, ".-", color="#0072b2", linewidth=1, markersize=4)
        axes.plot(*MINIMUM, "*", color="#d55e00", markersize=9)
        axes.set(title=f"{name}\n" + ("not there" if path is None else f"{steps} steps, rate {rate:.2g}"))
        axes.set(xticks=[], yticks=[], xlim=sides[0][[0, -1]], ylim=sides[1][[0, -1]])
        look = {"color": colour, "linestyle": style, "linewidth": 1.8, "label": name}
        left.loglog(CONDITIONS, result.steps, marker="o", markersize=4, **look)
        right.semilogy(np.arange(1, options.epochs + 1), result.losses, **look)
    for axes in panels[len(results) : -1]:
        axes.axis("off")
    for beta, (colour, style) in zip((0.95, 0.9, 0.6, 0), looks, strict=False):
        panels[-1].plot(beta ** np.arange(40), style, color=colour, label=f"{beta:g}")
    panels[-1].set(title="leaky average:\nbeta to the power of age", xlabel="age of a gradient, steps")
    panels[-1].legend(title="beta", frameon=False, handlelength=1)
    left.set(title=f"turned valley, to {NEAR:.0%} of the distance", xlabel="condition number", ylabel="steps")
    right.set(title=f"LeNet, {options.data}", xlabel="epoch", ylabel="training loss")
    right.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, handlelength=3)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    options.out.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out / "valley.png", dpi=100)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--condition", type=float, default=30, help="of the valley that is drawn (default 30)")
    parser.add_argument("--angle", type=float, default=30, help="degrees by which the valley is turned (default 30)")
    parser.add_argument("--rules", nargs="+", default=list(RULES), choices=list(RULES), metavar="RULE", help="by name")
    parser.add_argument("--data", default="digits", choices=image_data.NAMES)
    parser.add_argument("--data-dir", help="folder of prepared tensorflow_datasets")
    parser.add_argument("--rates", type=float, nargs="+", default=LENET_RATES, help="to try on LeNet")
    parser.add_argument("--epochs", type=int, default=8, help="of LeNet (default 8)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/optimizers_on_a_valley"))
    options = parser.parse_args()
    if options.condition < 1:
        parser.error(f"--condition must be at least 1. Received: {options.condition:g}")
    results = compare(options)
    print(conclude(results))
    draw(results, options)
    print(f"Picture: {options.out / 'valley.png'}")
