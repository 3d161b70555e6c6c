"""Seconds of each trick against the plain way, in a single process: `make bench`.

The variants of a comparison take turns, so that whatever else the machine does affects them alike; the figure is the
median, and the ratio is to the first variant. Rows go to benchmarks/results/speed.csv with the date and the software.
"""

import csv
import datetime
import functools
import os
import pathlib
import platform
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rich.console
import rich.table
import tensorflow as tf

import keras_tricks as kt

RESULTS = pathlib.Path(__file__).parent / "results" / "speed.csv"
ROUNDS = 5
BATCH = 64
STEPS = 30  # per epoch


def network(convolution=keras.layers.Conv2D, normalize=True):
    x = inputs = keras.Input((32, 32, 3))
    for filters in (16, 32, 64):
        x = convolution(filters, 3, padding="same")(x)
        x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x) if normalize else x)
        x = keras.layers.MaxPooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10)(keras.layers.GlobalAveragePooling2D()(x)))


def epoch(make, replicas=1, callbacks=lambda: [], jit=False, **compiled):
    """A function that trains a few epochs, and returns the seconds per step of the fastest one after the first."""
    random = np.random.default_rng(0)
    count = STEPS * BATCH
    x, y = random.normal(size=(count, 32, 32, 3)).astype("float32"), random.integers(0, 10, count)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH, drop_remainder=True).prefetch(4)
    still = tf.data.Options()
    still.autotune.enabled = False  # an iterator that is dropped while it tunes holds up the next epoch
    data = data.with_options(still)
    with kt.distribute.setup(replicas).scope():
        model = make()
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.Adam(1e-3), loss, **{"jit_compile": False, **compiled})
        if jit:
            kt.jit(model)

    class Watch(keras.callbacks.Callback):
        """Times all epochs but the first, which traces."""

        def on_epoch_begin(self, epoch, logs=None):
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch, logs=None):
            self.seconds.append(time.perf_counter() - self.start)

    def train():
        watch = Watch()
        watch.seconds = []
        model.fit(data, epochs=4, shuffle=False, verbose=0, callbacks=[*callbacks(), watch])
        return min(watch.seconds[1:]) / STEPS

    return train


def training_step():
    """A training step of a small CNN on batches of 64 images of 32x32x3."""
    yield (
        "convolution and normalisation",
        {
            "Conv2D": epoch(functools.partial(network, normalize=False)),
            "Conv2D + BatchNormalization": epoch(network),
            "WSConv2D": epoch(functools.partial(network, kt.layers.WSConv2D, normalize=False)),
        },
    )
    yield (
        "XLA, one device",
        {
            "none": epoch(network),
            "keras jit_compile": epoch(network, jit_compile=True),
            "kt.jit": epoch(network, jit=True),
        },
    )
    yield "XLA, two logical CPUs", {"none": epoch(network, 2), "kt.jit": epoch(network, 2, jit=True)}
    cycle = kt.schedules.CyclicalLearningRate(1e-4, 1e-3, 20)
    yield (
        "callbacks",
        {
            "none": epoch(network),
            "CyclicLR with momentum": epoch(network, callbacks=lambda: [kt.callbacks.CyclicLR(cycle, (0.95, 0.85))]),
            "Histograms, every epoch": epoch(network, callbacks=lambda: [kt.callbacks.Histograms()]),
            "Histograms, every step": epoch(network, callbacks=lambda: [kt.callbacks.Histograms(every=1)]),
        },
    )


def measure(variants, rounds):
    """Median seconds of each variant, which take turns; a variant may return the seconds to use instead."""
    seconds = {name: [] for name in variants}
    for turn in range(rounds + 1):
        for name, run in variants.items():
            start = time.perf_counter()
            own = run()
            if turn:  # the first traces and compiles
                seconds[name].append(own if isinstance(own, float) else time.perf_counter() - start)
    return {name: statistics.median(s) for name, s in seconds.items()}


def software():
    """What a row of results was measured with, and when."""
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "keras": keras.__version__,
        "tensorflow": tf.__version__,
        "cores": os.cpu_count(),
        "gpus": len(tf.config.list_physical_devices("GPU")),
    }


def run(groups, results):
    """Measures (group, rounds) pairs, prints a table, and appends a row for each variant to the file `results`."""
    rows = []
    table = rich.table.Table("", "variant", "ms", "ratio")
    for group, rounds in groups:
        for comparison, variants in group():
            medians = measure(variants, rounds)
            first = next(iter(medians.values()))
            for name, s in medians.items():
                figures = {"ms": f"{1e3 * s:.2f}", "ratio": f"{s / first:.2f}"}
                rows.append({**software(), "comparison": comparison, "variant": name, **figures})
                table.add_row(comparison, name, *figures.values())
            table.add_section()
    results.parent.mkdir(exist_ok=True)
    new = not results.exists()
    with results.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        if new:
            writer.writeheader()
        writer.writerows(rows)
    rich.console.Console().print(table)
    print(f"Appended to {results}")


def main():
    kt.distribute.setup(replicas=2)  # two logical CPUs, before TensorFlow starts
    run(((training_step, ROUNDS),), RESULTS)


if __name__ == "__main__":
    main()
