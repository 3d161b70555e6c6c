"""Long-tailed classes: plain training and the methods for it, on the same data, network and number of steps.

    python examples/long_tail.py
    python examples/long_tail.py --data cifar10 --data-dir FOLDER --methods all --out recalls.png
    python examples/long_tail.py --data sms_spam --file SMSSpamCollection

Prints accuracy, balanced accuracy (the mean recall of the classes) and the mean recall of frequent and of rare classes,
and draws the recall of each class against its number of training examples, before and after. Images are made
long-tailed in training only. `sms_spam` is the SMS Spam Collection, real text in which one message in seven is spam: a
file with one message per line, after "ham" or "spam" and a tab.
"""

import argparse
import os
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import image_data
import keras
import numpy as np
import rich.console
import rich.table
from long_tail_methods import METHODS, SECOND_STAGE, second_stage, train

import keras_tricks as kt

EPOCHS = {"digits": 40, "sms_spam": 10}  # others: 20
IMBALANCE = {"digits": 20}  # others: 100
DEFAULTS = ["balanced_softmax", "ldam_drw", "class_balanced_sampling", "post_hoc_adjustment", "crt"]


def load_messages(file):
    """The SMS collection as bags of words, a fifth of it for testing; or exits with a message."""
    try:
        with open(file, encoding="utf-8", errors="replace") as lines:
            rows = [line.rstrip("\n").split("\t", 1) for line in lines if line.strip()]
    except OSError as error:
        sys.exit(
            f"\nThe SMS Spam Collection is not at {file} ({type(error).__name__}).\nWith a network, take it from the "
            "UCI repository, https://archive.ics.uci.edu/dataset/228/sms+spam+collection, unpack it, and name the file "
            "SMSSpamCollection by --file. Or use --data digits, which needs nothing."
        )
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or row[0] not in ("ham", "spam"):
            sys.exit(f"\nMessage {number} of {file} must be 'ham' or 'spam', a tab and a text. Received: {row!r:.80}")
    rows = list(dict.fromkeys(map(tuple, rows)))  # a message that occurs twice must not end up in both parts
    labels, texts = np.array([row[0] == "spam" for row in rows], "int32"), np.array([row[1] for row in rows])
    order = np.random.default_rng(0).permutation(len(rows))
    order = order[np.argsort(labels[order], kind="stable")]  # so every fifth one is a fifth of ham and of spam
    test, training = order[::5], np.delete(order, slice(None, None, 5))
    counts = np.bincount(labels[training], minlength=2)
    if counts.min() == 0 or len(set(labels[test])) < 2:
        sys.exit(f"\n{file} has too few messages: both parts need ham and spam. Received: {len(rows)} messages.")
    words = keras.layers.TextVectorization(2000, output_mode="multi_hot")
    words.adapt(texts[training])
    training, test = ((np.asarray(words(texts[part]), "float32"), labels[part]) for part in (training, test))
    between = int(counts.mean())
    return image_data.LongTailed(training, test, counts, ["ham", "spam"], many=between, few=between)


def judge(model, data):
    """Recall and precision of each class on the test set."""
    inputs, labels = data.test
    logits = model.predict(inputs, batch_size=500, verbose=0)
    return kt.metrics.recall_by_class(labels, logits, data.counts, data.names, data.many, data.few)


def compare(data, options):
    """Trains the plain model and the others, and returns their recalls by class."""
    groups = {
        "many": data.counts > data.many,
        "medium": (data.counts <= data.many) & (data.counts >= data.few),
        "few": data.counts < data.few,
    }
    groups = {name: np.flatnonzero(of) for name, of in groups.items() if of.any()}
    for name, classes in groups.items():
        print(f"{name}: {', '.join(f'{data.names[j]} ({data.counts[j]:,})' for j in classes)}")
    columns = [f"recall of {data.names[of[0]]}" if len(of) == 1 else name for name, of in groups.items()]
    rare = int(data.counts.argmin())
    columns += [f"precision of {data.names[rare]}"] * (len(data.names) == 2)
    method = rich.table.Column("method", no_wrap=True)
    table = rich.table.Table(method, "accuracy", "balanced accuracy", *columns, "seconds")
    results, plain = {}, None
    for method in dict.fromkeys(["plain", *options.methods]):
        start = time.perf_counter()
        if method in SECOND_STAGE:
            model = second_stage(method, plain, data, options.epochs, options.seed)
        else:
            model = train(method, data, options.epochs, options.seed)
        seconds = time.perf_counter() - start
        plain = model if method == "plain" else plain
        found = results[method] = judge(model, data)
        figures = [found.accuracy, found.balanced_accuracy, *found.groups.values()]
        figures += [found.precision[rare]] * (len(data.names) == 2)
        more = "+ " * (method in SECOND_STAGE)  # in addition to the plain model's
        table.add_row(method, *(f"{figure:.1%}" for figure in figures), f"{more}{seconds:.1f}")
        print(f"{method}: balanced accuracy {found.balanced_accuracy:.1%} after {seconds:.1f} s", flush=True)
    rich.console.Console(width=120).print("", table)
    return results


