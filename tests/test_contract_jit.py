"""`jit` on the networks of the zoo: all is as without it, or refused before anything moves."""

import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import runs, zoo

# Each has something that the others do not: loops, masks, several outputs, statistics, added losses,
# a step of its own, layers in layers.
QUICK = (
    *("gru_tagger", "two_inputs_two_outputs", "own_train_step", "variational_autoencoder"),
    *("adversarial", "preprocessing", "backbone_and_head"),
)


def networks():
    for network in zoo.NETWORKS.values():
        for replicas in (1, 2):
            if replicas == 1 or not network.is_(zoo.ONE_DEVICE):
                marks = () if network.name in QUICK and replicas == 1 else pytest.mark.slow
                yield pytest.param(network, replicas, marks=marks, id=f"{network}-{replicas}")


def outcome(network, replicas, wrap):
    with runs.strategy_of(replicas).scope():
        model = network.compiled(lambda: keras.optimizers.SGD(0.05))
        wrap(model)
    losses = zoo.fit(model, network)
    data = zoo.arrays(network)
    evaluated = 0 if network.is_(zoo.OWN_STEP) else model.evaluate(verbose=0, **data)
    return losses, evaluated, model


@pytest.mark.parametrize(("network", "replicas"), [*networks()])
def test_a_real_network_trains_and_evaluates_as_without_jit(network, replicas):
    if network.is_(zoo.NOT_FOR_XLA):
        with pytest.raises(ValueError, match=r"`jit`: layer '.*' \((RandomRotation|StringLookup)\)"):
            outcome(network, replicas, kt.jit)
        return
    plain, jitted = outcome(network, replicas, lambda model: model), outcome(network, replicas, kt.jit)
    if network.is_(zoo.RANDOM):  # XLA draws other numbers
        assert jitted[0] == pytest.approx(plain[0], rel=0.3)
        return
    tolerance = 2e-3 if network.is_(zoo.LARGE) else 5e-5
    np.testing.assert_allclose(jitted[0], plain[0], rtol=tolerance)
    np.testing.assert_allclose(jitted[1], plain[1], rtol=tolerance)
    for v, x, y in zip(plain[2].weights, plain[2].get_weights(), jitted[2].get_weights(), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=v.path)
