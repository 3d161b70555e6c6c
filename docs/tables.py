"""Writes the tables that are made from the catalogue and from the measurements between their marks in the pages."""

import csv
import pathlib
import re

from keras_tricks import catalog

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def put(page, mark, table):
    """Puts `table` between `<!-- mark: begin -->` and `<!-- mark: end -->` of a page."""
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    path.write_text(re.sub(f"{begin}.*{end}", lambda _: begin + table + end, text, flags=re.S), encoding="utf-8")


def speed(results):
    """The rows of the last run of `benchmarks/speed.py` or `benchmarks/layers.py`."""
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


put("README.md", "tricks", catalog.markdown_table("docs/tricks/"))
put("docs/index.md", "tricks", catalog.markdown_table("tricks/"))
put("docs/benchmarks.md", "speed", speed(RESULTS / "speed.csv"))
put("docs/benchmarks.md", "layers", speed(RESULTS / "layers.csv"))
put("docs/benchmarks.md", "optimizers", optimizers(RESULTS / "optimizers.csv"))
