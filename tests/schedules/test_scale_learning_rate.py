import functools

import numpy as np
import pytest

import keras_tricks as kt


def test_rates_follow_the_batch_or_its_square_root():
    scale = kt.schedules.scale_learning_rate
    assert scale(0.1, batch_size=8192, base_batch_size=256) == pytest.approx(3.2)  # the paper's ResNet-50
    assert scale(0.1, batch_size=64, base_batch_size=256) == pytest.approx(0.025)
    assert scale(0.1, batch_size=8192, base_batch_size=512, rule="sqrt") == pytest.approx(0.4)
    same = {"batch_size": 256, "base_batch_size": 256}
    assert scale(0.1, **same) == scale(0.1, **same, rule="sqrt") == 0.1


def test_sizes_by_place_are_refused_since_they_are_easily_confused():
    for sizes in ((256, 1024), (256,), ()):
        with pytest.raises(TypeError, match=r"\(0\.1, batch_size=1024, base_batch_size=256\)"):
            kt.schedules.scale_learning_rate(0.1, *sizes)


def test_scaling_in_two_steps_is_scaling_in_one():
    for rule in ("linear", "sqrt"):
        scale = functools.partial(kt.schedules.scale_learning_rate, rule=rule)
        half_way = scale(0.1, batch_size=96, base_batch_size=32)
        assert scale(half_way, batch_size=np.int64(160), base_batch_size=96) == pytest.approx(
            scale(0.1, batch_size=160, base_batch_size=32)
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
