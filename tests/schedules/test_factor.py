import numpy as np
import pytest

import keras_tricks as kt
from tests import reference


@pytest.mark.parametrize(("factor", "floor"), [(0.9, 0.0), (0.5, 0.01), (1.0, 0.0)])
def test_multiplies_at_every_step_down_to_the_floor(factor, floor):
    schedule = kt.schedules.Factor(0.4, factor, floor)
    want = [reference.factor_rate(t, 0.4, factor, floor) for t in range(30)]
    np.testing.assert_allclose([float(schedule(t)) for t in range(30)], want, rtol=1e-5)


def test_a_factor_close_to_1_keeps_its_digits_over_a_long_run():
    schedule = kt.schedules.Factor(1.0, 0.9999)
    assert float(schedule(100_000)) == pytest.approx(0.9999**100_000, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"initial_learning_rate": -0.1}, ValueError),
        ({"factor": 0}, ValueError),
        ({"factor": 10}, ValueError),
        ({"factor": None}, TypeError),
        ({"floor": -1}, ValueError),
        ({"floor": 0.2}, ValueError),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, error):
    with pytest.raises(error, match="Received"):
        kt.schedules.Factor(**{"initial_learning_rate": 0.1, "factor": 0.9, **arguments})
