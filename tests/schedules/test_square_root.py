import pytest

import keras_tricks as kt


def test_falls_with_the_square_root_of_the_steps():
    schedule = kt.schedules.SquareRoot(0.1)
    for t in (0, 1, 2, 3, 8, 99, 10**6 - 1):
        assert float(schedule(t)) == pytest.approx(0.1 * (t + 1) ** -0.5, rel=1e-6)


@pytest.mark.parametrize(("rate", "error"), [("0.1", TypeError), (-0.1, ValueError), (float("inf"), ValueError)])
def test_impossible_values_are_refused(rate, error):
    with pytest.raises(error, match="Received"):
        kt.schedules.SquareRoot(rate)
