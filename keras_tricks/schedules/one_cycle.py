"""One cycle: the rate rises to a high peak and falls to almost nothing, once, over the whole run.

    torch, T steps:   rise     max/div_factor -> max                              over steps 0 ... pct_start·T - 1
                      fall     max -> max/(div_factor·final_div_factor)           over steps   ... T - 1
    fastai, T steps:  the peak at pct_start·T, the end, max/final_div_factor, at T
    from a to b:      b + (a - b)·(1 + cos(π·p))/2 or b + (a - b)·(1 - p),        p: share of the phase that is over

Smith and Topin, 2017, arXiv:1708.07120. Equals torch's OneCycleLR or fastai's fit_one_cycle where these give a value,
and stays at its last value afterwards, where torch raises an error.
"""

import math

import keras
from keras import ops

from keras_tricks._arguments import check_choice, check_count, check_flag, check_number


@keras.saving.register_keras_serializable(package="keras_tricks")
class OneCycle(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that rises to `max_learning_rate` and falls to almost nothing, once in `total_steps` optimizer steps.

    The rise starts at `max_learning_rate / div_factor` and takes the share `pct_start` of the steps (there is none
    where that is less than one step). A pure function of the optimizer step, which starts at 0; after `total_steps` it
    stays at its last value.

    Args:
        max_learning_rate: The rate at the peak.
        total_steps: Optimizer steps of the whole cycle: epochs times steps per epoch, divided by the steps of gradient
            accumulation.
        pct_start: Share of the steps that rise, from 0 to 1. Defaults to `0.3`; fastai's default is 0.25.
        div_factor: The peak divided by the first rate. Defaults to `25.0`.
        final_div_factor: The first rate divided by the last one; with `definition="fastai"` the peak divided by the
            last rate. Defaults to `1e4`; fastai's default is 1e5.
        anneal_strategy: `"cos"` (default), half a cosine in each phase, or `"linear"`.
        three_phase: If `True`, the fall mirrors the rise and ends at the first rate, and a third phase continues from
            there to the last rate. `pct_start` is at most 0.5 then. Defaults to `False`.
        definition: `"torch"` (default): the peak is at step `pct_start * total_steps - 1`, the end at the last step,
            `total_steps - 1`. `"fastai"`: the peak is at `pct_start * total_steps`, the end at `total_steps`, one
            step after the last.
        name: Name of the schedule. Defaults to `"OneCycle"`.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If a number is out of range, or for an unknown strategy or definition.

    Example:
    >>> import keras_tricks as kt
    >>> cycle = kt.schedules.OneCycle(1.0, total_steps=10, div_factor=10.0, final_div_factor=10.0)
    >>> [round(float(cycle(step)), 2) for step in range(10)]
    [0.1, 0.55, 1.0, 0.95, 0.81, 0.62, 0.39, 0.2, 0.06, 0.01]
    >>> momentum = cycle.momentum(high=0.95, low=0.85)
    >>> [round(float(momentum(step)), 2) for step in (0, 2, 9)]
    [0.95, 0.85, 0.95]

    Reference:
        Leslie N. Smith, Nicholay Topin, "Super-Convergence: Very Fast Training of Neural Networks Using Large Learning
        Rates", 2017, arXiv:1708.07120.
    """

    def __init__(
        self,
        max_learning_rate,
        total_steps,
        pct_start=0.3,
        div_factor=25.0,
        final_div_factor=1e4,
        anneal_strategy="cos",
        three_phase=False,
        definition="torch",
        name="OneCycle",
    ):
        super().__init__()
        self.max_learning_rate = check_number("max_learning_rate", max_learning_rate, above=0)
        self.total_steps = check_count("total_steps", total_steps)
        self.pct_start = check_number("pct_start", pct_start, at_least=0, at_most=1)
        self.div_factor = check_number("div_factor", div_factor, above=0)
        self.final_div_factor = check_number("final_div_factor", final_div_factor, above=0)
        check_choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
        check_flag("three_phase", three_phase)
        check_choice("definition", definition, ("torch", "fastai"))
        if three_phase and definition == "fastai":
            raise ValueError(
                "fastai defines no third phase. Received: three_phase=True, definition='fastai'. Leave one of them out."
            )
        if three_phase and pct_start > 0.5:
            raise ValueError(
                "With `three_phase=True` rise and fall take `pct_start` each, so it must be at most 0.5. Received: "
                f"pct_start={pct_start}"
            )
        self.anneal_strategy = anneal_strategy
        self.three_phase = three_phase
        self.definition = definition
        self.name = name

    def __call__(self, step):
        phases = self._phases()
        step = ops.minimum(ops.cast(step, "float32"), phases[-1][1])
        rate = None
        for begin, end, first, last in reversed(phases):
            # Counted from the end: there the rate is small, and 1 - p or 1 + cos(π·p) would lose it in float32.
            left = (end - step) / ((end - begin) or 1.0)
            if self.anneal_strategy == "cos":
                left = ops.square(ops.sin(math.pi / 2 * left))
            here = last + (first - last) * left
            rate = here if rate is None else ops.where(step <= end, here, rate)
        return rate

    def momentum(self, high=0.95, low=0.85):
        """The schedule of momentum that goes with this one: `high`, `low` at the peak of the rate, and `high` again.

        Args:
            high: Momentum where the rate is low. Defaults to `0.95`.
            low: Momentum at the peak of the rate. Defaults to `0.85`.

        Returns:
            A `OneCycle` with the same phases, for `keras_tricks.callbacks.CyclicLR(cycle, momentum=...)`.

        Raises:
            ValueError: Unless 0 < low <= high < 1.
        """
        high, low = (check_number(name, x, above=0, below=1) for name, x in (("high", high), ("low", low)))
        if low > high:
            raise ValueError(f"Momentum needs 0 < low <= high < 1. Received: high={high}, low={low}")
        start = low / high  # of the "peak", which is the lowest point here, to the value at the start
        return OneCycle(
            **{
                **self.get_config(),
                "max_learning_rate": low,
                "div_factor": start,
                "final_div_factor": start if self.definition == "fastai" else 1.0,
                "name": f"{self.name}_momentum",
            }
        )

    def _phases(self):
        # (first step, last step, first rate, last rate) of each.
        high, steps, rise = self.max_learning_rate, self.total_steps, self.pct_start * self.total_steps
        low = high / self.div_factor
        if self.definition == "fastai":
            ends, rates = [rise, steps], [low, high, high / self.final_div_factor]
        elif self.three_phase:
            ends, rates = [rise - 1, 2 * rise - 2, steps - 1], [low, high, low, low / self.final_div_factor]
        else:
            ends, rates = [rise - 1, steps - 1], [low, high, low / self.final_div_factor]
        return list(zip([0, *ends[:-1]], ends, rates[:-1], rates[1:], strict=True))

    def get_config(self):
        return {
            "max_learning_rate": self.max_learning_rate,
            "total_steps": self.total_steps,
            "pct_start": self.pct_start,
            "div_factor": self.div_factor,
            "final_div_factor": self.final_div_factor,
            "anneal_strategy": self.anneal_strategy,
            "three_phase": self.three_phase,
            "definition": self.definition,
            "name": self.name,
        }
