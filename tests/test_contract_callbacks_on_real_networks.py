"""Callbacks on the networks of the zoo: those that only look change nothing, and those that act do what they say."""

import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import zoo

QUICK = ("equal_inner_names", "own_train_step")  # Histograms take seconds to trace


def networks(without=None):
    for network in zoo.select(without={without}):
        yield pytest.param(network, marks=() if network.name in QUICK else pytest.mark.slow, id=str(network))


def sgd():
    return keras.optimizers.SGD(0.05, momentum=0.9)


@pytest.mark.parametrize("network", [*networks()])
def test_callbacks_that_look_change_nothing_and_the_average_is_one(network):
    """All at once: histograms, early stopping that never stops, and an average that is not left in the model."""
    plain = zoo.train(network, sgd, epochs=2)
    averaging = kt.callbacks.WeightAveraging("swa", start=0, recompute_statistics_on=False, leave_averaged=False)
    watching = [
        kt.callbacks.Histograms(),
        kt.callbacks.EarlyStopping(monitor="loss", patience=9, restore_best_weights=False),
        averaging,
    ]
    watched = zoo.train(network, sgd, epochs=2, callbacks=watching)
    for v, a, b in zip(plain.model.weights, plain.weights, watched.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7, err_msg=v.path)
    assert averaging.collected == 2
    assert {record["what"] for record in watching[0].history} >= {"weights", "gradients", "updates"}


@pytest.mark.parametrize("network", [*networks(without=zoo.TWO_OPTIMIZERS)])  # the second one keeps its rate
def test_a_cycle_moves_the_rate_of_every_step(network):
    schedule = kt.schedules.CyclicalLearningRate(0.001, 0.05, 2)
    cycle = kt.callbacks.CyclicLR(schedule)
    moved = zoo.train(network, lambda: keras.optimizers.SGD(0.3), epochs=1, callbacks=[cycle])
    scheduled = zoo.train(network, lambda: keras.optimizers.SGD(schedule), epochs=1)
    for v, a, b in zip(moved.model.weights, moved.weights, scheduled.weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-7, err_msg=v.path)


@pytest.mark.slow
@pytest.mark.parametrize("network", [*networks()])
def test_a_rate_is_looked_for_and_the_model_put_back(network):
    model = network.compiled(sgd)
    before = model.get_weights()
    data = zoo.DATA["dataset"](network)["x"]
    kt.callbacks.find_lr(model, data, steps=20, verbose=False)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
