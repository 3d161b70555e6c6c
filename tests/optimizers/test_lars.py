import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_tricks as kt
from tests import reference, runs

NOTHING = {"exclude_from_weight_decay": [], "exclude_from_layer_adaptation": []}


@pytest.mark.parametrize("shape", runs.SHAPES, ids=str)
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-7), ("float32", 2e-5)])
def test_several_steps_equal_the_formula(shape, nesterov, dtype, rtol):
    w, gradients = runs.numbers(shape, dtype)
    options = {"nesterov": nesterov, "weight_decay": 0.02, "epsilon": 0.01}
    got = runs.steps(kt.LARS(10.0, **options, **NOTHING), w, gradients)
    np.testing.assert_allclose(got, reference.lars(w, gradients, 10.0, **options), rtol=rtol, atol=rtol)


def test_the_momentum_holds_the_learning_rates_of_its_steps():
    w, gradients = runs.numbers((3, 4), "float64")
    schedule = keras.optimizers.schedules.ExponentialDecay(10.0, 1, 0.5)
    got = runs.steps(kt.LARS(schedule), w, gradients)
    np.testing.assert_allclose(got, reference.lars(w, gradients, [10, 5, 2.5, 1.25]), rtol=1e-6)
    assert not np.allclose(got, reference.lars(w, gradients, 10.0), rtol=1e-3)


def test_vectors_and_scalars_take_plain_momentum_steps_by_default():
    w, gradients = runs.numbers((5,), "float64")
    got = runs.steps(kt.LARS(0.1, weight_decay=0.5), w, gradients)
    np.testing.assert_allclose(got, reference.lars(w, gradients, 0.1, adapt=False), rtol=1e-7, atol=1e-7)
    sgd = runs.steps(keras.optimizers.SGD(0.1, momentum=0.9), w, gradients)
    np.testing.assert_allclose(got, sgd, rtol=1e-6)


def test_without_momentum_there_is_no_state():
    optimizer = kt.LARS(10.0, momentum=0.0)
    w, gradients = runs.numbers((30, 40), "float32")
    got = runs.steps(optimizer, w, gradients)
    np.testing.assert_allclose(got, reference.lars(w, gradients, 10.0, momentum=0.0), rtol=2e-5)
    assert kt.state_bytes(optimizer) < 100


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(0, 100))
def test_the_step_does_not_change_when_the_loss_is_scaled(scale, seed):
    w, gradients = runs.numbers((3, 4), "float64", seed=seed)
    plain = runs.steps(kt.LARS(10.0), w, gradients)
    np.testing.assert_allclose(runs.steps(kt.LARS(10.0), w, scale * gradients), plain, rtol=1e-6)


@pytest.mark.parametrize(("w", "g"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_zero_weights_and_zero_gradients_give_finite_steps(w, g):
    got = runs.steps(kt.LARS(0.1), np.full((2, 3), w, "float32"), [np.full((2, 3), g, "float32")] * 3)
    assert np.isfinite(got).all()
    assert (got != w).all() == (g != 0)


def test_state_is_one_value_a_parameter():
    optimizer = kt.LARS()
    optimizer.build([keras.Variable(np.zeros((100, 100), "float32"))])
    assert kt.state_bytes(optimizer) < 1.01 * 4 * 100 * 100


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"momentum": 1.0}, ValueError, "`momentum` must be at least 0 and less than 1"),
        ({"momentum": "0.9"}, TypeError, "`momentum` must be a number"),
        ({"trust_coefficient": 0}, ValueError, "greater than 0"),
        ({"epsilon": -1}, ValueError, "`epsilon` must be at least 0"),
        ({"nesterov": 1}, TypeError, "`nesterov` must be True or False"),
        ({"weight_decay": -1}, ValueError, "`weight_decay`"),
        ({"momentun": 0.9}, TypeError, "LARS has no argument `momentun`"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        kt.LARS(**arguments)
