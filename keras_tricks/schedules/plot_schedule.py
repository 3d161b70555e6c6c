"""A picture of schedules over the steps of a run, to look at them before training."""

import keras
import numpy as np
from keras import ops

from keras_tricks._arguments import check_count

# Okabe and Ito's colours, which the colour-blind can tell apart too, without the yellow, which is too pale for a line.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#000000", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("-", "--", "-.", ":")


def plot(schedule, steps, path=None, momentum=None):
    """Draws the rate at each of the first `steps` optimizer steps, and the momentum below it.

    Args:
        schedule: A `LearningRateSchedule`, or a dictionary of several by the names to show.
        steps: Optimizer steps to draw, from 0 on.
        path: File to write; its ending names the format. Defaults to `None`, for no file.
        momentum: A schedule of momentum, or a dictionary of several, for a second panel. Defaults to `None`.

    Returns:
        The `matplotlib.figure.Figure`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If there is nothing to draw.
        ImportError: Without matplotlib.

    Example:
    >>> import keras_tricks as kt
    >>> cycle = kt.schedules.OneCycle(0.1, total_steps=100)
    >>> figure = kt.schedules.plot(cycle, steps=100, momentum=cycle.momentum())
    >>> [panel.get_ylabel() for panel in figure.axes]
    ['learning rate', 'momentum']
    """
    panels = {"learning rate": _named("schedule", schedule)}
    if momentum is not None:
        panels["momentum"] = _named("momentum", momentum)
    steps = check_count("steps", steps)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("`schedules.plot` needs matplotlib: pip install 'keras_tricks[plot]'") from error
    named = any(isinstance(given, dict) for given in (schedule, momentum))  # a legend stands next to the panels
    figure = Figure(figsize=(9 if named else 7, 3.6 if len(panels) == 1 else 5), layout="constrained")
    all_axes = figure.subplots(
        len(panels), 1, sharex=True, squeeze=False, height_ratios=(2.2, 1)[: len(panels)]
    ).ravel()
    for axes, (label, schedules) in zip(all_axes, panels.items(), strict=True):
        for i, (name, one) in enumerate(schedules.items()):
            look = {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i % len(DASHES)], "linewidth": 1.8}
            axes.plot(np.arange(steps), _values(one, steps), label=name, **look)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        if isinstance(schedule if label == "learning rate" else momentum, dict):
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, handlelength=3)
    all_axes[-1].set_xlabel("optimizer step")
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _named(argument, schedules):
    schedules = schedules if isinstance(schedules, dict) else {"": schedules}
    if not schedules:
        raise ValueError(f"`{argument}` has no schedule to draw. Received: {argument}={schedules}")
    for one in schedules.values():
        if not isinstance(one, keras.optimizers.schedules.LearningRateSchedule):
            raise TypeError(
                f"`{argument}` must be a keras LearningRateSchedule, or a dictionary of them. Received: {one!r} "
                f"({type(one).__name__})"
            )
    return schedules


def _values(schedule, steps):
    """The schedule at each step: all at once where it can take them so with the same result, else one by one."""

    def at(step):
        return np.asarray(ops.convert_to_numpy(schedule(step)), "float64")

    some = np.unique(np.linspace(0, steps - 1, 16).astype(int))
    try:
        values = at(ops.arange(steps))
    except Exception:  # it may hold a condition on the step, or anything else that wants a single one
        values = None
    if values is None or values.shape != (steps,) or not np.allclose(values[some], [at(int(t)) for t in some], 1e-4):
        values = np.array([at(t) for t in range(steps)])
    return values
