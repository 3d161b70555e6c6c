import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import reference, runs


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("period", [1, 2, 3])
@pytest.mark.parametrize("slow_step_size", [0.3, 1.0])
def test_several_steps_equal_the_paper(shape, period, slow_step_size):
    w, gradients = runs.numbers(shape, "float64", count=7)
    got = runs.steps(kt.Lookahead(keras.optimizers.SGD(0.125, momentum=0.9), period, slow_step_size), w, gradients)
    expected = reference.lookahead(w, gradients, 0.125, 0.9, period, slow_step_size)
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-7)


def test_between_synchronisations_the_model_has_the_fast_weights():
    w, gradients = runs.numbers((3, 4), "float32", count=5)
    plain = runs.steps(keras.optimizers.SGD(0.1, momentum=0.9), w, gradients)
    np.testing.assert_allclose(
        runs.steps(kt.Lookahead(keras.optimizers.SGD(0.1, momentum=0.9), 6), w, gradients), plain
    )


def test_slow_weights_begin_as_the_weights_before_the_first_step_also_when_they_were_loaded_late():
    start, gradients = runs.numbers((3, 4), "float64", count=4)
    variable = keras.Variable(np.zeros((3, 4)), dtype="float64")
    optimizer = kt.Lookahead(keras.optimizers.SGD(0.125), 2)
    optimizer.build([variable])
    variable.assign(start)
    for g in gradients:
        optimizer.apply([g], [variable])
    expected = reference.lookahead(start, gradients, 0.125, 0.0, 2, 0.5)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), expected, rtol=1e-6)


def test_around_an_optimizer_that_has_already_trained():
    start, gradients = runs.numbers((3, 4), "float64", count=4)
    variable = keras.Variable(start)
    sgd = keras.optimizers.SGD(0.125)
    for _ in range(3):
        sgd.apply([np.zeros((3, 4))], [variable])
    optimizer = kt.Lookahead(sgd, 2)
    for g in gradients:
        optimizer.apply([g], [variable])
    expected = reference.lookahead(start, gradients, 0.125, 0.0, 2, 0.5)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), expected, rtol=1e-6)
    assert int(optimizer.iterations) == 7
    with pytest.raises(ValueError, match="Unknown variable"):
        kt.Lookahead(sgd).build([keras.Variable([1.0])])


def test_it_counts_optimizer_steps_under_accumulation():
    make = lambda k: kt.Lookahead(keras.optimizers.SGD(0.5, gradient_accumulation_steps=k), 2)  # noqa: E731
    large = runs.train(lambda: make(None), batch=16)
    small = runs.train(lambda: make(2), "xla", 2, batch=8)
    runs.assert_same_weights(large, small, 2e-5)


def test_averages_are_of_the_weights_after_synchronising():
    variable = keras.Variable(np.array([4.0]), dtype="float64")
    optimizer = kt.Lookahead(keras.optimizers.SGD(0.5, use_ema=True, ema_momentum=0.75), 2)
    values, average = [], None
    for _ in range(4):
        optimizer.apply([np.ones(1)], [variable])
        values.append(float(variable[0]))
        average = values[-1] if average is None else 0.75 * average + 0.25 * values[-1]
    assert values == [3.5, 3.5, 3.0, 3.0]
    optimizer.finalize_variable_values([variable])
    assert float(variable[0]) == pytest.approx(average)


def test_slow_weights_take_one_value_a_parameter():
    optimizer = kt.Lookahead(keras.optimizers.SGD())
    optimizer.build([keras.Variable(np.zeros((100, 100), "float32"))])
    assert kt.state_bytes(optimizer) < 4 * 100 * 100 + 50


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"optimizer": None}, TypeError, "wraps a Keras optimizer"),
        ({"sync_period": 0}, ValueError, "`sync_period` must be at least 1"),
        ({"sync_period": 2.5}, TypeError, "`sync_period` must be an integer"),
        ({"slow_step_size": 0.0}, ValueError, "greater than 0"),
        ({"slow_step_size": 1.1}, ValueError, "at most 1"),
        ({"use_ema": True}, ValueError, "`use_ema` belongs to the wrapped optimizer"),
        ({"alpha": 0.5}, TypeError, "Lookahead has no argument `alpha`"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        kt.Lookahead(**{"optimizer": keras.optimizers.SGD(), **arguments})
