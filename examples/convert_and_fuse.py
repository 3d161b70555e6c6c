"""From a network of keras.applications to a deployed one: tricks put in, trained, folded away, exported.

    python examples/convert_and_fuse.py                                           # about a minute on two cores
    python examples/convert_and_fuse.py --tricks extended_batch_normalization ac_conv --steps 400

Trains MobileNetV2 as it is and converted, folds both into plain layers, and exports the converted one as a SavedModel
and for LiteRT. Prints for each form the accuracy, the time of one image, and how far its outputs are from the model's.
"""

import argparse
import os
import pathlib
import time
import warnings

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import image_data
import keras
import numpy as np
import rich.console
import rich.table
import tensorflow as tf
from matplotlib.figure import Figure

import keras_tricks as kt

TRICKS = {
    "extended_batch_normalization": [keras.layers.BatchNormalization],
    "ws_conv": [keras.layers.Conv2D, keras.layers.DepthwiseConv2D],
    "ac_conv": [keras.layers.Conv2D],
}


def train(model, images, labels, options):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(options.rate), loss)
    data = tf.data.Dataset.from_tensor_slices((images, labels))
    data = data.shuffle(len(labels), seed=options.seed).repeat().batch(options.batch)
    if options.steps:
        model.fit(data, epochs=1, steps_per_epoch=options.steps, shuffle=False, verbose=2)
    # MobileNetV2's moving statistics move by 0.1 % a step: after so few they are still those of the start.
    kt.models.recompute_statistics(model, data, steps=10)


def saved_model(model, folder):
    """The model as TensorFlow Serving would run it, from the files of `export`."""
    model.export(folder, verbose=False)
    loaded = tf.saved_model.load(folder)
    return lambda x: loaded.serve(x).numpy()


