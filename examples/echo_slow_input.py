"""Data echoing behind a slow reader: seconds and fresh examples until a target accuracy is reached.

    python examples/echo_slow_input.py
    python examples/echo_slow_input.py --data fashion_mnist --data-dir FOLDER --target 0.8 --plot echo.png

Reads a data set from tensorflow_datasets (or scikit-learn's digits, which need no download) through a pipeline that
waits as a reader over a network does, in requests of 16 examples, so that reading takes `--ratio` times as long as
training.
"""

import argparse
import dataclasses
import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import image_data
import keras
import rich.console
import rich.table
import tensorflow as tf

import keras_tricks as kt

BATCH, REQUEST, CHECK = 64, 16, 20  # examples, examples, steps between checks of the accuracy
PLACEMENTS = ("before augmentation", "after augmentation", "batch")


class SlowReader:
    """Gives examples no faster than a network would, and counts its requests."""

    def __init__(self, dataset, seconds):
        self.seconds, self.requests = seconds, 0
        self.dataset = dataset.shuffle(10_000).repeat().batch(REQUEST).map(self._request).unbatch()

    @tf.autograph.experimental.do_not_convert
    def _request(self, images, labels):
        with tf.control_dependencies([tf.numpy_function(self._wait, [], [])]):
            return tf.identity(images), tf.identity(labels)

    def _wait(self):
        time.sleep(REQUEST * self.seconds)
        self.requests += 1


def augment(image, label):
    """A shift by up to two pixels."""
    size = image.shape[0]
    return tf.image.random_crop(tf.image.resize_with_crop_or_pad(image, size + 4, size + 4), image.shape), label


