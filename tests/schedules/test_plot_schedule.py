import sys

import keras
import numpy as np
import pytest

import keras_tricks as kt

CYCLE = kt.schedules.OneCycle(0.1, 50)


@keras.saving.register_keras_serializable(package="test_plot_schedule")
class OneStepAtATime(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that asks in Python how far it is, and so takes single steps only."""

    def __call__(self, step):
        return keras.ops.cast(0.1 if int(step) < 20 else 0.01, "float32")


@keras.saving.register_keras_serializable(package="test_plot_schedule")
class WrongForSeveral(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule that takes several steps at once, and then means something else."""

    def __call__(self, step):
        return keras.ops.cast(step, "float32") / (1.0 + keras.ops.max(keras.ops.cast(step, "float32")))


@pytest.mark.parametrize(
    "schedule",
    [
        CYCLE,
        OneStepAtATime(),
        WrongForSeveral(),
        kt.schedules.WarmUp(kt.schedules.MultiFactor(0.1, 0.1, [5, 20]), 10),
        keras.optimizers.schedules.CosineDecay(0.0, 30, warmup_target=0.1, warmup_steps=10),
        keras.optimizers.schedules.PiecewiseConstantDecay([5, 20], [0.1, 0.05, 0.01]),
    ],
    ids=lambda s: type(s).__name__,
)
def test_the_line_is_the_schedule_at_every_step(schedule):
    figure = kt.schedules.plot(schedule, steps=50)
    (axes,) = figure.axes
    (line,) = axes.lines
    np.testing.assert_array_equal(line.get_xdata(), np.arange(50))
    np.testing.assert_allclose(line.get_ydata(), [float(schedule(t)) for t in range(50)], rtol=1e-4, atol=1e-9)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer step", "learning rate")


def test_several_schedules_and_momentum_are_told_apart_and_nothing_is_cut_off(tmp_path):
    import matplotlib.image

    schedules = {"one cycle": CYCLE, "square root, a name that is rather long": kt.schedules.SquareRoot(0.1)}
    path = tmp_path / "schedules.png"
    figure = kt.schedules.plot(schedules, 50, path, momentum=CYCLE.momentum())
    rates, momenta = figure.axes
    assert [text.get_text() for text in rates.get_legend().get_texts()] == list(schedules)
    assert len({line.get_color() for line in rates.lines}) == 2
    assert (rates.get_ylabel(), momenta.get_ylabel(), momenta.get_xlabel()) == (
        "learning rate",
        "momentum",
        "optimizer step",
    )
    assert momenta.lines[0].get_ydata().min() == pytest.approx(0.85)
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert 0 <= drawn.x0 < drawn.x1 <= width
    assert 0 <= drawn.y0 < drawn.y1 <= height
    assert matplotlib.image.imread(path).std() > 0.05


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_tricks\[plot\]'"):
        kt.schedules.plot(CYCLE, 50)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"schedule": 0.1}, TypeError),
        ({"schedule": {"a": 0.1}}, TypeError),
        ({"schedule": {}}, ValueError),
        ({"steps": 0}, ValueError),
        ({"steps": 10.0}, TypeError),
        ({"momentum": (0.95, 0.85)}, TypeError),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, error):
    with pytest.raises(error, match="Received"):
        kt.schedules.plot(**{"schedule": CYCLE, "steps": 50, **arguments})
