import numpy as np
import pytest

import keras_tricks as kt
from tests import reference, runs


@pytest.mark.parametrize("shape", runs.SHAPES, ids=str)
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-7), ("float32", 2e-5)])
def test_several_steps_equal_the_formula(shape, dtype, rtol):
    w, gradients = runs.numbers(shape, dtype)
    got = runs.steps(kt.Yogi(0.1), w, gradients)
    np.testing.assert_allclose(got, reference.yogi(w, gradients, 0.1), rtol=rtol, atol=rtol)


def test_other_constants_too():
    w, gradients = runs.numbers((3, 4), "float64")
    got = runs.steps(kt.Yogi(0.1, beta_1=0.5, beta_2=0.7, epsilon=1e-2, initial_accumulator_value=0.1), w, gradients)
    expected = reference.yogi(w, gradients, 0.1, 0.5, 0.7, 1e-2, 0.1)
    np.testing.assert_allclose(got, expected, rtol=1e-7)


def test_trajectory_of_dive_into_deep_learning():
    # f = 0.1 x1² + 2 x2² from (-5, -2), 20 steps at 0.4, moments from 0: a figure from outside of this project.
    import keras

    variable = keras.Variable(np.array([-5.0, -2.0]), dtype="float64")
    optimizer = kt.Yogi(0.4, epsilon=1e-3, initial_accumulator_value=0.0)
    for _ in range(20):
        optimizer.apply([variable * np.array([0.2, 4.0])], [variable])
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), [0.9828435518, -0.2074038401], rtol=1e-6)


def test_the_second_moment_forgets_a_burst_slower_than_adam():
    gradients = [[100.0]] + [[0.1]] * 1000
    w = np.array([0.0])
    yogi = runs.steps(kt.Yogi(0.01, beta_1=0.0), w, gradients)
    expected = reference.yogi(w, gradients, 0.01, beta_1=0.0)
    np.testing.assert_allclose(yogi, expected, rtol=1e-6)
    v_of_adam = 10.0 * 0.999**1000  # (1 - beta_2) 100² = 10 decays to 3.7; Yogi's loses 1e-5 a step
    assert abs(yogi[0]) < 0.7 * 0.01 * 1000 * 0.1 / np.sqrt(v_of_adam)


def test_zero_gradients_do_not_move():
    got = runs.steps(
        kt.Yogi(0.1, initial_accumulator_value=0.0), np.ones((2, 3), "float32"), [np.zeros((2, 3), "float32")] * 3
    )
    np.testing.assert_array_equal(got, 1)


def test_decay_is_decoupled_and_leaves_vectors_alone():
    zero = [np.zeros((2, 3))]
    options = {"weight_decay": 0.5, "initial_accumulator_value": 0.0}
    np.testing.assert_allclose(runs.steps(kt.Yogi(0.1, **options), np.ones((2, 3)), zero), 0.95, rtol=1e-6)
    np.testing.assert_array_equal(runs.steps(kt.Yogi(0.1, **options), np.ones(3), [np.zeros(3)]), 1)
    everything = kt.Yogi(0.1, **options, exclude_from_weight_decay=[])
    np.testing.assert_allclose(runs.steps(everything, np.ones(3), [np.zeros(3)]), 0.95, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"beta_1": 1.0}, ValueError, "`beta_1` must be at least 0 and less than 1"),
        ({"beta_2": 1.5}, ValueError, "`beta_2` must be at least 0 and less than 1"),
        ({"epsilon": "small"}, TypeError, "`epsilon` must be a number"),
        ({"initial_accumulator_value": -1}, ValueError, "at least 0"),
        ({"epsilom": 1e-3}, TypeError, "Yogi has no argument `epsilom`"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        kt.Yogi(**arguments)
