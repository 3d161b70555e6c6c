"""Pictures of the records of `Histograms`."""

import math

import numpy as np

from keras_tricks.callbacks._tallies import BINS, HIGHEST_EXPONENT, LOWEST_EXPONENT, magnitudes

RIDGES = 12  # of one panel
LINES = 6


def ridges(records, most, what):
    """A panel for each of up to `most` variables or layers, with one curve per record, the latest on top."""
    from matplotlib import cm, colors
    from matplotlib.figure import Figure

    chosen = _spread(records, most)
    rows = math.ceil(len(chosen) / 4)
    columns = math.ceil(len(chosen) / rows)
    figure = Figure(figsize=(3.1 * columns + 1.1, 3.0 * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False)
    exponents = np.linspace(LOWEST_EXPONENT, HIGHEST_EXPONENT, BINS + 1)
    middles = (exponents[1:] + exponents[:-1]) / 2
    steps = [r["step"] for r in records]
    color = cm.ScalarMappable(colors.Normalize(min(steps), max(max(steps), min(steps) + 1)), "cividis")
    used = np.zeros(BINS, bool)
    for panel, path in zip(panels.flat, chosen, strict=False):
        of_path = _thinned([r for r in records if r["path"] == path], RIDGES)
        shares = [magnitudes(r["counts"]) / max(r["counts"].sum(), 1) for r in of_path]
        used |= np.max(shares, axis=0) > 0.002
        height = max(np.max(shares), 1e-9) / 2.5  # a ridge may reach over the two above it
        for position, (record, share) in reversed(list(enumerate(zip(of_path, shares, strict=True)))):
            line = position + share / height
            panel.fill_between(middles, position, line, color=color.to_rgba(record["step"]), linewidth=0, alpha=0.85)
            panel.plot(middles, line, color="white", linewidth=0.6)
        ticks = _thinned(list(range(len(of_path))), 5)
        panel.set_yticks(ticks, [f"{of_path[t]['step']}" for t in ticks], fontsize=8)
        zeros = of_path[-1]["zeros"]
        name = _short(path)
        panel.set_title(name if zeros < 0.005 else f"{name}\n{zeros:.0%} exact zeros", fontsize=9)
        panel.tick_params(labelsize=8, labelbottom=True)
    for panel in list(panels.flat)[len(chosen) :]:
        panel.set_visible(False)
    first, last = np.flatnonzero(used)[[0, -1]] if used.any() else (0, BINS - 1)
    panels[0, 0].set_xlim(exponents[max(first - 1, 0)], exponents[min(last + 2, BINS)])
    figure.supxlabel(f"log10 of the size of {what}", fontsize=9)
    figure.supylabel("optimizer step; height: share of the values", fontsize=9)
    return figure


def gradient_flow(records):
    """The norm of each kernel's gradient, in order of depth, at several times."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    paths = _spread(records, 10**6)
    number = {path: n for n, path in enumerate(paths, start=1)}
    steps = _thinned(sorted({r["step"] for r in records if r["path"] in number}), LINES)
    figure = Figure(figsize=(max(5.5, min(11, 0.35 * len(paths) + 3)), 4.2), layout="constrained")
    panel = figure.subplots()
    for n, step in enumerate(steps):
        # What a logarithmic axis cannot show leaves a gap: a line across it would be invented.
        norms = np.full(len(paths), np.nan)
        for r in records:
            if r["step"] == step and r["path"] in number and 0 < r["norm"] < math.inf:
                norms[number[r["path"]] - 1] = r["norm"]
        color = colormaps["cividis"](0.9 * n / max(len(steps) - 1, 1))
        panel.plot(range(1, len(paths) + 1), norms, marker="o", markersize=4, color=color, label=step)
    panel.set_yscale("log")
    if len(paths) <= 25:
        panel.set_xticks(range(1, len(paths) + 1), [_short(p) for p in paths], rotation=60, ha="right", fontsize=8)
    panel.set_xlabel("kernels, from the input to the output")
    panel.set_ylabel("norm of the gradient")
    panel.grid(alpha=0.3)
    panel.legend(title="optimizer step", fontsize=8, title_fontsize=8)
    return figure


def _spread(records, most):
    rank = {r["path"]: r["rank"] for r in records}
    kernels = [p for p in rank if rank[p] > 1] or list(rank)
    return _thinned(kernels, most)


def _thinned(items, most):
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / max(most - 1, 1))] for i in range(most)]


def _short(path):
    """The last two parts of a path; the name of the model is the same for all."""
    parts = path.split("/")
    name = "/".join(parts[-2:])
    return name if len(name) <= 32 else f"…{name[-31:]}"
