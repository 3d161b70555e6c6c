"""Writes the tables that are made from the catalogue and from the measurements between their marks in the pages."""

import csv
import pathlib
import re
import statistics

from keras_tricks import catalog

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
# The methods of the long-tailed table, in the order of Zhang et al., "Bag of Tricks for Long-Tailed Visual Recognition
# with Deep Convolutional Neural Networks", AAAI 2021, with the errors in percent that their trick gallery
# (github.com/zhangyongshun/BagofTricks-LT) gives for CIFAR-10 at imbalance 100.
PUBLISHED_ERRORS = {
    "plain": 29.64,
    "focal": 28.44,
    "class_balanced_focal": 24.80,
    "class_balanced": 29.52,
    "label_aware_smoothing": 27.49,
    "ldam": 26.34,
    "balanced_softmax": 22.46,
    "logit_adjusted": None,
    "class_balanced_sampling": 27.55,
    "square_root_sampling": 28.58,
    "progressive_sampling": 28.02,
    "remix": 26.57,
    "drw": None,  # theirs weighs by the inverse frequency: 25.18
    "ldam_drw": 22.27,
    "drs": 24.93,
    "post_hoc_adjustment": None,
    "tau_norm": 27.30,
    "crt": 25.01,
    "lws": 27.37,
}


def put(page, mark, table):
    """Puts `table` between `<!-- mark: begin -->` and `<!-- mark: end -->` of a page."""
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    path.write_text(re.sub(f"{begin}.*{end}", lambda _: begin + table + end, text, flags=re.S), encoding="utf-8")


def speed(results):
    """The rows of the last run of `benchmarks/speed.py`, `layers.py`, `losses.py` or `data.py`."""
    with results.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    last = {}
    for row in reversed(rows):
        if (row["comparison"], row["variant"]) in last:
            break  # of the run before
        last[row["comparison"], row["variant"]] = row
    run = rows[-1]
    lines = [
        f"{run['date']}, Python {run['python']}, Keras {run['keras']}, TensorFlow {run['tensorflow']}, "
        f"{run['cores']} CPU cores, {run['gpus']} GPUs:\n",
        "| comparison | variant | ms | ratio |",
        "| --- | --- | --- | --- |",
        *[f"| {r['comparison']} | {r['variant']} | {r['ms']} | {r['ratio']} |" for r in reversed(last.values())],
    ]
    return "\n".join(lines) + "\n"