def verdict(results):
    """Whether the methods helped, in words."""
    plain = results["plain"]
    others = {name: found for name, found in results.items() if name != "plain"}
    if not others:
        return "Nothing to compare the plain training with: name --methods."
    best = max(others, key=lambda name: others[name].balanced_accuracy)
    gain = others[best].balanced_accuracy - plain.balanced_accuracy
    # The standard error of the difference, for a test set of this size and one seed.
    variances = [r.recall * (1 - r.recall) / r.support for r in (plain, others[best])]
    error = np.sqrt(np.sum(variances)) / len(plain.recall)
    better = sum(found.balanced_accuracy > plain.balanced_accuracy for found in others.values())
    clearly = "more" if gain > 2 * error else "not more"
    return (
        f"{better} of {len(others)} methods {'has' if better == 1 else 'have'} a better balanced accuracy than plain "
        f"training. The best, {best}, differs by {100 * gain:+.1f} points, and by "
        f"{100 * (others[best].accuracy - plain.accuracy):+.1f} in accuracy: {clearly} than chance explains with this "
        f"test set (two standard errors are {200 * error:.1f} points; other seeds differ, too)."
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="digits", choices=["digits", "fashion_mnist", "cifar10", "sms_spam"])
    parser.add_argument("--data-dir", help="folder of prepared tensorflow_datasets")
    parser.add_argument("--file", help="file of the SMS Spam Collection")
    parser.add_argument("--imbalance", type=float, help="largest class over smallest (default 20 for digits, else 100)")
    parser.add_argument("--methods", nargs="+", default=DEFAULTS, choices=[*METHODS, "all"], metavar="METHOD")
    parser.add_argument("--epochs", type=int, help="default 40 for digits, 10 for sms_spam, else 20")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", help="file for a picture of the recalls")
    options = parser.parse_args()
    options.methods = METHODS if "all" in options.methods else options.methods
    options.epochs = EPOCHS.get(options.data, 20) if options.epochs is None else options.epochs
    if options.epochs < 1:
        parser.error(f"--epochs must be at least 1. Received: {options.epochs}")
    if options.data == "sms_spam":
        if options.file is None or options.imbalance is not None:
            parser.error("sms_spam is imbalanced as it is: it takes --file, the SMS collection, and no --imbalance.")
        data = load_messages(options.file)
        always = np.mean(data.test[1] == 0)
        print(
            f"The {len(data.test[1]):,} test messages are as imbalanced as the others: to say ham always has an "
            f"accuracy of {always:.1%}, and a balanced accuracy of 50.0%.\nThe methods aim at the latter, as if spam "
            "were half of all messages, and pay with ham that is called spam: see the precision."
        )
    else:
        imbalance = IMBALANCE.get(options.data, 100) if options.imbalance is None else options.imbalance
        if not imbalance >= 2:
            parser.error(f"--imbalance must be at least 2. Received: {imbalance:g}")
        try:
            data = image_data.load_long_tailed(options.data, options.data_dir, imbalance)
        except ValueError as error:
            parser.error(f"--imbalance {imbalance:g}: {error}")
    results = compare(data, options)
    print(verdict(results))
    if options.out:
        others = [name for name in results if name != "plain"]
        best = sorted(others, key=lambda name: results[name].balanced_accuracy)[-1:]
        kt.metrics.plot_recalls({name: results[name] for name in ("plain", *best)}, options.out)
        print(f"Picture: {options.out}")


if __name__ == "__main__":
    main()
