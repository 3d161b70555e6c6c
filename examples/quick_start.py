"""Trains a small network on real images, plain and with tricks, on the same budget of optimizer steps, and compares.

    python examples/quick_start.py
    python examples/quick_start.py --replicas 2 --precision mixed_float16 --xla
    python examples/quick_start.py --data fashion_mnist --data-dir DIR     # a folder of tensorflow_datasets
"""

import argparse
import os
import pathlib
import subprocess
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import rich.console
import rich.table
import tensorflow as tf

import keras_tricks as kt

BATCH, ROUNDS = 64, 10


def load(name, data_dir):
    """(images, labels) for training and for testing; images in 0..1, float32."""
    if name == "digits":
        from sklearn.datasets import load_digits

        digits = load_digits()
        images, labels = digits.images[..., None] / 16, digits.target
        order = np.random.default_rng(0).permutation(len(labels))
        train, test = order[360:], order[:360]
        return (images[train], labels[train]), (images[test], labels[test])
    import tensorflow_datasets as tfds

    try:
        parts = tfds.load(
            name, data_dir=data_dir, download=not data_dir, split=["train", "test"], as_supervised=True, batch_size=-1
        )
    except Exception as error:  # a missing folder, no network, a broken download: tfds raises many kinds
        tried = f"prepared in {data_dir}" if data_dir else "in ~/tensorflow_datasets and could not be downloaded"
        sys.exit(
            f"\n{name} is not {tried} ({type(error).__name__}).\n"
            f"With a network, prepare it by:\n  python -c \"import tensorflow_datasets as tfds; tfds.load('{name}')\"\n"
            "Without, copy the prepared folder from another machine and name the folder that holds "
            f"{name}/ by --data-dir, or use --data digits, which needs nothing."
        )
    return [(np.asarray(images, "float32") / 255, np.asarray(labels)) for images, labels in parts]


