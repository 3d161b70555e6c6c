import numpy as np
import pytest

import keras_tricks as kt


def test_rates_follow_the_batch_or_its_square_root():
    scale = kt.schedules.scale_learning_rate
    assert scale(0.1, 8192, 256) == pytest.approx(3.2)  # the paper's ResNet-50
    assert scale(0.1, 64, 256) == pytest.approx(0.025)
    assert scale(0.1, 8192, 512, rule="sqrt") == pytest.approx(0.4)
    assert scale(0.1, 256, 256) == scale(0.1, 256, 256, rule="sqrt") == 0.1


def test_scaling_in_two_steps_is_scaling_in_one():
    for rule in ("linear", "sqrt"):
        half_way = kt.schedules.scale_learning_rate(0.1, 96, 32, rule)
        assert kt.schedules.scale_learning_rate(half_way, np.int64(160), 96, rule) == pytest.approx(
            kt.schedules.scale_learning_rate(0.1, 160, 32, rule)
        )


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"base": 0}, ValueError),
        ({"base": "0.1"}, TypeError),
        ({"batch_size": 0}, ValueError),
        ({"base_batch_size": 25.6}, TypeError),
        ({"rule": "square root"}, ValueError),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, error):
    with pytest.raises(error, match="Received"):
        kt.schedules.scale_learning_rate(**{"base": 0.1, "batch_size": 512, "base_batch_size": 256, **arguments})
