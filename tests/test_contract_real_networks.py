"""Every optimizer on the networks of the zoo: as a graph, under XLA, on replicas as in eager mode; forms of data."""

import functools
import itertools

import keras
import numpy as np
import pytest

import keras_tricks as kt
from keras_tricks import catalog
from tests import zoo
from tests.test_contract_jit import QUICK as TRAINED_UNDER_JIT

OPTIMIZERS = [t for t in catalog.TRICKS if t.kind == "optimizer" and t.make]
CONDITIONS = [("graph", 2), ("xla", 1), ("xla", 2), ("graph", 1)]


def rows():
    """Network, optimizer and condition: each optimizer once, on networks that test_contract_jit.py does not try.

    The rest is slow. That each optimizer takes a right step with the gradients of each network is tested without
    training, in test_contract_optimizers.py.
    """
    left = [n for n in zoo.select(without={zoo.LARGE}) if n.name not in TRAINED_UNDER_JIT]
    quick = {}
    for i, network in enumerate(left[: len(OPTIMIZERS)]):
        wanted = CONDITIONS[i % len(CONDITIONS)]
        quick[network.name] = OPTIMIZERS[i], wanted if applies(network, *wanted) else ("graph", 1)
    for network in zoo.NETWORKS.values():
        conditions = [c for c in CONDITIONS if applies(network, *c)]
        for optimizer, condition in itertools.product(OPTIMIZERS, conditions):
            is_quick = quick.get(network.name) == (optimizer, condition)
            name = f"{network}-{optimizer.name}-{condition[0]}-{condition[1]}"
            yield pytest.param(network, optimizer, *condition, marks=() if is_quick else pytest.mark.slow, id=name)


def applies(network, mode, replicas):
    if mode == "xla" and network.is_(zoo.NOT_FOR_XLA):
        return False
    return replicas == 1 or not network.is_(zoo.ONE_DEVICE)


@functools.cache
def expected(network, optimizer):
    """Eager, on one device."""
    return zoo.train(network, optimizer.make, "eager")


@functools.cache
def losses_of_other_draws(network, optimizer):
    """The losses with other random numbers, eager, on one device."""
    losses = []
    for seed in range(5):
        model = network.compiled(optimizer.make, run_eagerly=True)
        for v in model.variables:
            if v.path.endswith("seed_generator_state"):
                v.assign([seed, 0])
        losses += zoo.fit(model, network)
    return losses


@pytest.mark.parametrize(("network", "optimizer", "mode", "replicas"), [*rows()])
def test_training_ends_where_it_does_in_eager_mode(network, optimizer, mode, replicas):
    run = zoo.train(network, optimizer.make, mode, replicas)
    if is_comparable(network, mode, replicas):
        assert_same(expected(network, optimizer), run, tolerance(network))
    elif network.is_(zoo.RANDOM):
        losses = [*losses_of_other_draws(network, optimizer), *expected(network, optimizer).losses]
        width = max(losses) - min(losses)
        assert min(losses) - width / 2 <= run.losses[0] <= max(losses) + width / 2
    else:
        assert run.losses == pytest.approx(expected(network, optimizer).losses, rel=0.3)


def assert_same(a, b, tolerance):
    # The bias of an attention's keys changes nothing, so its gradient is rounding, which some rules divide by itself.
    for v, x, y in zip(a.model.weights, a.weights, b.weights, strict=True):
        if not v.path.endswith("key/bias"):
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=v.path)


def is_comparable(network, mode, replicas):
    """XLA and other replicas draw other random numbers, and each replica has statistics of its own."""
    if network.is_(zoo.RANDOM):
        return (mode, replicas) in (("eager", 1), ("graph", 1))
    return replicas == 1 or not network.is_(zoo.STATISTICS)


def tolerance(network):
    return 2e-3 if network.is_(zoo.LARGE) else 5e-5  # a hundred layers make rounding large


FORMS = [f for f in zoo.DATA if f != "arrays"]


def forms_of_networks():
    quick = ("two_inputs_two_outputs", "equal_inner_names", "siamese", "reused_layer", "own_train_step")
    quick = dict(zip(FORMS, quick, strict=True))
    for form, network in itertools.product(FORMS, zoo.select(without={zoo.LARGE})):
        if network.is_(zoo.ONE_DEVICE) and "dataset" not in form:
            continue
        marks = () if quick[form] == network.name else pytest.mark.slow
        yield pytest.param(form, network, marks=marks, id=f"{form}-{network}")


@pytest.mark.parametrize(("form", "network"), [*forms_of_networks()])
def test_every_form_of_the_same_data_trains_the_same(form, network):
    def make():
        return kt.Lookahead(kt.LAMB(0.01, gradient_accumulation_steps=2, global_clipnorm=1.0), sync_period=2)

    # Of a dataset of unknown size Keras begins a step too many in each epoch, which draws random numbers too.
    epochs = 1 if network.is_(zoo.RANDOM) and "unknown" in form else 2
    arrays = zoo.train(network, make, epochs=epochs)
    other = zoo.train(network, make, epochs=epochs, data=zoo.DATA[form](network))
    assert_same(arrays, other, 1e-6)


@pytest.mark.slow
def test_a_replica_without_examples_in_the_last_batch_brings_a_gradient_of_0():
    """Nine examples: the last batch is one. Keras takes the mean over replicas, so that it counts half."""
    network = zoo.NETWORKS["token_classifier"]
    data = {k: v if k == "batch_size" else keras.tree.map_structure(lambda x: x[:9], v) for k, v in _arrays(network)}
    two = zoo.train(network, lambda: kt.LARS(0.1), replicas=2, data=data)
    data["sample_weight"][8] *= 0.5
    assert_same(zoo.train(network, lambda: kt.LARS(0.1), data=data), two, 2e-5)


def _arrays(network):
    return zoo.arrays(network).items()


def networks_in_mixed_precision():
    # Keras cannot sum a loss that a layer adds in half precision and that of the model: docs/keras_pitfalls.md.
    for network in zoo.select(without={zoo.LARGE, zoo.ADDED_LOSS}):
        for precision in ("mixed_bfloat16", "mixed_float16"):
            if not (network.is_(zoo.NOT_IN_FLOAT16) and precision == "mixed_float16"):
                yield pytest.param(network, precision, id=f"{network}-{precision}")


@pytest.mark.parametrize(("network", "precision"), [*networks_in_mixed_precision()])
@pytest.mark.slow
def test_mixed_precision_trains_as_float32_does(network, precision):
    def make():
        return kt.LossScaleOptimizer(kt.LAMB(0.01))

    expected = zoo.train(network, make, "graph")
    run = zoo.train(network, make, "graph", precision=precision)
    assert all(np.isfinite(w).all() for w in run.weights if w.dtype == "float32")
    assert run.losses == pytest.approx(expected.losses, rel=0.1)
