import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_tricks as kt
from tests import reference, runs


@pytest.mark.parametrize("shape", runs.SHAPES, ids=str)
@pytest.mark.parametrize("variant", ["I", "II"])
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-7), ("float32", 2e-5)])
def test_several_steps_equal_the_paper(shape, variant, dtype, rtol):
    w, gradients = runs.numbers(shape, dtype)
    got = runs.steps(kt.SM3(0.1, variant=variant), w, gradients)
    np.testing.assert_allclose(got, reference.sm3(w, gradients, 0.1, variant=variant), rtol=rtol, atol=rtol)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([(3, 4), (2, 3, 4)]))
def test_the_bounds_are_never_less_than_the_sums_of_squares_of_adagrad(seed, shape):
    # Smaller accumulators would be larger steps: without momentum, no step is longer than Adagrad's.
    w, gradients = runs.numbers(shape, "float64", count=3, seed=seed)
    before = runs.steps(kt.SM3(0.125, momentum=0.0), w, gradients[:-1])
    step = np.abs(runs.steps(kt.SM3(0.125, momentum=0.0), w, gradients) - before)
    looser = np.abs(
        runs.steps(kt.SM3(0.125, momentum=0.0, variant="I"), w, gradients)
        - runs.steps(kt.SM3(0.125, momentum=0.0, variant="I"), w, gradients[:-1])
    )
    adagrad = 0.125 * np.abs(gradients[-1]) / np.sqrt((gradients**2).sum(axis=0))
    assert (step <= adagrad * (1 + 1e-9)).all()
    assert (looser <= step * (1 + 1e-9)).all()


@pytest.mark.parametrize("shape", [(), (5,)], ids=str)
def test_scalars_and_vectors_are_adagrad(shape):
    w, gradients = runs.numbers(shape, "float32")
    adagrad = keras.optimizers.Adagrad(0.1, initial_accumulator_value=0.0, epsilon=1e-30)
    got = runs.steps(kt.SM3(0.1, momentum=0.0), w, gradients)
    np.testing.assert_allclose(got, runs.steps(adagrad, w, gradients), rtol=1e-5)


@pytest.mark.parametrize("size", [1e-4, 1e-10, 1e-18])
def test_tiny_gradients_take_full_steps(size):
    # A step depends on the ratio of gradients alone; an epsilon under the root would stop it here.
    w, gradients = runs.numbers((3, 4), "float32")
    got = runs.steps(kt.SM3(0.1), w, gradients * np.float32(size))
    np.testing.assert_allclose(got, reference.sm3(w, gradients, 0.1), rtol=1e-4)


def test_zero_gradients_do_not_move_and_give_no_nan():
    got = runs.steps(kt.SM3(0.1), np.ones((2, 3), "float32"), [np.zeros((2, 3), "float32")] * 3)
    np.testing.assert_array_equal(got, 1)


def test_state_is_a_sum_of_lengths_and_with_momentum_one_value_a_parameter_more():
    variables = [keras.Variable(np.zeros(shape, "float32")) for shape in [(3, 3, 64, 128), (2048, 1000), (64,)]]
    parameters = 3 * 3 * 64 * 128 + 2048 * 1000 + 64
    for momentum, kept in ((0.0, 0), (0.9, parameters)):
        optimizer = kt.SM3(momentum=momentum)
        optimizer.build(variables)
        lengths = (3 + 3 + 64 + 128) + (2048 + 1000) + 64
        assert 0 <= kt.state_bytes(optimizer) - 4 * (lengths + kept) < 32


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"momentum": -0.1}, ValueError, "`momentum` must be at least 0"),
        ({"variant": 2}, ValueError, "`variant` must be 'I' or 'II'"),
        ({"epsilon": 1e-3}, TypeError, "SM3 has no argument `epsilon`"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        kt.SM3(**arguments)
