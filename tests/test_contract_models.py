"""`convert`, `fuse` and `recompute`, and chains of them, on the networks of `tests/zoo.py`."""

import dataclasses

import keras
import numpy as np
import pytest
from keras import layers

import keras_tricks as kt
from tests import zoo

GRAPHS = [n if not n.is_(zoo.LARGE) else pytest.param(n, marks=pytest.mark.slow) for n in zoo.select(zoo.GRAPH)]
# What saves or trains takes seconds, so each network is quick in one of the tests that do: in turns, recomputed or in a
# chain, which recomputes too.
SMALL = zoo.select(zoo.GRAPH, without={zoo.LARGE})
IN_TURNS = [
    [n if n in SMALL[i::2] else pytest.param(n, marks=pytest.mark.slow) for n in zoo.select(zoo.GRAPH)] for i in (0, 1)
]
CODE = [n for n in zoo.NETWORKS.values() if not n.is_(zoo.GRAPH)]

STANDARDIZED = dict.fromkeys([layers.Conv1D, layers.Conv2D, layers.DepthwiseConv2D, layers.Dense], "ws_conv")
SAME_FUNCTION = {layers.BatchNormalization: "extended_batch_normalization", layers.Conv2D: "ac_conv"}
TRAINED_ANEW = [
    STANDARDIZED,
    {layers.Add: "rezero"},
    {
        layers.Activation: lambda layer: kt.layers.ScaledActivation(layer.activation, name=layer.name),
        layers.ReLU: lambda layer: kt.layers.ScaledActivation("relu", name=layer.name),
    },
]


def made(network):
    """A new model, with random statistics and scales, as after training."""
    keras.utils.set_random_seed(0)
    model = network.make()
    random = np.random.default_rng(0)
    for v in model.variables:
        if "moving_mean" in v.path:
            v.assign(random.normal(size=v.shape) * 0.1)
        elif any(part in v.path for part in ("moving", "gamma", "alpha")):
            v.assign(random.uniform(0.5, 1.5, v.shape))
    return model


def batch(network, size=4):
    return [keras.tree.map_structure(lambda a: a[:size], part) for part in network.data()]


def outputs(model, x):
    """At inference; the seeds of layers that draw even then stay as they are."""
    with keras.StatelessScope():
        return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(x, training=False))]


def assert_same(received, expected, tolerance=1e-5):
    for a, b in zip(received, expected, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * (np.abs(b).max(initial=0) + 1e-3))


def reloaded(model, folder):
    model.save(folder / "m.keras")
    return keras.models.load_model(folder / "m.keras")


def step(model, network):
    """One eager step on one batch; the loss, and the weights that come out."""
    model.compile(keras.optimizers.SGD(0.1), network.loss, run_eagerly=True)
    x, y, *w = batch(network)
    loss = model.train_on_batch(x, y, sample_weight=w[0] if w else None)
    return np.array(loss), model.get_weights()


def recomputed(model):
    """In segments; where the best plan saves nothing, in two anyway, and refused where there is no place to cut."""
    try:
        return kt.recompute(model)
    except ValueError as error:
        assert "save next to nothing" in str(error)  # noqa: PT017
        return kt.recompute(model, 2)


def applicable(model, tricks):
    """Those of the tricks whose layers the model has, where `convert` finds something to change."""
    there = {type(layer) for layer in model._flatten_layers()}
    return {cls: trick for cls, trick in tricks.items() if cls in there}


def converted(model, tricks):
    """The model with the tricks, or `None` where they are not for this model."""
    tricks = applicable(model, tricks)
    if not tricks:
        return None
    try:
        return kt.convert(model, tricks)[0]
    except ValueError as error:
        assert "nothing to change" in str(error)  # noqa: PT017
        return None


