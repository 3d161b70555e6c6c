"""What every optimizer of the catalogue keeps to; a new record is tested by being there."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from keras_tricks import catalog
from keras_tricks._keras.optimizers import stepping_optimizer
from tests import runs, zoo

OPTIMIZERS = [t for t in catalog.TRICKS if t.kind == "optimizer" and t.make]


@pytest.fixture(params=OPTIMIZERS, ids=lambda t: t.name)
def make(request):
    return request.param.make


@pytest.fixture(params=runs.of_each_kind(OPTIMIZERS), ids=lambda t: t.name)
def make_of_each_kind(request):
    return request.param.make


@functools.cache
def plain(make):
    """One epoch on one device, as a graph, in float32: what most tests compare with."""
    return runs.train(make, epochs=1)


def innermost(optimizer):
    return innermost(optimizer.inner_optimizer) if hasattr(optimizer, "inner_optimizer") else optimizer


def test_config_round_trip(make):
    optimizer = make()
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(optimizer)
    assert keras.saving.serialize_keras_object(again) == keras.saving.serialize_keras_object(optimizer)


@pytest.mark.slow  # on real networks: test_contract_real_networks.py
def test_the_result_is_the_same_eager_compiled_under_xla_and_on_two_replicas(make_of_each_kind):
    expected = plain(make_of_each_kind)
    for mode, replicas in (("eager", 1), ("xla", 1), ("graph", 2)):  # XLA on two: the next tests
        runs.assert_same_weights(expected, runs.train(make_of_each_kind, mode, replicas, epochs=1), 2e-5)


def test_a_training_loop_of_the_users_own_gives_the_same(make):
    def end(decorate):
        variables = [keras.Variable(runs.numbers((4, 3), "float32")[0], name="kernel")]
        gradients = [tf.constant(runs.numbers((4, 3), "float32")[1][0])]
        optimizer = make()

        @decorate
        def step():
            optimizer.apply(gradients, variables)

        for _ in range(3):
            step()
        return keras.ops.convert_to_numpy(variables[0])

    np.testing.assert_allclose(end(tf.function), end(lambda function: function), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_the_step_alone_under_xla_gives_the_same(make):
    def compiled():
        optimizer = make()
        stepping_optimizer(optimizer).jit_compile = True
        return optimizer

    runs.assert_same_weights(plain(make), runs.train(compiled, replicas=2, epochs=1), 2e-5)


def test_mixed_precision_on_two_replicas_under_xla(make_of_each_kind, mixed_precision):
    def scaled():
        optimizer = make_of_each_kind()
        is_scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        return optimizer if is_scaled else kt.LossScaleOptimizer(optimizer)

    other = runs.train(scaled, "xla", 2, mixed_precision, epochs=1)  # float32: where it accumulates, below
    runs.assert_same_weights(plain(make_of_each_kind), other, runs.tolerance(mixed_precision))


@pytest.mark.parametrize("policy", [runs.slow("bfloat16"), "float16"])  # which has less room
def test_pure_low_precision_stays_finite_and_learns(make, policy):
    run = runs.train(make, precision=policy, epochs=6)
    assert all(np.isfinite(w.astype("float32")).all() for w in run.weights)
    assert run.losses[-1] < run.losses[0]


def test_accumulation_with_everything_equals_the_large_batch(make_of_each_kind):
    large = runs.train(lambda: make_of_each_kind(global_clipnorm=0.5, use_ema=True), batch=16, epochs=1)
    small = runs.train(
        lambda: make_of_each_kind(global_clipnorm=0.5, use_ema=True, gradient_accumulation_steps=2),
        "xla",
        2,
        batch=8,
        epochs=1,
        steps_per_execution=2,
    )
    runs.assert_same_weights(large, small, 5e-5)


def on_replicas():
    for t in OPTIMIZERS:
        yield from ([(t, 1), runs.slow(t, 2)] if t.object in runs.ALIKE else [(t, 2)])


@pytest.mark.slow  # on real networks: below
@pytest.mark.parametrize(("trick", "replicas"), [*on_replicas()], ids=lambda x: getattr(x, "name", x))
def test_saved_loaded_and_continued_equals_uninterrupted(trick, replicas, tmp_path):
    run = runs.train(lambda: trick.make(gradient_accumulation_steps=3, use_ema=True), replicas=replicas, epochs=1)
    # Four batches, windows of three: saved in the middle of a window.
    run.model.save(tmp_path / "m.keras")
    with runs.strategy_of(replicas).scope():
        loaded = keras.models.load_model(tmp_path / "m.keras")
    for model in (run.model, loaded):
        model.fit(*runs.images(), batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(run.model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(run.model.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


@pytest.mark.slow
def test_learning_rate_can_be_a_schedule_a_function_or_set_while_training(make):
    rates = []

    class Halve(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.optimizer.learning_rate = 0.01 / 2**epoch

        def on_epoch_end(self, epoch, logs=None):
            rates.append(float(self.model.optimizer.learning_rate))

    runs.train(make, replicas=2, callbacks=[Halve()])
    assert rates == pytest.approx([0.01, 0.005])
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([2], [0.01, 0.01])
    scheduled = runs.train(lambda: with_rate(make, schedule), epochs=1)
    function = runs.train(lambda: with_rate(make, lambda: 0.01), epochs=1)
    runs.assert_same_weights(scheduled, function, 1e-6)


def with_rate(make, rate):
    optimizer = make()
    optimizer.learning_rate = rate
    assert innermost(optimizer).learning_rate is optimizer.learning_rate or callable(rate)
    return optimizer


@pytest.mark.slow
def test_it_learns():
    for trick in OPTIMIZERS:
        run = runs.train(trick.make, epochs=15)
        assert run.losses[-1] < 0.8 * run.losses[0], trick.name


def pairs(networks, offset, every=1):
    """Each optimizer with each network, slow but for one optimizer, in turns, with every n-th network."""
    for i, network in enumerate(networks):
        quick = {(i // every + offset) % len(OPTIMIZERS)} if i % every == 0 else ()
        for j, trick in enumerate(OPTIMIZERS):
            marks = () if j in quick and not network.is_(zoo.LARGE) else pytest.mark.slow
            yield pytest.param(network, trick.make, marks=marks, id=f"{network}-{trick.name}")


@functools.cache
def first_gradients(network):
    """The gradients of a network's first batch, in NumPy; None where a variable has none."""
    model = network.compiled(lambda: keras.optimizers.SGD(0.1), run_eagerly=True)
    received = []
    for optimizer in (model.optimizer, getattr(model, "second_optimizer", None)):
        if optimizer is not None:
            optimizer.apply = lambda grads, variables: received.extend(zip(grads, variables, strict=True))
    zoo.fit(model, network)
    gradients = {id(v): keras.ops.convert_to_numpy(tf.convert_to_tensor(g)) for g, v in reversed(received)}
    return [gradients.get(id(v)) for v in model.trainable_variables]


