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

import image_data
import keras
import numpy as np
import rich.console
import rich.table
import tensorflow as tf

import keras_tricks as kt

BATCH, ROUNDS = 64, 10


def build(shape, tricks):
    """Three convolutions; with batch normalisation, or with weight standardisation instead."""
    x = inputs = keras.Input(shape)
    for filters in (32, 64, 64):
        x = (kt.layers.WSConv2D if tricks else keras.layers.Conv2D)(filters, 3, padding="same")(x)
        # With Keras' default momentum of 0.99, the statistics would lag behind in so short a run.
        x = x if tricks else keras.layers.BatchNormalization(momentum=0.9)(x)
        x = keras.layers.MaxPooling2D(padding="same")(keras.layers.ReLU()(x))
    return keras.Model(inputs, keras.layers.Dense(10, dtype="float32")(keras.layers.GlobalAveragePooling2D()(x)))


def batches(images, labels, tricks, seed):
    """Endless shuffled batches, each image shifted by up to a pixel; with tricks, each image read is used twice."""

    def shift(image, label):
        return tf.image.random_crop(tf.pad(image, [[1, 1], [1, 1], [0, 0]]), images.shape[1:]), label

    data = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(labels), seed=seed).repeat()
    if tricks:
        data = data.apply(kt.data.echo(2, shuffle_buffer=4 * BATCH, seed=seed))
    return data.map(shift).batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def train(train_set, test_set, tricks, options, strategy):
    """Trains one model; returns it, its test accuracy, and the cells of its row in the table."""
    keras.utils.set_random_seed(options.seed)
    ends = []
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ends.append(time.perf_counter()))]
    with strategy.scope():
        model = build(train_set[0].shape[1:], tricks)
        optimizer = kt.LAMB(0.01, weight_decay=0.01) if tricks else keras.optimizers.Adam(1e-3)
        if tricks and options.precision == "mixed_float16":
            optimizer = kt.LossScaleOptimizer(optimizer)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        one_device_xla = options.xla and not tricks and strategy.num_replicas_in_sync == 1
        model.compile(optimizer, loss, metrics=["accuracy"], jit_compile=one_device_xla)
        if tricks and options.xla:
            kt.jit(model)
    if tricks:
        cycle = kt.schedules.CyclicalLearningRate(1e-3, 0.03, step_size=options.steps / 4, mode="triangular2")
        callbacks += [
            kt.callbacks.CyclicLR(cycle, momentum=(0.95, 0.85)),
            kt.callbacks.Histograms(options.out / "logs" / time.strftime("%Y%m%d-%H%M%S")),
        ]
    print(f"\n{'With tricks' if tricks else 'Plain Keras'}: {options.steps} optimizer steps")
    start, each = time.perf_counter(), options.steps // ROUNDS
    data = batches(*train_set, tricks, options.seed)
    verbose = 2 if options.quiet else 1
    model.fit(data, epochs=ROUNDS, steps_per_epoch=each, shuffle=False, callbacks=callbacks, verbose=verbose)
    seconds = time.perf_counter() - start
    accuracy = model.evaluate(*test_set, batch_size=40, verbose=0)[1]
    if tricks:
        callbacks[-1].plot(options.out / "gradients.png")
    read = each * ROUNDS * BATCH // (2 if tricks else 1)
    step = 1000 * np.median(np.diff(ends)) / each
    return (
        model,
        accuracy,
        [f"{accuracy:.1%}", f"{seconds:.1f}", f"{step:.1f}", f"{kt.state_bytes(optimizer):,}", f"{read:,}"],
    )


def compare(options, strategy):
    """Trains both, prints the table, and saves the model with some of its predictions."""
    train_set, test_set = image_data.load(options.data, options.data_dir)
    options.out.mkdir(parents=True, exist_ok=True)
    _, plain, plain_cells = train(train_set, test_set, False, options, strategy)
    model, tricks, tricks_cells = train(train_set, test_set, True, options, strategy)

    columns = ("", "test accuracy", "seconds", "ms a step", "state, bytes", "images read")
    title = f"{options.data}, {strategy.num_replicas_in_sync} replica(s), {options.precision}"
    table = rich.table.Table(*columns, title=title + (", XLA" if options.xla else ""))
    table.add_row("plain Keras", *plain_cells)
    table.add_row("with tricks", *tricks_cells)
    rich.console.Console(width=96).print("", table)
    verdict = "win" if tricks > plain else "do not win" if tricks < plain else "draw"
    image = 100 / len(test_set[1])
    print(f"In accuracy the tricks {verdict} here: {100 * (tricks - plain):+.2f} points; a test image is {image:.2f}.")

    model.save(options.out / "model.keras")
    np.savez(options.out / "check.npz", x=test_set[0][:40], y=model.predict(test_set[0][:40], verbose=0))
    print(f"TensorBoard logs: {options.out / 'logs'}   (tensorboard --logdir {options.out / 'logs'})")
    print(
        f"Picture:          {options.out / 'gradients.png'}\nModel:            {options.out / 'model.keras'}",
        flush=True,
    )
    return subprocess.run([sys.executable, __file__, *sys.argv[1:], "--check"], check=False).returncode


def check(options, strategy):
    """Reloads the model, in a fresh process; returns 0 if it predicts what the trained one did."""
    saved = np.load(options.out / "check.npz")
    with strategy.scope():
        model = keras.models.load_model(options.out / "model.keras")
        if options.xla:
            kt.jit(model)
    difference = np.abs(model.predict(saved["x"], verbose=0) - saved["y"]).max()
    equal = difference <= 1e-6 * np.abs(saved["y"]).max()
    print(f"Reloaded in a fresh process: predictions {'equal' if equal else 'DIFFER'} (by at most {difference:.1e}).")
    return 0 if equal else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=image_data.NAMES)
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
    sys.exit(check(options, strategy) if options.check else compare(options, strategy))