def litert(model, file):
    """The model as a phone would run it, one image at a time."""
    model.export(file, format="litert", verbose=False)
    interpreter = tf.lite.Interpreter(str(file))
    interpreter.allocate_tensors()
    (given,), (returned,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(x):
        outputs = []
        for image in x:
            interpreter.set_tensor(given["index"], image[None])
            interpreter.invoke()
            outputs.append(interpreter.get_tensor(returned["index"])[0])
        return np.stack(outputs)

    return run


def milliseconds(forms, image, repeats):
    """The median time of one image; the forms take turns, so that a busy machine slows all of them down."""
    times = {name: [] for name in forms}
    for form in forms.values():
        form(image)  # the first call traces
    for _ in range(repeats):
        for name, form in forms.items():
            start = time.perf_counter()
            form(image)
            times[name].append(1000 * (time.perf_counter() - start))
    return {name: float(np.median(of)) for name, of in times.items()}


def verdict(rows, count):
    """What is seen, in a sentence."""
    before, after = rows["converted"]["ms"], rows["converted, fused"]["ms"]
    exported = [row for name, row in rows.items() if name.startswith(("fused", "converted, "))]
    gain = 100 * (rows["converted"]["accuracy"] - rows["plain"]["accuracy"])
    return (
        f"With this seed the tricks change the test accuracy by {gain:+.1f} points (an image is {100 / count:.1f}); "
        f"fusing brings an image from {before:.1f} to {after:.1f} ms, where the plain network fused takes "
        f"{rows['plain, fused']['ms']:.1f}; the deployed forms differ from the trained model by up to "
        f"{max(row['difference'] for row in exported):.0e} of its largest output, and change "
        f"{max(row['changed'] for row in exported)} of {count} predictions at most."
    )


def draw(rows, title, file):
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colors = ["tab:gray" if name.startswith("plain") else "tab:green" for name in rows]
    bars = left.barh(list(rows), [row["ms"] for row in rows.values()], color=colors)
    left.bar_label(bars, fmt="%.2f", padding=3)
    left.set(xlabel="ms an image")
    left.margins(x=0.12)
    left.invert_yaxis()
    differences = [row["difference"] or np.nan for row in rows.values()]  # the trained models have none
    right.scatter(differences, list(rows), color=colors)
    right.axvline(np.finfo("float32").eps, color="0.6", linestyle="--", label="float32's epsilon")
    right.set(xscale="log", xlim=(1e-8, 10 * max(1e-5, np.nanmax(differences))))
    right.set(xlabel="largest difference of outputs / largest output")
    right.legend()
    figure.suptitle(title)
    figure.savefig(file, dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=image_data.NAMES)
    parser.add_argument("--data-dir", help="folder of prepared tensorflow_datasets")
    parser.add_argument("--tricks", nargs="+", default=["extended_batch_normalization", "ws_conv"], choices=TRICKS)
    parser.add_argument("--width", type=float, default=0.35, help="width multiplier of MobileNetV2 (default 0.35)")
    for name, default in {"steps": 120, "batch": 32, "repeats": 50, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default {default}")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate (default 0.002)")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/convert_and_fuse"))
    options = parser.parse_args()
    if {"ws_conv", "ac_conv"} <= set(options.tricks):
        parser.error("--tricks: a convolution becomes ws_conv or ac_conv, not both")
    for name, least in {"steps": 0, "batch": 2, "repeats": 1}.items():
        if getattr(options, name) < least:
            parser.error(f"--{name} must be at least {least}. Received: {getattr(options, name)}")
    tf.get_logger().setLevel("ERROR")  # each model is traced anew, and TensorFlow would advise against it
    warnings.filterwarnings("ignore", ".*tf.lite.Interpreter is deprecated")
    options.out.mkdir(parents=True, exist_ok=True)
    (images, labels), (test_images, test_labels) = image_data.load(options.data, options.data_dir)
    # MobileNetV2 takes no less than 32 x 32.
    images, test_images = (tf.image.resize(part, (32, 32)).numpy() for part in (images, test_images))

    keras.utils.set_random_seed(options.seed)
    plain = keras.applications.MobileNetV2(
        images.shape[1:], options.width, weights=None, classes=10, classifier_activation=None
    )
    converted, report = kt.convert(plain, {cls: trick for trick in options.tricks for cls in TRICKS[trick]})
    print(str(report).split("\n")[0])
    for model in (plain, converted):
        train(model, images, labels, options)
    fused_plain, fused = (kt.fuse(model, probe=test_images[:32]) for model in (plain, converted))
    print(str(fused.fuse_report).split("\n")[0])

    models = {"plain": plain, "plain, fused": fused_plain, "converted": converted, "converted, fused": fused}
    forms = {name: lambda x, model=model: model.predict_on_batch(x) for name, model in models.items()}
    forms["fused, SavedModel"] = saved_model(fused, options.out / "saved_model")
    forms["fused, LiteRT"] = litert(fused, options.out / "model.tflite")
    times = milliseconds(forms, test_images[:1], options.repeats)

    rows, outputs = {}, {}
    for name, form in forms.items():
        parts = np.array_split(test_images, -(-len(test_images) // 200))
        outputs[name] = np.concatenate([form(part) for part in parts])
        origin = outputs["plain" if name.startswith("plain") else "converted"]
        difference = np.abs(outputs[name] - origin).max() / np.abs(origin).max()
        changed = int(np.sum(outputs[name].argmax(-1) != origin.argmax(-1)))
        accuracy = np.mean(outputs[name].argmax(-1) == test_labels)
        rows[name] = {"ms": times[name], "difference": difference, "changed": changed, "accuracy": accuracy}
    table = rich.table.Table("", "layers", "parameters", "test accuracy", "ms an image", "difference", "changed")
    for name, row in rows.items():
        model = models.get(name, fused)
        table.add_row(
            name,
            str(len(model.layers)),
            f"{model.count_params():,}",
            f"{row['accuracy']:.1%}",
            f"{row['ms']:.2f}",
            f"{row['difference']:.0e}" if row["difference"] else "-",
            str(row["changed"]) if row["difference"] else "-",
        )
    table.title = f"{options.data}; MobileNetV2, converted: {', '.join(options.tricks)}"
    rich.console.Console(width=110).print("", table)
    print(verdict(rows, len(test_labels)))
    draw(rows, table.title, options.out / "convert_and_fuse.png")
    print(f"Picture: {options.out / 'convert_and_fuse.png'}")


if __name__ == "__main__":
    main()
