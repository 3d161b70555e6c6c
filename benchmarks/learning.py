"""What the tricks do for learning, on real data: `python benchmarks/learning.py echo --data-dir FOLDER`.

Each setting is run with several seeds, the settings of one seed after each other, so that whatever else the machine
does meets all of them. Rows go to benchmarks/results/learning_*.csv, one a run, with the date and the software. FOLDER
holds prepared tensorflow_datasets.
"""

import argparse
import csv
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))

import echo_slow_input
import image_data
import rich
from speed import software

import keras_tricks as kt

RESULTS = pathlib.Path(__file__).parent / "results"


def echo(options):
    """Seconds and fresh examples until a target accuracy on Fashion-MNIST behind a slow reader.

    Adam at its default rate in every setting; none is tuned.
    """
    examples = image_data.reader("fashion_mnist", options.data_dir)
    test = [part[:2000] for part in image_data.load("fashion_mnist", options.data_dir)[1]]
    model = echo_slow_input.small_network(test[0].shape[1:])
    step = kt.data.measure_echo_factor(
        examples, model, lambda d: echo_slow_input.batches(d, "before augmentation", 1), seconds=3, verbose=False
    ).step_seconds
    settings = [("none", 1)]
    settings += [(placement, factor) for placement in echo_slow_input.PLACEMENTS for factor in (2, 3, 4, 5)]
    for seed in range(options.seeds):
        for placement, factor in settings:
            run = echo_slow_input.train(
                examples,
                test,
                echo_slow_input.PLACEMENTS[0] if placement == "none" else placement,
                factor,
                options.ratio * step / echo_slow_input.BATCH,
                options.target,
                options.limit,
                seed,
            )
            yield {
                "data": "fashion_mnist",
                "target": options.target,
                "ratio": options.ratio,
                "step_ms": f"{1e3 * step:.2f}",
                "placement": placement,
                "factor": factor,
                "seed": seed,
                "reached": run.reached,
                "seconds": f"{run.seconds[-1]:.2f}",
                "fresh_examples": run.fresh[-1],
                "steps": len(run.seconds) * echo_slow_input.CHECK,
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["echo"])
    parser.add_argument("--data-dir", help="folder of prepared tensorflow_datasets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.82, help="accuracy on the first 2,000 test images")
    parser.add_argument("--ratio", type=float, default=5.0, help="reading time over training time")
    parser.add_argument("--limit", type=float, default=120, help="seconds after which a run gives up")
    options = parser.parse_args()
    file = RESULTS / f"learning_{options.experiment}.csv"
    file.parent.mkdir(exist_ok=True)
    for row in {"echo": echo}[options.experiment](options):
        new = not file.exists()
        with file.open("a", newline="", encoding="utf-8") as rows:
            writer = csv.DictWriter(rows, [*software(), *row])
            if new:
                writer.writeheader()
            writer.writerow({**software(), **row})
        rich.print(row)
    print(f"Appended to {file}")


if __name__ == "__main__":
    main()
