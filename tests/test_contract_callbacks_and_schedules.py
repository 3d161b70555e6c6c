"""What every callback and schedule of the catalogue keeps to; a new record is tested by being there."""

import keras
import pytest

import keras_tricks as kt
from keras_tricks import catalog
from tests import runs

TRICKS = [t for t in catalog.TRICKS if t.kind in ("callback", "schedule")]


@pytest.fixture(params=TRICKS, ids=lambda t: t.name)
def trick(request):
    return request.param


def train_with(trick, *conditions, batch=8, **options):
    if trick.kind == "schedule":
        return runs.train(
            lambda: kt.LossScaleOptimizer(kt.LAMB(trick.make(), **options)), *conditions, batch=batch, epochs=1
        )
    return runs.train(
        lambda: kt.LossScaleOptimizer(kt.LAMB(0.01, **options)),
        *conditions,
        batch=batch,
        epochs=1,
        callbacks=[trick.make()],
    )


def test_every_precision_on_two_replicas_under_xla(trick):
    plain = train_with(trick)
    for precision in ("float32", "mixed_bfloat16", "mixed_float16"):
        other = train_with(trick, "xla", 2, precision)
        runs.assert_same_weights(plain, other, runs.tolerance(precision))


def test_accumulated_small_batches_equal_the_large_batch(trick):
    large = train_with(trick, batch=16)
    small = train_with(trick, "graph", 2, batch=8, gradient_accumulation_steps=2)
    runs.assert_same_weights(large, small, 5e-5)


def test_a_schedule_survives_serialization():
    for trick in TRICKS:
        if trick.kind == "schedule":
            again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(trick.make()))
            assert [float(again(t)) for t in range(9)] == [float(trick.make()(t)) for t in range(9)]
