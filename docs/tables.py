"""Writes the tables that are made from the catalogue and from the measurements between their marks in the pages."""

import csv
import pathlib
import re

from keras_tricks import catalog

ROOT = pathlib.Path(__file__).parent.parent


def put(page, mark, table):
    """Puts `table` between `<!-- mark: begin -->` and `<!-- mark: end -->` of a page."""
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    begin, end = f"<!-- {mark}: begin -->\n", f"<!-- {mark}: end -->"
    path.write_text(re.sub(f"{begin}.*{end}", lambda _: begin + table + end, text, flags=re.S), encoding="utf-8")


def speed():
    """The rows of the last run of `benchmarks/speed.py`."""
    with (ROOT / "benchmarks" / "results" / "speed.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    last = {(row["comparison"], row["variant"]): row for row in rows}
    run = rows[-1]
    lines = [
        f"{run['date']}, Python {run['python']}, Keras {run['keras']}, TensorFlow {run['tensorflow']}, "
        f"{run['cores']} CPU cores, {run['gpus']} GPUs:\n",
        "| comparison | variant | ms | ratio |",
        "| --- | --- | --- | --- |",
        *[f"| {r['comparison']} | {r['variant']} | {r['ms']} | {r['ratio']} |" for r in last.values()],
    ]
    return "\n".join(lines) + "\n"


put("README.md", "tricks", catalog.markdown_table("docs/tricks/"))
put("docs/index.md", "tricks", catalog.markdown_table("tricks/"))
put("docs/benchmarks.md", "speed", speed())
