import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import reference


@pytest.mark.parametrize("milestones", [[3], [0, 5], (2, 4, 9), np.array([1, 2, 7])], ids=str)
def test_multiplies_at_the_step_of_each_milestone(milestones):
    schedule = kt.schedules.MultiFactor(0.4, 0.1, milestones)
    want = [reference.multi_factor_rate(t, 0.4, 0.1, milestones) for t in range(12)]
    np.testing.assert_allclose([float(schedule(t)) for t in range(12)], want, rtol=1e-5)


def test_changes_one_step_before_keras_boundary():
    ours = kt.schedules.MultiFactor(0.4, 0.5, [3, 6])
    theirs = keras.optimizers.schedules.PiecewiseConstantDecay([2, 5], [0.4, 0.2, 0.1])
    assert [float(ours(t)) for t in range(9)] == pytest.approx([float(theirs(t)) for t in range(9)])


def test_milestones_of_a_long_run_are_exact():
    schedule = kt.schedules.MultiFactor(1.0, 0.5, [2**24 + 1])  # not a float32
    assert [float(schedule(2**24 + k)) for k in (0, 1)] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"initial_learning_rate": None}, TypeError),
        ({"factor": 10}, ValueError),
        ({"milestones": []}, ValueError),
        ({"milestones": [4, 2]}, ValueError),
        ({"milestones": [2, 2]}, ValueError),
        ({"milestones": [-1, 2]}, ValueError),
        ({"milestones": [1.5]}, TypeError),
        ({"milestones": 30}, TypeError),
        ({"milestones": "30"}, TypeError),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, error):
    with pytest.raises(error, match="Received"):
        kt.schedules.MultiFactor(**{"initial_learning_rate": 0.1, "factor": 0.1, "milestones": [3], **arguments})