@pytest.mark.parametrize("network", IN_TURNS[0], ids=str)
def test_recomputed_it_is_the_same_model(network, tmp_path):
    x = batch(network)[0]
    model = made(network)
    expected = outputs(model, x)
    assert all(np.ptp(y) > 1e-3 for y in expected)
    new = recomputed(model)
    assert {id(v) for v in new.variables} == {id(v) for v in model.variables}
    assert_same(outputs(new, x), expected, 1e-6)
    loaded = reloaded(new, tmp_path)
    assert len(loaded.variables) == len(new.variables)
    assert_same(outputs(loaded, x), expected)
    # Keras loads a LoRA merged, so what is loaded is compared with the plain model loaded.
    plain = made(network)
    for one, like in ((loaded, reloaded(plain, tmp_path)), (new, plain)):
        (loss, weights), (plain_loss, plain_weights) = step(one, network), step(like, network)
        np.testing.assert_allclose(loss, plain_loss, rtol=1e-5)
        for a, b in zip(weights, plain_weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("network", GRAPHS, ids=str)
def test_fused_it_computes_the_same(network, tmp_path):
    x = batch(network)[0]
    model = made(network)
    fused = kt.fuse(model, probe=x)
    assert_same(outputs(fused, x), outputs(model, x))
    assert_same(outputs(reloaded(fused, tmp_path), x), outputs(fused, x))
    if not any(type(v).__module__.startswith(("keras_tricks", "tests")) for v in model._flatten_layers()):
        names = {type(layer).__module__.split(".")[0] for layer in fused._flatten_layers()}
        assert names == {"keras"}


@pytest.mark.parametrize("network", IN_TURNS[0], ids=str)
def test_converted_it_computes_the_same_or_trains_on(network, tmp_path):
    x = batch(network)[0]
    model = made(network)
    same = converted(model, SAME_FUNCTION)
    if same is not None:
        assert_same(outputs(same, x), outputs(model, x))
        assert_same(outputs(reloaded(same, tmp_path), x), outputs(same, x))
    for tricks in TRAINED_ANEW:
        new = converted(model, tricks)
        if new is not None:
            assert_same(outputs(reloaded(new, tmp_path), x), outputs(new, x))
            loss, _ = step(new, network)
            assert np.isfinite(loss).all()


@pytest.mark.parametrize("network", IN_TURNS[1], ids=str)
def test_a_chain_of_them_ends_in_the_same_plain_model(network):
    x = batch(network)[0]
    model = made(network)
    tricks = converted(model, STANDARDIZED)
    if tricks is None:
        return
    first, second = recomputed(tricks), converted(recomputed(model), STANDARDIZED)
    assert_same(outputs(second, x), outputs(first, x))
    step(first, network)
    for trained in (first, second):
        fused = kt.fuse(trained, probe=x)
        assert_same(outputs(fused, x), outputs(trained, x))
        assert not any(type(v).__module__.startswith("keras_tricks") for v in fused._flatten_layers())


@pytest.mark.parametrize("network", CODE, ids=str)
@pytest.mark.parametrize("operation", [kt.recompute, kt.fuse, lambda m: kt.convert(m, STANDARDIZED)])
def test_models_that_are_code_are_refused(operation, network):
    with pytest.raises(ValueError, match="is a subclassed model, whose `call` is code that cannot be read"):
        operation(network.make())


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "replicas"), [("graph", 1), ("graph", 2), ("xla", 1)])
@pytest.mark.parametrize("network", zoo.select(zoo.GRAPH), ids=str)
def test_recomputed_it_trains_the_same_as_a_graph(network, mode, replicas):
    if (replicas > 1 and network.is_(zoo.ONE_DEVICE)) or (mode == "xla" and network.is_(zoo.NOT_FOR_XLA)):
        pytest.skip("not for this network")
    segments = dataclasses.replace(network, make=lambda: recomputed(network.make()))
    a, b = (zoo.train(n, lambda: keras.optimizers.SGD(0.05), mode, replicas) for n in (network, segments))
    np.testing.assert_allclose(a.losses, b.losses, rtol=1e-4)
    for x, y in zip(a.weights, b.weights, strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("network", zoo.select(zoo.GRAPH, without=(zoo.NOT_FOR_XLA,)), ids=str)
def test_converted_recomputed_jitted_trained_and_fused_it_is_exported(network, tmp_path):
    keras.utils.set_random_seed(0)
    model = converted(network.make(), STANDARDIZED) or network.make()
    model = kt.jit(recomputed(model))
    model.compile(keras.optimizers.SGD(0.05), network.loss, jit_compile=False)
    losses = zoo.fit(model, network)
    assert np.isfinite(losses).all()
    x = batch(network)[0]
    fused = kt.fuse(model, probe=x)
    assert_same(outputs(fused, x), outputs(model, x))
    fused.export(tmp_path / "saved", verbose=False)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("name", ["residual_cnn", "token_classifier", "backbone_and_head"])
def test_a_model_of_mixed_precision_stays_one_under_another_global_policy(name, policy):
    network = zoo.NETWORKS[name]
    keras.config.set_dtype_policy(policy)
    model = made(network)
    model.compile("sgd", network.loss)
    x = batch(network)[0]
    expected = outputs(model, x)
    keras.config.set_dtype_policy("float32")
    new = recomputed(model)
    for a, b in zip(outputs(new, x), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert new.dtype_policy.name == converted(model, STANDARDIZED).dtype_policy.name == policy
    scales = isinstance(new.optimizer, keras.optimizers.LossScaleOptimizer)
    assert scales == (policy == "mixed_float16")
    fused = kt.fuse(new, probe=x, dtype="float32")
    assert {layer.compute_dtype for layer in fused._flatten_layers()} == {"float32"}
