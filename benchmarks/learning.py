"""What the tricks do for learning, on real data.

    python benchmarks/learning.py echo --data-dir FOLDER
    python benchmarks/learning.py long_tail --data-dir FOLDER --data cifar10 --threads 1

Each setting is run with several seeds. All settings of one seed run in succession, so that whatever else the machine
does affects them alike. Rows go to benchmarks/results/learning_*.csv, one per run, with the date and the software.
FOLDER holds prepared tensorflow_datasets. `long_tail` resumes where it was stopped: it skips runs that are in the file
already with the same settings.
"""

import argparse
import csv
import os
import pathlib
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "examples"))

import echo_slow_input
import image_data
import keras
import long_tail as long_tail_example
import long_tail_methods
import rich
import tensorflow as tf
from speed import software

import keras_tricks as kt

RESULTS = pathlib.Path(__file__).parent / "results"
RUNS = pathlib.Path(__file__).parent.parent / "runs"  # plain models, for the second stages of a resumed run


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


def long_tail(options):
    """Recalls on the balanced test set after training on long-tailed data, with each method of the example.

    The network, the schedule, the augmentation and the number of steps are the same; no method is tuned. The seconds of
    a second stage do not include those of the plain model that it starts from.
    """
    sets = {name: image_data.load_long_tailed(name, options.data_dir, options.imbalance) for name in options.data}
    for seed in range(options.seeds):
        for name, data in sets.items():
            settings = {
                "data": name,
                "imbalance": options.imbalance,
                "network": long_tail_methods.NETWORK,
                "batch": long_tail_methods.BATCH,
                "rate": long_tail_methods.RATE,
                "epochs": options.epochs,
            }
            file = RUNS / "long_tail" / f"{'_'.join(map(str, settings.values()))}_{seed}.keras".replace(" ", "_")
            plain = keras.saving.load_model(file, compile=False) if file.exists() else None
            for method in options.methods:
                if is_there({**settings, "method": method, "seed": seed}, RESULTS / "learning_long_tail.csv"):
                    continue
                start = time.perf_counter()
                if method in long_tail_methods.SECOND_STAGE:
                    if plain is None:
                        print(f"{name}, seed {seed}: {method} needs the plain model, which is not there. Left out.")
                        continue
                    model = long_tail_methods.second_stage(method, plain, data, options.epochs, seed)
                else:
                    model = long_tail_methods.train(method, data, options.epochs, seed)
                seconds = time.perf_counter() - start
                if method == "plain":
                    plain = model
                    file.parent.mkdir(parents=True, exist_ok=True)
                    plain.save(file)
                found = long_tail_example.judge(model, data)
                yield {
                    **settings,
                    "method": method,
                    "seed": seed,
                    "accuracy": f"{found.accuracy:.4f}",
                    "balanced_accuracy": f"{found.balanced_accuracy:.4f}",
                    **{group: f"{recall:.4f}" for group, recall in found.groups.items()},
                    "seconds": f"{seconds:.1f}",
                }


def is_there(run, file):
    """Whether the file has a row of this run."""
    if not file.exists():
        return False
    with file.open(encoding="utf-8") as rows:
        return any(all(row[name] == str(value) for name, value in run.items()) for row in csv.DictReader(rows))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", choices=["echo", "long_tail"])
    parser.add_argument("--data-dir", help="folder of prepared tensorflow_datasets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--target", type=float, default=0.82, help="accuracy on the first 2,000 test images")
    parser.add_argument("--ratio", type=float, default=5.0, help="reading time over training time")
    parser.add_argument("--limit", type=float, default=120, help="seconds after which a run gives up")
    parser.add_argument("--data", nargs="+", default=["fashion_mnist", "cifar10"], choices=["fashion_mnist", "cifar10"])
    parser.add_argument("--imbalance", type=float, default=100.0, help="largest class over smallest")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument(
        "--methods",
        nargs="+",
        default=long_tail_methods.METHODS,
        choices=long_tail_methods.METHODS,
        metavar="METHOD",
    )
    parser.add_argument("--threads", type=int, default=0, help="of TensorFlow; 0 for one a core")
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    file = RESULTS / f"learning_{options.experiment}.csv"
    file.parent.mkdir(exist_ok=True)
    for row in {"echo": echo, "long_tail": long_tail}[options.experiment](options):
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
