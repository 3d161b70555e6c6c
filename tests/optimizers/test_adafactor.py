import math

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_tricks as kt
from keras_tricks.optimizers.adafactor import factored_axes
from tests import reference, runs


@pytest.mark.parametrize("shape", [*runs.SHAPES, (20, 30), (3, 3, 16, 20), (20, 2, 16)], ids=str)
@pytest.mark.parametrize("least", [2, 16])
@pytest.mark.parametrize(("dtype", "rtol"), [("float64", 1e-7), ("float32", 3e-5)])
def test_several_steps_equal_the_paper(shape, least, dtype, rtol):
    w, gradients = runs.numbers(shape, dtype)
    got = runs.steps(kt.Adafactor(min_dim_size_to_factor=least), w, gradients)
    np.testing.assert_allclose(got, reference.adafactor(w, gradients, least=least), rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"learning_rate": 0.125}, {"learning_rate": 0.125}),
        ({"learning_rate": 0.125, "scale_parameter": False}, {"learning_rate": 0.125, "scale": False}),
        ({"beta_1": 0.9}, {"beta_1": 0.9}),
        ({"warmup_init": True}, {"warmup_init": True}),
        ({"beta_2_decay": -0.5}, {"decay": -0.5}),
        ({"clip_threshold": None}, {"clip": None}),
        ({"clip_threshold": 0.3}, {"clip": 0.3}),
        ({"epsilon_1": 0.1, "epsilon_2": 10.0}, {"epsilon_1": 0.1, "epsilon_2": 10.0}),
        ({"weight_decay": 0.3, "learning_rate": 0.125}, {"weight_decay": 0.3, "learning_rate": 0.125}),
    ],
    ids=str,
)
def test_each_argument_does_what_the_paper_says(ours, theirs):
    w, gradients = runs.numbers((20, 30), "float64")
    expected = reference.adafactor(w, gradients, **theirs)
    np.testing.assert_allclose(runs.steps(kt.Adafactor(**ours), w, gradients), expected, rtol=1e-6, atol=1e-8)
    assert not np.allclose(expected, reference.adafactor(w, gradients), rtol=1e-4)


@pytest.mark.parametrize(
    ("shape", "least", "axes"),
    [
        ((20, 30), 16, (1, 0)),
        ((30, 20), 16, (0, 1)),
        ((20, 20), 16, (1, 0)),
        ((3, 3, 64, 128), 16, (3, 2)),
        ((1, 1, 128, 64), 16, (2, 3)),
        ((3, 3, 64, 1), 16, None),
        ((15, 300), 16, None),
        ((15, 300), 15, (1, 0)),
        ((300,), 1, None),
        ((), 1, None),
    ],
    ids=str,
)
def test_the_two_largest_axes_are_factored_where_both_are_long_enough(shape, least, axes):
    assert factored_axes(shape, least) == axes


def test_no_full_size_moment_is_stored():
    # keras.optimizers.Adafactor has 1.0 times the parameters here.
    shapes = [(7, 7, 3, 64), (3, 3, 64, 128), (1, 1, 256, 512), (2048, 1000), (1000,)]
    variables = [keras.Variable(np.zeros(shape, "float32")) for shape in shapes]
    optimizer = kt.Adafactor()
    optimizer.build(variables)
    parameters = 4 * sum(math.prod(shape) for shape in shapes)
    assert kt.state_bytes(optimizer) < 0.02 * parameters
    stock = keras.optimizers.Adafactor()
    stock.build(variables)
    assert kt.state_bytes(stock) > parameters


def test_a_rank_one_gradient_is_rebuilt_exactly():
    # Where the squared gradient is an outer product, factoring loses nothing: the first step is the sign.
    rows, columns = np.arange(1.0, 21)[:, None], np.arange(1.0, 31)[None]
    w = np.ones((20, 30))
    got = runs.steps(kt.Adafactor(0.125, scale_parameter=False), w, [rows * columns])
    np.testing.assert_allclose(got, 0.875, rtol=1e-9)


def test_the_rate_given_is_not_capped_as_in_keras():
    w, gradients = np.ones((4, 4)), [np.ones((4, 4))] * 30
    got = runs.steps(kt.Adafactor(0.5, scale_parameter=False), w, gradients)
    np.testing.assert_allclose(got, 1 - 30 * 0.5, rtol=1e-6)


def test_the_relative_step_can_be_read_and_not_set():
    optimizer = kt.Adafactor()
    assert float(optimizer.learning_rate) == pytest.approx(0.01)
    optimizer.build([keras.Variable(np.zeros(3))])
    optimizer.iterations.assign(40_000 - 1)
    assert float(optimizer.learning_rate) == pytest.approx(1 / 200)
    with pytest.raises(TypeError, match="not settable"):
        optimizer.learning_rate = 0.1


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(0, 100))
def test_the_step_does_not_change_when_the_loss_is_scaled(scale, seed):
    w, gradients = runs.numbers((16, 17), "float64", seed=seed)
    np.testing.assert_allclose(
        runs.steps(kt.Adafactor(), w, scale * gradients), runs.steps(kt.Adafactor(), w, gradients), rtol=1e-6
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_zero_gradients_give_no_nan(dtype):
    # keras.optimizers.Adafactor divides 0 by 0 in float16.
    variable = keras.Variable(np.ones((20, 20)), dtype=dtype)
    optimizer = kt.Adafactor()
    for _ in range(3):
        optimizer.apply([keras.ops.zeros((20, 20), dtype)], [variable])
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(keras.ops.cast(variable, "float32")), 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"learning_rate": 0.125, "relative_step": True}, ValueError, "takes no `learning_rate`"),
        ({"relative_step": False}, ValueError, "needs one"),
        ({"learning_rate": 0.125, "warmup_init": True}, ValueError, "LearningRateSchedule"),
        ({"beta_1": 1.0}, ValueError, "`beta_1` must be at least 0 and less than 1"),
        ({"beta_2_decay": 0.8}, ValueError, "`beta_2_decay` must be at least -1 and less than 0"),
        ({"clip_threshold": 0}, ValueError, "`clip_threshold` must be greater than 0"),
        ({"min_dim_size_to_factor": 1.5}, TypeError, "must be an integer"),
        ({"scale_parameter": None}, TypeError, "must be True or False"),
        ({"beta_2": 0.999}, TypeError, "Adafactor has no argument `beta_2`"),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        kt.Adafactor(**arguments)


def test_both_kinds_of_rate_round_trip():
    for optimizer in (kt.Adafactor(warmup_init=True), kt.Adafactor(0.1, beta_1=0.9)):
        again = kt.Adafactor.from_config(optimizer.get_config())
        assert again.get_config() == optimizer.get_config()
        assert float(again.learning_rate) == float(optimizer.learning_rate)
