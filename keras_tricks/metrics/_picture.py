"""The picture of `recall_by_class`: each class's recall against its number of training examples."""

import numpy as np

from keras_tricks.metrics.shot_accuracy import groups_of

NAMED = 20  # classes, at most, whose names a picture has room for
# Okabe and Ito's colours without the yellow, and a shape each for those who see no colour.
LOOKS = (
    ("#0072b2", "o"),
    ("#d55e00", "s"),
    ("#009e73", "^"),
    ("#000000", "D"),
    ("#cc79a7", "v"),
    ("#56b4e9", "P"),
    ("#e69f00", "X"),
)


def recalls_over_counts(results):
    """A figure with a mark for each class and a line for each group, from a dict of results by the names to show."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogFormatter
    except ImportError as error:
        raise ImportError("`plot_recalls` needs matplotlib: pip install 'keras_tricks[plot]'") from error
    first = next(iter(results.values()))
    counts = np.maximum(first.class_counts, 1)  # an empty class has a place on a logarithmic axis, too
    figure = Figure(figsize=(8, 4.8), layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    low, high = counts.min() / 1.35, counts.max() * 1.35
    spans = _shade(axes, first, low, high)
    crowded = len(counts) > 200
    for i, ((name, result), (colour, shape)) in enumerate(zip(results.items(), LOOKS, strict=False)):
        label = f"{name}\n" if name else ""
        label += f"accuracy {result.accuracy:.3f}\nbalanced {result.balanced_accuracy:.3f}"
        look = {"color": colour, "linestyle": "none", "markeredgecolor": "white", "markeredgewidth": 0.5}
        # The first marks are the largest, so that none is hidden below another.
        size, alpha = (4, 0.5) if crowded else (7 + 2.5 * (len(results) - 1 - i) / max(len(results) - 1, 1), 0.9)
        axes.plot(counts, result.recall, shape, label=label, markersize=size, alpha=alpha, zorder=3, **look)
        for group, (left, right) in spans.items():
            axes.plot([left, right], [result.groups[group]] * 2, color=colour, linewidth=2, alpha=0.8, zorder=2)
    if len(counts) <= NAMED:
        _name(axes, counts, [result.recall for result in results.values()], first.class_names)
    axes.set_xlim(low, high)
    axes.set_ylim(-0.04, 1.12)
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))  # where there is room for them
    axes.set_xlabel("training examples of the class (logarithmic)")
    axes.set_ylabel("recall")
    axes.set_title("marks: classes; lines: means of the groups", fontsize=9, color="0.25", loc="left")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, labelspacing=1.2)
    return figure


def shortened(name, length):
    return name if len(name) <= length else f"{name[: length - 1]}…"


def _shade(axes, result, low, high):
    """Shades the groups, and returns the range of each."""
    # Between two groups the edge is in the middle of the nearest classes' counts.
    counts = np.maximum(result.class_counts, 1)
    groups = {
        name: counts[of] for name, of in groups_of(result.class_counts, result.many, result.few).items() if of.any()
    }
    edges = [high]
    for upper, lower in zip(list(groups.values())[:-1], list(groups.values())[1:], strict=True):
        edges.append(np.sqrt(float(upper.min()) * lower.max()))
    edges.append(low)
    shades = {"many": "0.93", "medium": "0.97", "few": "0.89"}
    spans = {}
    for name, right, left in zip(groups, edges[:-1], edges[1:], strict=True):
        axes.axvspan(left, right, color=shades[name], linewidth=0, zorder=0)
        axes.text(np.sqrt(left * right), 1.105, name, ha="center", va="top", fontsize=10, color="0.25")
        spans[name] = left, right
    return spans


def _name(axes, counts, recalls, names):
    """Names the classes next to their highest marks; classes at the same place share a label."""
    highest = np.array([np.nan_to_num(values, nan=-1.0) for values in recalls]).max(axis=0)
    places = {}
    for j in np.argsort(-highest, kind="stable"):
        if highest[j] >= 0:
            near = (p for p in places if abs(np.log(p[0] / counts[j])) < 0.05 and abs(p[1] - highest[j]) < 0.045)
            places.setdefault(next(near, (counts[j], highest[j])), []).append(names[j])
    for (x, y), some in places.items():
        text = shortened(", ".join(some), 40)
        look = {"ha": "center", "va": "bottom", "fontsize": 8, "zorder": 4}
        behind = {"boxstyle": "round,pad=0.1", "facecolor": "white", "alpha": 0.6, "linewidth": 0}
        axes.annotate(text, (x, y), xytext=(0, 7), textcoords="offset points", bbox=behind, **look)
