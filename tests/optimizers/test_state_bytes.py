import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import runs

COUNTERS = 8 + 4  # the step, int64, and the learning rate, float32; ours may have beta_1, float64


@pytest.mark.parametrize(
    ("optimizer", "bytes_a_parameter"),
    [
        (lambda: keras.optimizers.SGD(0.1), 0),
        (lambda: keras.optimizers.SGD(0.1, momentum=0.9), 4),
        (lambda: keras.optimizers.Adam(), 8),
        (lambda: kt.LAMB(), 8),
        (lambda: kt.LAMB(use_ema=True, gradient_accumulation_steps=2), 16),
    ],
)
def test_counts_the_slots(optimizer, bytes_a_parameter):
    optimizer = optimizer()
    optimizer.build([keras.Variable(np.ones((10, 30), "float32")), keras.Variable(np.ones(30, "float32"))])
    assert kt.state_bytes(optimizer) - bytes_a_parameter * 330 in (COUNTERS, COUNTERS + 8)


def test_low_precision_slots_count_by_their_own_size():
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    optimizer.build([keras.Variable(np.ones((10, 10)), dtype="bfloat16")])
    assert kt.state_bytes(optimizer) == 200 + COUNTERS


def test_needs_a_built_optimizer():
    with pytest.raises(ValueError, match="Build it first"):
        kt.state_bytes(kt.LAMB())
    with pytest.raises(TypeError, match="Expected a Keras optimizer"):
        kt.state_bytes("adam")


def test_is_that_of_one_replica_in_every_precision_and_after_loading(mixed_precision, tmp_path):
    scaled = lambda: kt.LossScaleOptimizer(kt.LAMB(0.01, gradient_accumulation_steps=2))  # noqa: E731
    one = runs.train(scaled, epochs=1)
    two = runs.train(scaled, "xla", 2, mixed_precision, epochs=1)
    assert kt.state_bytes(two.model.optimizer) == kt.state_bytes(one.model.optimizer)
    one.model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert kt.state_bytes(loaded.optimizer) == kt.state_bytes(one.model.optimizer)
