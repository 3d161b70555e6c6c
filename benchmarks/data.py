"""Seconds of the input pipeline: `python benchmarks/data.py`. Rows go to benchmarks/results/data.csv.

Echoing is measured between a reader that waits, as one over a network does, and a training step that computes. The
first variant of each such comparison is the floor of the same run: max(reading / factor, step).
"""

import os
import pathlib
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from speed import run

import keras_tricks as kt

RESULTS = pathlib.Path(__file__).parent / "results" / "data.csv"
BATCH = 64
STEPS = 24


def training_step():
    """A training step of a small network of dense layers."""
    hidden = [keras.layers.Dense(2048, "relu") for _ in range(2)]
    model = keras.Sequential([keras.Input((256,)), *hidden, keras.layers.Dense(10)])
    optimizer = keras.optimizers.SGD()
    optimizer.build(model.trainable_weights)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            value = loss(y, model(x, training=True))
        optimizer.apply(tape.gradient(value, model.trainable_weights), model.trainable_weights)
        return value

    return step


def timed(step, dataset, steps=STEPS):
    """Seconds of a step, data included, once the buffers are in their steady state."""
    walk = iter(dataset)
    for _ in range(16):
        step(*next(walk))
    start = time.perf_counter()
    for _ in range(steps):
        value = step(*next(walk))
    value.numpy()
    return (time.perf_counter() - start) / steps


def reader(seconds, batched):
    """An endless reader that waits `seconds` for the data of each step; examples come in requests of 16."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(1024, 256)).astype("float32"), random.integers(0, 10, 1024)
    request = BATCH if batched else 16

    def wait():
        time.sleep(max(0.0, seconds * request / BATCH - 1e-4))  # less what the sleep and its call take on top

    @tf.autograph.experimental.do_not_convert
    def read(x, y):
        with tf.control_dependencies([tf.numpy_function(wait, [], [])]):
            return tf.identity(x), tf.identity(y)

    requests = tf.data.Dataset.from_tensor_slices((x, y)).cache().repeat().batch(request, drop_remainder=True).map(read)
    return requests if batched else requests.unbatch()


def with_own_threads(dataset):
    options = tf.data.Options()
    options.threading.private_threadpool_size = 4  # a waiting reader must not hold the training's threads
    options.autotune.enabled = False
    return dataset.with_options(options)


def echo_behind_a_slow_reader():
    """Time of an optimizer step, for R times slower reading and factors up to 8."""
    step = training_step()
    t_step = float(np.median([timed(step, reader(0, True).take(4).cache().repeat()) for _ in range(5)]))
    for ratio in (1.5, 2.5, 5.0):
        for batched in (False, True):

            def in_batches(examples, batched=batched):
                batches = examples if batched else examples.batch(BATCH, drop_remainder=True)
                return with_own_threads(batches.prefetch(16))

            source = reader(ratio * t_step, batched)
            reading = timed(lambda x, y: tf.constant(0), in_batches(source))
            resident = in_batches(source.take(4 if batched else 4 * BATCH).cache().repeat())
            for factor in range(1, 9):

                def floor(resident=resident, limit=reading / factor):
                    return max(limit, timed(step, resident))

                echoed = in_batches(source.apply(kt.data.echo(factor)))
                yield (
                    f"R = {ratio:g}, {'batches' if batched else 'examples'}, factor {factor}",
                    {
                        "max(reading / factor, step)": floor,
                        f"echo({factor})": lambda echoed=echoed: timed(step, echoed),
                    },
                )


def walk(dataset, batch=100):
    dataset = dataset.batch(batch)
    return lambda: [0 for _ in dataset]


def images(count, size):
    random = np.random.default_rng(0)
    x = random.normal(size=(count, size, size, 3)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, random.integers(0, 10, count)))


def echo_alone():
    """Passes over elements in memory."""
    for text, source in (
        ("20,000 numbers", tf.data.Dataset.range(20_000)),
        ("2,000 images of 3 kB", images(2000, 16)),
        ("500 images of 200 kB", images(500, 128)),
    ):

        def by_hand(factor, source=source):
            return source.flat_map(lambda *x: tf.data.Dataset.from_tensors(x if len(x) > 1 else x[0]).repeat(factor))

        yield f"{text}, factor 1", {"no echo": walk(source), "echo(1)": walk(source.apply(kt.data.echo(1)))}
        yield (
            f"{text}, factor 8",
            {
                "repeat by hand": walk(by_hand(8)),
                "echo(8)": walk(source.apply(kt.data.echo(8))),
                "echo(7.5)": walk(source.apply(kt.data.echo(7.5))),
            },
        )


def cleaning():
    """Passes over 5,000 examples, and over 500 encoded images."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(5000, 28, 28)).astype("float32"), random.integers(0, 10, 5000)
    source = tf.data.Dataset.from_tensor_slices((x, y))
    checks = [kt.data.checks.finite(), kt.data.checks.valid_label(10)]

    def by_hand(x, y):
        return tf.reduce_all(tf.math.is_finite(x)) & (y >= 0) & (y < 10)

    yield (
        "5,000 examples of 28x28",
        {
            "no check": walk(source),
            "filter by hand": walk(source.filter(by_hand)),
            "drop_corrupt": walk(source.apply(kt.data.drop_corrupt(checks))),
            'drop_corrupt, on_error="raise"': walk(source.apply(kt.data.drop_corrupt(checks, "raise"))),
        },
    )
    encoded = [tf.io.encode_jpeg(random.integers(0, 256, (128, 128, 3)).astype("uint8")).numpy() for _ in range(500)]
    files = tf.data.Dataset.from_tensor_slices((encoded, random.integers(0, 10, 500)))

    def decode(x, y):
        return tf.ensure_shape(tf.io.decode_image(x, expand_animations=False), (128, 128, 3)), y

    yield (
        "500 JPEG images of 128x128, decoded",
        {
            "no check": walk(files.map(decode, num_parallel_calls=2)),
            "ignore_errors": walk(files.map(decode, num_parallel_calls=2).ignore_errors()),
            "drop_corrupt, checks.image": walk(
                files.apply(kt.data.drop_corrupt(kt.data.checks.image(0))).map(decode, num_parallel_calls=2)
            ),
        },
    )