def build(shape, tricks):
    """Three convolutions; with batch normalisation, or with weight standardisation instead."""
    x = inputs = keras.Input(shape)
    for filters in (32, 64, 64):
        conv = kt.layers.WSConv2D if tricks else keras.layers.Conv2D
        x = conv(filters, 3, padding="same")(x)
        x = x if tricks else keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.MaxPooling2D(padding="same")(keras.layers.ReLU()(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(10, dtype="float32")(x))


def pipeline(images, labels, tricks, seed):
    """Endless shuffled batches, each image shifted by up to a pixel; with tricks, each read image is used twice."""
    size = images.shape[1:]

    def shift(image, label):
        padded = tf.pad(image, [[1, 1], [1, 1], [0, 0]])
        return tf.image.random_crop(padded, size), label

    data = tf.data.Dataset.from_tensor_slices((images.astype("float32"), labels)).shuffle(len(labels), seed=seed).repeat()
    if tricks:
        data = data.apply(kt.data.echo(2, shuffle_buffer=4 * BATCH, seed=seed))
    return data.map(shift, tf.data.AUTOTUNE).batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def train(data, test, tricks, options, strategy, out):
    """Trains one model; returns it and its row of the table."""
    keras.utils.set_random_seed(options.seed)
    ends = []
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))]
    with strategy.scope():
        model = build(data[0].shape[1:], tricks)
        optimizer = kt.LAMB(0.01, weight_decay=0.01) if tricks else keras.optimizers.Adam(1e-3)
        if tricks and options.precision == "mixed_float16":
            optimizer = kt.LossScaleOptimizer(optimizer)
        xla_of_keras = options.xla and not tricks and strategy.num_replicas_in_sync == 1
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=xla_of_keras)
        if tricks and options.xla:
            kt.jit(model)
    if tricks:
        cycle = kt.schedules.CyclicalLearningRate(1e-3, 0.03, step_size=options.steps / 4, mode="triangular2")
        histograms = kt.callbacks.Histograms(out / "logs")
        callbacks += [kt.callbacks.CyclicLR(cycle, momentum=(0.95, 0.85)), histograms]
    print(f"\n{'With tricks' if tricks else 'Plain Keras'}: {options.steps} optimizer steps")
    start = time.perf_counter()
    model.fit(
        pipeline(*data, tricks, options.seed),
        epochs=ROUNDS,
        steps_per_epoch=options.steps // ROUNDS,
        shuffle=False,
        callbacks=callbacks,
        verbose=2 if options.quiet else 1,
    )
    seconds = time.perf_counter() - start
    step = np.median(np.diff(ends)) / (options.steps // ROUNDS)
    accuracy = model.evaluate(*test, batch_size=40, verbose=0)[1]
    if tricks:
        histograms.plot(out / "gradients.png")
    read = options.steps * BATCH // (2 if tricks else 1)
    name = "with tricks" if tricks else "plain Keras"
    cells = f"{accuracy:.1%}", f"{seconds:.1f}", f"{1000 * step:.1f}", f"{kt.state_bytes(optimizer):,}", f"{read:,}"
    return model, (name, accuracy, *cells)


def main():
    """Parses the command line, trains both models and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=["digits", "mnist", "fashion_mnist", "cifar10"])
    parser.add_argument("--data-dir", help="folder of prepared tensorflow_datasets")
    parser.add_argument("--replicas", type=int, help="default: all GPUs, or 1")
    parser.add_argument("--precision", default="float32", choices=["float32", "mixed_bfloat16", "mixed_float16"])
    parser.add_argument("--xla", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--steps", type=int, default=400, help="optimizer steps of each model (default 400)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/quick_start"))
    parser.add_argument("--quiet", action="store_true", help="a line an epoch instead of a progress bar")
    parser.add_argument("--check", action="store_true", help="only reload the saved model and compare its predictions")
    options = parser.parse_args()
    if options.steps < ROUNDS:
        parser.error(f"--steps must be at least {ROUNDS}. Received: {options.steps}")
    try:
        strategy = kt.distribute.setup(options.replicas, options.precision, options.xla)
    except (ValueError, RuntimeError) as error:
        parser.error(str(error))
    if options.check:
        return check(options, strategy)

    data, test = load(options.data, options.data_dir)
    options.out.mkdir(parents=True, exist_ok=True)
    _, plain = train(data, test, False, options, strategy, options.out)
    model, tricks = train(data, test, True, options, strategy, options.out)

    xla = "XLA" if options.xla else "no XLA"
    title = f"{options.data}, {strategy.num_replicas_in_sync} replica(s), {options.precision}, {xla}"
    table = rich.table.Table("", "test accuracy", "seconds", "ms a step", "optimizer state, bytes", "images read", title=title)
    for name, _, *cells in (plain, tricks):
        table.add_row(name, *cells)
    rich.console.Console(width=96).print("", table)
    won = tricks[1] - plain[1]
    print(f"Accuracy: the tricks {'win' if won > 0 else 'do not win' if won < 0 else 'draw'} here ({100 * won:+.1f} points).")

    model.save(options.out / "model.keras")
    np.savez(options.out / "check.npz", images=test[0][:40], predictions=model.predict(test[0][:40], verbose=0))
    print(f"TensorBoard logs: {options.out / 'logs'}   (tensorboard --logdir {options.out / 'logs'})")
    print(f"Picture:          {options.out / 'gradients.png'}\nModel:            {options.out / 'model.keras'}")
    return subprocess.run([sys.executable, __file__, *sys.argv[1:], "--check"], check=False).returncode


def check(options, strategy):
    """In a fresh process: the reloaded model predicts what the trained one did."""
    saved = np.load(options.out / "check.npz")
    with strategy.scope():
        model = keras.models.load_model(options.out / "model.keras")
        if options.xla:
            kt.jit(model)
    difference = np.abs(model.predict(saved["images"], verbose=0) - saved["predictions"]).max()
    equal = difference <= 1e-6 * np.abs(saved["predictions"]).max()
    print(f"Reloaded in a fresh process: predictions {'equal' if equal else 'DIFFER'} (largest difference {difference:.1e})")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