def optimizers(results):
    """The rows of the last run of `benchmarks/optimizers.py`, a table for each set of variables."""
    with results.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    run = rows[-1]
    stack = ("date", "python", "keras", "tensorflow", "jax", "optax", "torch", "cores", "gpus")
    last = {(row["shapes"], row["variant"], row["mode"]): row for row in rows if all(row[k] == run[k] for k in stack)}
    libraries = [f"{name} {run[name]}" for name in ("jax", "optax", "torch") if run[name]]
    shares = [float(row["cpu_share_of_others"]) for row in last.values() if row["cpu_share_of_others"]]
    lines = [
        f"{run['date']}, Python {run['python']}, Keras {run['keras']}, TensorFlow {run['tensorflow']}, "
        f"{''.join(f'{library}, ' for library in libraries)}{run['cores']} CPU cores, {run['gpus']} GPUs"
        + (f"; other processes took up to {max(shares):.0%} of the cores:" if shares else ":")
    ]
    for shapes in dict.fromkeys(shapes for shapes, _, _ in last):
        lines += [
            f"\n`{shapes}`:\n",
            "| optimizer | graph ms | graph / Adam | XLA ms | XLA / Adam | over the floor | state / parameters |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        for variant in dict.fromkeys(variant for s, variant, _ in last if s == shapes):
            modes = {mode: row for (s, v, mode), row in last.items() if (s, v) == (shapes, variant)}
            graph, xla = modes.get("graph", modes.get("eager")), modes.get("xla")
            cells = [row[k] if row else "" for row in (graph, xla) for k in ("ms", "ratio_to_adam")]
            best = min(modes.values(), key=lambda row: float(row["ratio_to_floor"]))
            cells += [best["ratio_to_floor"], best["state_bytes_a_parameter_byte"]]
            lines.append(f"| {' | '.join([variant, *cells])} |")
    return "\n".join(lines) + "\n"


def learning(results):
    """The last run of `benchmarks/learning.py echo`: means and standard deviations over seeds, and ratios of means."""
    with results.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    first = max(i for i, row in enumerate(rows) if (row["placement"], row["seed"]) == ("none", "0"))
    run, rows = rows[first], rows[first:]
    plain = [row for row in rows if row["placement"] == "none"]
    lines = [
        f"{run['date']}, Keras {run['keras']}, TensorFlow {run['tensorflow']}, {run['cores']} CPU cores. Fashion-MNIST "
        f"to {float(run['target']):.0%} on 2,000 test images; reading the data of a step takes {float(run['ratio']):g} "
        f"times as long as the step's {run['step_ms']} ms; mean ± standard deviation of {len(plain)} seeds:\n",
        "| echo | factor | fresh examples | ratio | seconds | times faster |",
        "| --- | --- | --- | --- | --- | --- |",
    ]

    def figures(group, name):
        values = [float(row[name]) for row in group]
        return statistics.mean(values), statistics.stdev(values)

    for placement, factor in dict.fromkeys((row["placement"], row["factor"]) for row in rows):
        group = [row for row in rows if (row["placement"], row["factor"]) == (placement, factor)]
        missed = sum(row["reached"] != "True" for row in group)
        fresh, seconds = figures(group, "fresh_examples"), figures(group, "seconds")
        cells = [
            f"{fresh[0]:,.0f} ± {fresh[1]:,.0f}",
            f"{fresh[0] / figures(plain, 'fresh_examples')[0]:.2f}",
            f"{seconds[0]:.1f} ± {seconds[1]:.1f}",
            f"{figures(plain, 'seconds')[0] / seconds[0]:.2f}",
        ]
        if missed:
            cells[0] += f" ({missed} of {len(group)} did not reach it)"
        lines.append(f"| {placement} | {factor} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def ranks(values):
    """The place of each value among the sorted ones; equal values share the mean of theirs."""
    return [sum(v < value for v in values) + (values.count(value) - 1) / 2 for value in values]


def long_tail(results):
    """The rows of `benchmarks/learning.py long_tail` with the last settings of each data set."""
    if not results.exists():
        return "Not measured yet.\n"
    with results.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    lines = []
    for data in dict.fromkeys(row["data"] for row in rows):
        run = [row for row in rows if row["data"] == data][-1]
        settings = ("data", "imbalance", "network", "batch", "rate", "epochs")
        rows_of = {method: [] for method in PUBLISHED_ERRORS}
        for row in rows:
            if all(row[name] == run[name] for name in settings):
                rows_of[row["method"]].append(row)
        rows_of = {method: found for method, found in rows_of.items() if found}
        lines += [
            f"{run['date']}, Keras {run['keras']}, TensorFlow {run['tensorflow']}. `{data}` at imbalance "
            f"{float(run['imbalance']):g}; {run['network']}; {run['epochs']} epochs at batch {run['batch']}; mean ± "
            "standard deviation over seeds:\n",
            "| method | seeds | balanced accuracy, % | many | medium | few | published error on CIFAR-10, % |",
            "| --- | --- | --- | --- | --- | --- | --- |",
        ]
        means = {}
        for method, found in rows_of.items():
            cells = [method, str(len(found))]
            for name in ("balanced_accuracy", "many", "medium", "few"):
                values = [100 * float(row[name]) for row in found]
                spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.1f}{spread}")
            means[method] = statistics.mean(float(row["balanced_accuracy"]) for row in found)
            error = PUBLISHED_ERRORS[method]
            lines.append(f"| {' | '.join([*cells, '' if error is None else f'{error:.2f}'])} |")
        both = [method for method in means if PUBLISHED_ERRORS[method] is not None]
        if len(both) > 2:
            order = statistics.correlation(
                ranks([means[method] for method in both]), ranks([-PUBLISHED_ERRORS[method] for method in both])
            )
            lines.append(f"\nRank correlation with the published order, {len(both)} methods: {order:.2f}.")
        lines.append("")
    return "\n".join(lines)


put("README.md", "tricks", catalog.markdown_table("docs/tricks/"))
put("docs/index.md", "tricks", catalog.markdown_table("tricks/"))
put("docs/benchmarks.md", "speed", speed(RESULTS / "speed.csv"))
put("docs/benchmarks.md", "layers", speed(RESULTS / "layers.csv"))
put("docs/benchmarks.md", "losses", speed(RESULTS / "losses.csv"))
put("docs/benchmarks.md", "data", speed(RESULTS / "data.csv"))
put("docs/benchmarks.md", "learning_echo", learning(RESULTS / "learning_echo.csv"))
put("docs/benchmarks.md", "learning_long_tail", long_tail(RESULTS / "learning_long_tail.csv"))
put("docs/benchmarks.md", "optimizers", optimizers(RESULTS / "optimizers.csv"))