def balancing():
    """An epoch of 12,406 examples of 10 classes, 5,000 to 50 of each."""
    counts = np.array([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])
    y = np.repeat(np.arange(10), counts)
    np.random.default_rng(0).shuffle(y)
    source = tf.data.Dataset.from_tensor_slices((np.zeros((len(y), 28, 28), "uint8"), y))
    total = len(y)
    each = [source.filter(lambda x, y, j=j: tf.equal(y, j)).shuffle(500).repeat() for j in range(10)]
    share = counts / total
    yield (
        "12,406 examples, balanced",
        {
            "shuffle alone": walk(source.shuffle(3200)),
            "class_balanced": walk(source.apply(kt.data.class_balanced(counts))),
            "sample_from_datasets, a filter each": walk(tf.data.Dataset.sample_from_datasets(each).take(total)),
            "rejection_resample, as many draws": walk(
                source.repeat()
                .rejection_resample(lambda x, y: tf.cast(y, tf.int32), [0.1] * 10, share.tolist())
                .take(total)
            ),
        },
    )
    batches = tf.data.Dataset.from_tensor_slices(
        (np.zeros((2560, 32, 32, 3), "float32"), np.random.default_rng(0).integers(0, 10, 2560))
    ).batch(128)
    mix_up = keras.layers.MixUp(alpha=1.0)
    yield (
        "20 batches of 128 images of 32x32x3",
        {
            "keras.layers.MixUp": walk(
                batches.map(lambda x, y: mix_up({"images": x, "labels": tf.one_hot(y, 10)}), num_parallel_calls=2), 1
            ),
            "remix": walk(batches.apply(kt.data.remix(counts)), 1),
        },
    )


def main():
    run(((echo_alone, 9), (cleaning, 9), (balancing, 2), (echo_behind_a_slow_reader, 2)), RESULTS)


if __name__ == "__main__":
    main()
