import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from tests import reference, runs

Cosine = keras.optimizers.schedules.CosineDecay


def cosine(t, high=0.4, steps=10):
    return high * (1 + np.cos(np.pi * min(t, steps) / steps)) / 2


@pytest.mark.parametrize("power", [1.0, 2.0, 0.5])
@pytest.mark.parametrize(("warmup_steps", "initial"), [(5, 0.0), (4, 0.1), (1, 0.05)])
def test_rises_to_the_schedule_which_then_begins(power, warmup_steps, initial):
    schedule = kt.schedules.WarmUp(Cosine(0.4, 10), warmup_steps, power, initial)
    got = [float(schedule(t)) for t in range(20)]
    want = [reference.warm_up(t, cosine, warmup_steps, power, initial) for t in range(20)]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)


def test_a_number_is_a_constant_rate_after_the_warm_up():
    schedule = kt.schedules.WarmUp(0.3, 3)
    assert [float(schedule(t)) for t in (0, 1, 2, 3, 99)] == pytest.approx([0, 0.1, 0.2, 0.3, 0.3])


def test_no_steps_of_warm_up_leave_the_schedule_as_it_is():
    schedule, alone = kt.schedules.WarmUp(Cosine(0.4, 10), 0), Cosine(0.4, 10)
    assert [float(schedule(t)) for t in range(12)] == [float(alone(t)) for t in range(12)]


def test_the_rate_may_fall_to_the_schedule_too():
    schedule = kt.schedules.WarmUp(0.1, 4, initial_learning_rate=0.5)
    assert [float(schedule(t)) for t in (0, 2, 4)] == pytest.approx([0.5, 0.3, 0.1])


def test_a_linear_one_is_the_warm_up_that_keras_has_for_its_cosine():
    ours = kt.schedules.WarmUp(Cosine(0.4, 10), 5, initial_learning_rate=0.1)
    theirs = Cosine(0.1, 10, warmup_target=0.4, warmup_steps=5)
    assert [float(ours(t)) for t in range(18)] == pytest.approx([float(theirs(t)) for t in range(18)], abs=1e-6)


@pytest.mark.parametrize("step", [7, np.int64(7), 7.0, tf.constant(7, tf.int64), keras.Variable(7, dtype="int32")])
def test_any_kind_of_step_will_do(step):
    # PiecewiseConstantDecay compares the step with its boundaries in the step's own type.
    piecewise = keras.optimizers.schedules.PiecewiseConstantDecay([2, 4], [1.0, 0.5, 0.1])
    assert float(kt.schedules.WarmUp(piecewise, 3)(step)) == pytest.approx(0.5)
    assert float(kt.schedules.WarmUp(piecewise, 10)(step)) == pytest.approx(0.7)


@pytest.mark.parametrize("target", [0.3, Cosine(0.3, 5), kt.schedules.WarmUp(Cosine(0.3, 5), 2)], ids=type)
def test_config_round_trip(target):
    schedule = kt.schedules.WarmUp(target, 4, 2.0, 0.01)
    same = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert [float(same(t)) for t in range(12)] == [float(schedule(t)) for t in range(12)]


def test_drives_an_optimizer_on_two_replicas_as_on_one():
    schedule = kt.schedules.WarmUp(kt.schedules.MultiFactor(0.05, 0.1, [3]), 3)
    one, two = (runs.train(lambda: kt.LAMB(schedule), "graph", replicas) for replicas in (1, 2))
    runs.assert_same_weights(one, two, 2e-5)
    rate = keras.ops.convert_to_numpy(two.model.optimizer.learning_rate)  # 8 steps are done
    assert float(rate) == pytest.approx(0.005)


def test_is_saved_with_the_optimizer_that_has_it(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(kt.LAMB(kt.schedules.WarmUp(Cosine(0.4, 10), 4)), "mse")
    model.optimizer.build(model.trainable_variables)
    model.save(tmp_path / "model.keras")
    config = keras.models.load_model(tmp_path / "model.keras").optimizer.get_config()["learning_rate"]
    again = keras.saving.deserialize_keras_object(config)
    assert float(again(6)) == pytest.approx(cosine(2))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"schedule_or_float": None}, TypeError),
        ({"schedule_or_float": True}, TypeError),
        ({"schedule_or_float": "0.1"}, TypeError),
        ({"schedule_or_float": -0.1}, ValueError),
        ({"warmup_steps": -1}, ValueError),
        ({"warmup_steps": 2.5}, TypeError),
        ({"power": 0}, ValueError),
        ({"initial_learning_rate": float("nan")}, ValueError),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, error):
    with pytest.raises(error, match="Received"):
        kt.schedules.WarmUp(**{"schedule_or_float": 0.1, "warmup_steps": 4, **arguments})