def step_of(optimizer, variables, gradients):
    def step(*present):
        present = iter(present)
        optimizer.apply([None if g is None else next(present) for g in gradients], variables)

    return step


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize("is_compiled", [False, runs.slow(True)])
@pytest.mark.parametrize(("network", "make"), [*pairs(zoo.NETWORKS.values(), 3)])
def test_a_step_with_the_gradients_of_a_real_network_is_the_same_traced_with_unknown_shapes(network, make, is_compiled):
    ends = []
    for is_traced in (False, True):
        model = network.compiled(make)
        gradients = [None if g is None else tf.constant(g) for g in first_gradients(network)]
        step = step_of(model.optimizer, model.trainable_variables, gradients)
        present = [g for g in gradients if g is not None]
        if is_traced:
            stepping_optimizer(model.optimizer).jit_compile = is_compiled
            step = tf.function(step, input_signature=[tf.TensorSpec([None] * len(g.shape), g.dtype) for g in present])
        for _ in range(2):
            step(*present)
        ends.append(model.get_weights())
    for v, x, y in zip(model.weights, *ends, strict=True):
        np.testing.assert_allclose(x, y, rtol=2e-5, atol=2e-6, err_msg=v.path)


RESUMABLE = [n for n in zoo.NETWORKS.values() if not n.is_(zoo.RANDOM, zoo.TWO_OPTIMIZERS, zoo.MERGED)]


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(("network", "make"), [*pairs(RESUMABLE, 1, every=2)])
def test_a_real_network_goes_on_from_a_file_as_if_uninterrupted(network, make, tmp_path):
    """From a model's file, and from weights alone in a model that was only compiled."""
    run = zoo.train(network, lambda: make(gradient_accumulation_steps=2, use_ema=True), "eager")
    run.model.save(tmp_path / "m.keras")
    run.model.save_weights(tmp_path / "m.weights.h5")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    fresh = network.compiled(lambda: make(gradient_accumulation_steps=2, use_ema=True))
    fresh.load_weights(tmp_path / "m.weights.h5")
    for model in (run.model, loaded, fresh):
        model.run_eagerly = True
        zoo.fit(model, network)
    for other in (loaded, fresh):
        for a, b in zip(run.model.get_weights(), other.get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
        for a, b in zip(run.model.optimizer.variables, other.optimizer.variables, strict=True):
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))
