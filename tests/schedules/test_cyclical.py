import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from tests import reference, runs

MODES = [("triangular", 1.0), ("triangular2", 1.0), ("exp_range", 0.97)]


@pytest.mark.parametrize(("mode", "gamma"), MODES)
@pytest.mark.parametrize("step_size", [1, 4, 7.5])
def test_equals_the_paper_over_several_cycles(mode, gamma, step_size):
    schedule = kt.schedules.CyclicalLearningRate(0.001, 0.1, step_size, mode, gamma)
    got = [float(schedule(t)) for t in range(40)]
    want = [reference.cyclical(t, 0.001, 0.1, step_size, mode, gamma) for t in range(40)]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)


def test_starts_low_and_peaks_after_step_size():
    schedule = kt.schedules.CyclicalLearningRate(0.001, 0.1, 5)
    assert float(schedule(0)) == pytest.approx(0.001)
    assert float(schedule(5)) == pytest.approx(0.1)
    assert float(schedule(10)) == pytest.approx(0.001)


@pytest.mark.parametrize("step", [7, np.int64(7), 7.0, tf.constant(7, tf.int64), tf.constant(7, tf.int32)])
def test_any_kind_of_step_will_do(step):
    schedule = kt.schedules.CyclicalLearningRate(0.0, 1.0, 5)
    assert float(schedule(step)) == pytest.approx(0.6, rel=1e-5)
    assert keras.backend.standardize_dtype(schedule(step).dtype) == "float32"


@keras.saving.register_keras_serializable(package="test_cyclical")
def halved(x):
    return 0.5 / x


def test_a_function_of_the_cycle_or_of_the_step_replaces_the_mode():
    by_cycle = kt.schedules.CyclicalLearningRate(0.0, 1.0, 2, scale_fn=halved)
    assert [float(by_cycle(t)) for t in (2, 6)] == pytest.approx([0.5, 0.25])
    by_step = kt.schedules.CyclicalLearningRate(0.0, 1.0, 2, scale_fn=halved, scale_mode="iterations")
    assert [float(by_step(t)) for t in (2, 6)] == pytest.approx([0.25, 0.5 / 6])


@pytest.mark.parametrize("scale_fn", [None, halved])
def test_config_round_trip(scale_fn):
    schedule = kt.schedules.CyclicalLearningRate(0.001, 0.1, 3, "exp_range", 0.9, scale_fn)
    same = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert [float(same(t)) for t in range(9)] == [float(schedule(t)) for t in range(9)]


@pytest.mark.parametrize(("mode", "replicas"), runs.conditions(("eager", 1), ("graph", 2)))
def test_drives_an_optimizer_by_optimizer_steps_in_a_compiled_fit(mode, replicas):
    schedule = kt.schedules.CyclicalLearningRate(0.001, 0.1, 3)
    run = runs.train(lambda: kt.LAMB(schedule, gradient_accumulation_steps=2), mode, replicas, batch=4, epochs=1)
    rate = keras.ops.convert_to_numpy(run.model.optimizer.learning_rate)  # 8 batches: 4 steps are done
    assert float(rate) == pytest.approx(reference.cyclical(4, 0.001, 0.1, 3), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"step_size": 0}, ValueError),
        ({"step_size": "4"}, TypeError),
        ({"mode": "square"}, ValueError),
        ({"gamma": 0}, ValueError),
        ({"gamma": 1.1}, ValueError),
        ({"scale_fn": 3}, TypeError),
        ({"scale_mode": "epochs"}, ValueError),
        ({"initial_learning_rate": None}, TypeError),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, error):
    with pytest.raises(error, match="Received"):
        kt.schedules.CyclicalLearningRate(
            **{"initial_learning_rate": 0.001, "maximal_learning_rate": 0.1, "step_size": 4, **arguments}
        )


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")  # Keras' own
@pytest.mark.parametrize(
    ("scale_fn", "scale_mode", "instead"),
    [
        (lambda x: 1 / (2.0 ** (x - 1)), "cycle", 'mode="triangular2"'),
        (lambda x: 1.0, "cycle", 'mode="triangular"'),
        (lambda x: 0.97**x, "iterations", 'mode="exp_range", gamma=0.97'),
        (lambda x: 1 / x, "cycle", "register_keras_serializable"),
    ],
    ids=["triangular2", "triangular", "exp_range", "another"],
)
def test_a_lambda_is_warned_of_when_it_is_saved_and_the_mode_that_is_the_same_named(scale_fn, scale_mode, instead):
    schedule = kt.schedules.CyclicalLearningRate(0.001, 0.1, 3, scale_fn=scale_fn, scale_mode=scale_mode)
    with pytest.warns(UserWarning, match=f"loads again with `safe_mode=False` only.*{instead}"):
        schedule.get_config()