def small_network(shape):
    layers = [keras.Input(shape)]
    for filters in (16, 32):
        layers += [keras.layers.Conv2D(filters, 3, padding="same", activation="relu"), keras.layers.MaxPooling2D()]
    model = keras.Sequential([*layers, keras.layers.Flatten(), keras.layers.Dense(10)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    return model


def batches(examples, placement, factor):
    """The pipeline behind the reader, echoed at one of the three places."""
    echo = kt.data.echo(factor, shuffle_buffer=4 * BATCH if factor > 1 and placement != "batch" else None)
    if placement == "before augmentation":
        examples = examples.apply(echo).map(augment, num_parallel_calls=tf.data.AUTOTUNE)
    else:
        examples = examples.map(augment, num_parallel_calls=tf.data.AUTOTUNE)
        if placement == "after augmentation":
            examples = examples.apply(echo)
    data = examples.batch(BATCH, drop_remainder=True)
    if placement == "batch":
        data = data.apply(echo)
    own_threads = tf.data.Options()
    own_threads.threading.private_threadpool_size = 4  # a waiting reader must not hold the training's threads
    return data.prefetch(16).with_options(own_threads)


@dataclasses.dataclass
class Run:
    """Accuracy over seconds of training and over fresh examples, and whether it reached the target."""

    seconds: list
    accuracy: list
    fresh: list
    reached: bool


class Until(keras.callbacks.Callback):
    """Tests after each epoch, and stops at the target or the time limit."""

    def __init__(self, test, target, limit, reader):
        super().__init__()
        self.test, self.target, self.limit, self.reader = test, target, limit, reader
        self.run = Run([], [], [], False)

    def on_train_begin(self, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        logits = self.model.predict_on_batch(self.test[0])
        self.run.accuracy.append(float((logits.argmax(axis=1) == self.test[1]).mean()))
        self.run.seconds.append(time.perf_counter() - self.start)
        self.run.fresh.append(self.reader.requests * REQUEST)
        self.run.reached = self.run.accuracy[-1] >= self.target
        self.model.stop_training = self.run.reached or self.run.seconds[-1] > self.limit


def train(examples, test, placement, factor, seconds, target, limit=120, seed=0):
    """One training run with a reader that takes `seconds` for an example."""
    keras.utils.set_random_seed(seed)
    reader = SlowReader(examples, seconds)
    model = small_network(test[0].shape[1:])
    model.train_on_batch(test[0][:BATCH] * 0, test[1][:BATCH] * 0)  # traces, before the clock starts
    model.predict_on_batch(test[0])
    watch = Until(test, target, limit, reader)
    data = batches(reader.dataset, placement, factor)
    model.fit(data, steps_per_epoch=CHECK, epochs=10**6, shuffle=False, verbose=0, callbacks=[watch])
    return watch.run


def compare(options):
    """Trains with each factor, and prints and draws how fast the target is reached."""
    test = image_data.load(options.data, options.data_dir)[1]
    test = [part[:2000] for part in test]
    examples = image_data.reader(options.data, options.data_dir)

    def downstream(dataset):
        return batches(dataset, options.placement, 1)

    fast = kt.data.measure_echo_factor(examples, small_network(test[0].shape[1:]), downstream, seconds=2, verbose=False)
    seconds = options.ratio * fast.step_seconds / BATCH
    print(f"A step takes {1e3 * fast.step_seconds:.1f} ms; the reader is slowed to {1 / seconds:.0f} examples/s.")
    slow = SlowReader(examples, seconds).dataset
    kt.data.measure_echo_factor(slow, small_network(test[0].shape[1:]), downstream, seconds=2)

    table = rich.table.Table("factor", f"seconds to {options.target:.0%}", "fresh examples", "times faster", "accuracy")
    runs = {}
    for factor in options.factors:
        run = train(examples, test, options.placement, factor, seconds, options.target, options.limit, options.seed)
        runs[factor] = run
        first = runs[options.factors[0]]
        cells = [f"{run.seconds[-1]:.1f}", f"{run.fresh[-1]:,}", f"{first.seconds[-1] / run.seconds[-1]:.2f}"]
        table.add_row(f"{factor:g}", *(cells if run.reached else ["not reached"] * 3), f"{run.accuracy[-1]:.1%}")
        print(
            f"echo({factor:g}), {options.placement}: {run.accuracy[-1]:.1%} after {run.seconds[-1]:.1f} s", flush=True
        )
    rich.console.Console(width=96).print("", table)
    if options.plot:
        draw(runs, options)
        print(f"Picture: {options.plot}")


def draw(runs, options):
    """Accuracy against seconds, a line for each factor."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    colours = ("#000000", "#0072b2", "#d55e00", "#009e73")  # the colour-blind can tell them apart, too
    for i, (factor, run) in enumerate(runs.items()):
        look = {"color": colours[i % 4], "linestyle": ("-", "--", "-.", ":")[i % 4], "linewidth": 2}
        axes.plot(run.seconds, [100 * a for a in run.accuracy], **look, label=f"echo({factor:g})")
    axes.axhline(100 * options.target, color="grey", linewidth=1)
    axes.set(xlabel="seconds of training", ylabel="test accuracy, %")
    axes.set_title(f"{options.data}, reading takes {options.ratio:g} times a step's time\necho: {options.placement}")
    axes.legend()
    figure.savefig(options.plot, dpi=150)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=image_data.NAMES)
    parser.add_argument("--data-dir", help="folder of prepared tensorflow_datasets")
    parser.add_argument("--factors", type=float, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--placement", default=PLACEMENTS[0], choices=PLACEMENTS, help="where the echo stands")
    parser.add_argument("--ratio", type=float, default=4.0, help="reading time over training time (default 4)")
    parser.add_argument("--target", type=float, default=0.93, help="accuracy to reach (default 0.93)")
    parser.add_argument("--limit", type=float, default=120, help="seconds after which a run gives up (default 120)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", help="file for a picture of accuracy against seconds")
    options = parser.parse_args()
    for name, low, high in (("ratio", 0, 1e3), ("target", 0, 1), ("limit", 0, 1e6)):
        if not low < getattr(options, name) <= high:
            parser.error(f"--{name} must be above {low} and at most {high:g}. Received: {getattr(options, name)}")
    if min(options.factors) < 1:
        parser.error(f"--factors must be at least 1. Received: {min(options.factors)}")
    compare(options)
