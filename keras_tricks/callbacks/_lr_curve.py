"""What a learning-rate range test found: the curve, the rules that read a rate off it, its words and its picture.

The rules are plain functions of (learning_rates, losses): `valley`, `steepest` and `minimum`. `valley` equals fastai's;
`steepest` takes the slope over the logarithm of the rate, even for equally spaced rates, and only before the lowest
loss.
"""

import dataclasses
import math

import numpy as np

SHORTEST = 5  # points; a curve with fewer says nothing
_CLEARLY = 5.0  # standard deviations; the lowest of many noisy values is far below their mean


@dataclasses.dataclass(frozen=True, eq=False)
class LRCurve:
    """What `find_lr` and `LRFinder` found; as a string, it says in words what to do.

    Attributes:
        learning_rates: Rates of the steps that were taken, (n,).
        raw_losses: Loss of the batches of each step, before the step, (n,).
        losses: The same, smoothed, (n,).
        stopped: Why the test ended: `"complete"`, `"diverged"`, `"not finite"` (the loss of the step after the last
            one), or `"out of data"`.
        smoothing: Weight of the past in the smoothed loss.
        mode: `"exp"` or `"linear"`.
        suggestions: Rates by the name of the rule; empty where the loss did not fall clearly.
        suggestion: The rate to start with, or `None`.
    """

    learning_rates: np.ndarray
    raw_losses: np.ndarray
    losses: np.ndarray
    stopped: str
    smoothing: float
    mode: str

    @property
    def suggestions(self):
        if not self._falls():
            return {}
        lowest = minimum(self.learning_rates, self.losses)
        found = {
            "valley": valley(self.learning_rates, self.losses),
            "steepest": steepest(self.learning_rates, self.losses),
            "minimum / 10": None if lowest is None else lowest / 10,
        }
        return {name: rate for name, rate in found.items() if rate is not None}

    @property
    def suggestion(self):
        return next(iter(self.suggestions.values()), None)

    def _falls(self):
        """Whether the smoothed loss falls by more than the noise that is left in it."""
        if len(self.losses) < SHORTEST:
            return False
        lowest = int(np.argmin(self.losses))
        if lowest < 2:
            return False
        few = max(SHORTEST, len(self.losses) // 10)
        start = self.raw_losses[:few].mean()
        # Differences between neighbours show the noise of single steps and hardly the trend; for noise of standard
        # deviation 1 the median of their size is 0.954. The end, where the loss may jump about, is left out.
        differences = np.abs(np.diff(self.raw_losses[: max(lowest + 1, len(self.losses) // 2)]))
        noise = np.median(differences) / 0.954
        weights = self.smoothing ** np.arange(lowest + 1)
        deviation = noise * math.hypot(math.sqrt(1 / few), math.sqrt((weights**2).sum()) / weights.sum())
        return start - self.losses[lowest] > max(_CLEARLY * deviation, 0.01 * abs(start))

    def __str__(self):
        if not len(self.losses):
            return (
                "The loss was not finite at the very first step, before the rate could matter. Look for NaN in the "
                "data, and for a loss that does not fit the model's output."
            )
        low, high = self.learning_rates[[0, -1]]
        lines = [f"{len(self.losses)} optimizer steps, rates {low:.2g} to {high:.2g}: {_ENDINGS[self.stopped]}"]
        if self.suggestion is None:
            if self.stopped == "out of data":
                advice = "Too few steps to say anything: give `fit` more epochs, or use `find_lr`, which repeats data."
            elif self.stopped == "complete":
                advice = (
                    "The loss did not fall clearly at any rate. Raise `max_learning_rate`; if that does not help, use "
                    "larger batches or more `steps` against noise, and check that the model can learn at all."
                )
            else:
                advice = (
                    "The loss did not fall clearly before it rose. Lower `min_learning_rate`, or use larger batches or "
                    "more `steps` against noise."
                )
            return "\n".join([*lines, advice])
        lines += [f"{name:14s}{rate:.2g}" for name, rate in self.suggestions.items()]
        name, rate = next(iter(self.suggestions.items()))
        lines.append(
            f"Start with learning_rate={rate:.2g} ({name}): the middle of the fall. It is a guess from a short run: "
            "where it matters, train with a third and with three times of it too."
            if name == "valley"
            else f"Start with learning_rate={rate:.2g} ({name})."
        )
        if int(np.argmin(self.losses)) >= len(self.losses) - 2 and self.stopped == "complete":
            lines.append("The loss was still falling at the end: raise `max_learning_rate` to see where it turns.")
        return "\n".join(lines)

    def plot(self, path):
        """Draws loss over rate, with the suggestions marked, to a file.

        Args:
            path: File to write; its ending names the format.

        Returns:
            `path`.

        Raises:
            ValueError: If there is no point to draw.
            ImportError: Without matplotlib.
        """
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("`LRCurve.plot` needs matplotlib: pip install 'keras_tricks[plot]'") from error
        if not len(self.losses):
            raise ValueError("There is nothing to draw: the loss was not finite at the first step.")
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        panel = figure.subplots()
        panel.plot(self.learning_rates, self.raw_losses, ".", color="0.7", markersize=5, label="loss of a step")
        panel.plot(self.learning_rates, self.losses, color="black", linewidth=2, label="smoothed loss")
        # Okabe and Ito's colours, and shapes for those who see no colour.
        looks = {"valley": ("#D55E00", "o"), "steepest": ("#0072B2", "s"), "minimum / 10": ("#009E73", "^")}
        for name, rate in self.suggestions.items():
            colour, shape = looks[name]
            height = np.interp(rate, self.learning_rates, self.losses)
            panel.axvline(rate, color=colour, linewidth=1, linestyle=":")
            look = {"color": colour, "markersize": 10, "markeredgecolor": "white", "label": f"{name}: {rate:.2g}"}
            panel.plot([rate], [height], shape, **look)
        if self.mode == "exp":
            panel.set_xscale("log")
        # Single losses near divergence would flatten the rest of the curve.
        low, high = min(self.losses.min(), np.quantile(self.raw_losses, 0.02)), self.losses.max()
        margin = 0.06 * (high - low) or 0.5
        panel.set_ylim(low - margin, high + margin)
        panel.set_xlabel("learning rate of the step" + (" (logarithmic)" if self.mode == "exp" else ""))
        panel.set_ylabel("training loss, mean of the step's batches")
        panel.set_title(f"{len(self.losses)} steps, {_ENDINGS[self.stopped].rstrip('.')}", fontsize=10)
        panel.grid(alpha=0.25)
        panel.legend(frameon=True)
        figure.savefig(path, dpi=120)
        return path


_ENDINGS = {
    "complete": "the whole range.",
    "diverged": "the loss diverged.",
    "not finite": "then the loss was not finite.",
    "out of data": "training ended before the range did.",
}


def valley(learning_rates, losses):
    """The rate in the middle of the longest fall, as fastai defines it.

    A fall is a sequence of ever smaller losses, gaps allowed. If it has `m` losses and ends at step `k`, the rate is
    that of step `k - m/2`: the wiggles of a flat beginning, which are mostly gaps, hardly count.

    Args:
        learning_rates: Rates in ascending order, (n,).
        losses: Smoothed losses at these rates, (n,).

    Returns:
        The rate, or `None` if no loss is below an earlier one.
    """
    rates, losses = _curve(learning_rates, losses)
    lengths = np.ones(len(losses), int)
    for i in range(1, len(losses)):
        lengths[i] = 1 + np.where(losses[:i] > losses[i], lengths[:i], 0).max()
    end = int(lengths.argmax())
    length = int(lengths[end])
    if length == 1:
        return None
    return float(rates[max(0, end - length + length // 3 + length // 6)])


def steepest(learning_rates, losses):
    """The rate where the loss falls fastest over the logarithm of the rate, before its lowest point.

    Args:
        learning_rates: Rates in ascending order, (n,).
        losses: Smoothed losses at these rates, (n,).

    Returns:
        The rate, or `None` if the loss does not fall.
    """
    rates, losses = _curve(learning_rates, losses)
    slopes = np.gradient(losses, np.log(rates))[: int(losses.argmin()) + 1]
    k = int(slopes.argmin())
    return float(rates[k]) if slopes[k] < 0 and losses.argmin() > 0 else None


def minimum(learning_rates, losses):
    """The rate of the lowest loss; a tenth of it is a common choice.

    Args:
        learning_rates: Rates in ascending order, (n,).
        losses: Smoothed losses at these rates, (n,).

    Returns:
        The rate, or `None` if the first loss is the lowest.
    """
    rates, losses = _curve(learning_rates, losses)
    k = int(losses.argmin())
    return float(rates[k]) if k else None


def _curve(learning_rates, losses):
    rates, losses = np.asarray(learning_rates, "float64"), np.asarray(losses, "float64")
    if rates.ndim != 1 or rates.shape != losses.shape or len(rates) < 2:
        raise ValueError(
            "`learning_rates` and `losses` must be two lists of the same length, at least 2. "
            f"Received: shapes {rates.shape} and {losses.shape}"
        )
    if not (np.isfinite(losses).all() and rates[0] > 0 and (np.diff(rates) > 0).all()):
        raise ValueError("`learning_rates` must be above 0 and ascend, and `losses` must be finite. Cut off the rest.")
    return rates, losses
