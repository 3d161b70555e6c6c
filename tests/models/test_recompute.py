import importlib
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import keras_tricks as kt
from keras_tricks.layers.recompute import Recompute
from keras_tricks.models.recompute import recompute
from tests import runs

module = importlib.import_module("keras_tricks.models.recompute")  # the name in the package is the function


def residual(blocks=3):
    x = inputs = keras.Input((6, 6, 1))
    x = layers.Conv2D(4, 3, padding="same", name="stem")(x)
    for index in range(blocks):
        y = layers.BatchNormalization(momentum=0.5)(x)
        y = layers.Dropout(0.3, seed=index)(keras.ops.relu(y))
        x = layers.Add(name=f"add_{index}")([x, layers.Conv2D(4, 3, padding="same")(y)])
    return keras.Model(inputs, layers.Dense(3, dtype="float32", name="head")(layers.Flatten()(x)), name="net")


def dense(count=9, width=16):
    return keras.Sequential([keras.Input((width,)), *[layers.Dense(width, name=f"d{i}") for i in range(count)]])


def segments_of(model):
    return [name for name, _ in model.recompute_report.segments]


@pytest.mark.parametrize(("mode", "replicas"), [("graph", 1), runs.slow("xla", 2)])
def test_training_is_bit_for_bit_the_same(mode, replicas):
    arguments = {"data": runs.images(16), "epochs": 1}
    a = runs.train(kt.LAMB, mode, replicas, network=residual, **arguments)
    b = runs.train(kt.LAMB, mode, replicas, network=lambda: recompute(residual()), **arguments)
    assert len(segments_of(b.model)) > 2
    assert a.losses == b.losses
    for x, y in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_new_model_has_the_same_weights_in_the_same_order_and_the_old_one_works_as_before():
    for model in (residual(), dense()):
        x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")
        before, config = np.array(model(x)), model.get_config()
        new = recompute(model)
        assert new.name == model.name
        assert [id(w) for w in new.weights] == [id(w) for w in model.weights]
        np.testing.assert_array_equal(new(x), before)
        np.testing.assert_array_equal(model(x), before)
        assert model.get_config() == config
        assert any(isinstance(layer, Recompute) for layer in new.layers)
        assert not any(isinstance(layer, Recompute) for layer in model.layers)


def test_equal_layers_are_cut_into_about_their_square_root():
    report = recompute(dense(16)).recompute_report
    assert report.before == 16 * 16 * 4
    assert report.after == (3 + 4) * 16 * 4
    assert [size for _, size in report.segments] == [4 * 16 * 4] * 4
    assert str(report).startswith("expected: 1,024 -> 448 bytes an example (44%)\nsegments:\n  up to d3: 256 bytes")


def test_the_last_segment_is_not_recomputed():
    new = recompute(dense(9), 3)
    assert [type(layer).__name__ for layer in new.layers] == ["InputLayer", "Recompute", "Recompute", *["Dense"] * 3]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=2, max_size=7), st.data())
def test_no_other_cuts_keep_less(sizes, data):
    chain = [module._Piece(i, 0, str(i), edge, work) for i, (edge, work) in enumerate(sizes)]
    count = data.draw(st.none() | st.integers(2, len(sizes)))
    counts = range(1, len(sizes) + 1) if count is None else [count]
    every = [cuts for c in counts for cuts in itertools.combinations(range(1, len(sizes)), c - 1)]
    best = min(module._report(chain, cuts).after for cuts in every)
    found = module._best(chain, count)
    assert module._report(chain, found).after == best
    assert count is None or len(found) == count - 1


def test_residual_blocks_and_inner_models_stay_whole():
    new = recompute(residual(), 5)
    assert set(segments_of(new)[:-1]) <= {"stem", *(f"add_{i}" for i in range(4)), "flatten"}
    inner = dense(3, width=4)
    model = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="a"), inner, layers.Dense(4, name="b")])
    report = recompute(model, 3).recompute_report
    assert [size for _, size in report.segments] == [16, 3 * 16, 16]


def test_cuts_can_be_named():
    model = residual()
    for cuts in (["add_0", "add_2"], [model.get_layer("add_2"), model.get_layer("add_0")]):
        assert segments_of(recompute(model, cuts)) == ["add_0", "add_2", "head"]


def test_several_inputs_outputs_and_a_shared_layer():
    a, b = keras.Input((8,), name="a"), keras.Input((8,), name="b")
    x = layers.Dense(8)(layers.Concatenate()([a, b]))
    shared = layers.Dense(8, activation="tanh", name="shared")
    for _ in range(6):
        x = shared(x)
    model = keras.Model({"a": a, "b": b}, {"s": layers.Dense(1, name="s")(x), "t": layers.Dense(2, name="t")(x)})
    model.compile(keras.optimizers.SGD(0.1), {"s": "mse", "t": "mse"})
    new = recompute(model, ["shared"])
    assert new.compiled
    assert len(segments_of(new)) == 7
    random = np.random.default_rng(0)
    x = {k: random.normal(size=(4, 8)) for k in "ab"}
    y = {"s": np.ones((4, 1)), "t": np.zeros((4, 2))}
    start = model.get_weights()
    losses = []
    for m in (model, new):
        m.set_weights(start)
        losses.append(m.fit(x, y, epochs=3, verbose=0).history["loss"])
    np.testing.assert_allclose(*losses, rtol=1e-6)


@pytest.mark.slow
def test_masks_pass_the_cuts_without_a_warning():
    def network():
        recurrent = [layers.LSTM(4, return_sequences=True, name=f"l{i}") for i in range(3)]
        embedding = layers.Embedding(10, 4, mask_zero=True)
        return keras.Sequential([keras.Input((5,), dtype="int32"), embedding, *recurrent, layers.Dense(3)])

    x = np.random.default_rng(0).integers(1, 10, (8, 5))
    x[:, 3:] = 0
    data = x, np.random.default_rng(1).integers(0, 3, (8, 5))
    a = runs.train(kt.LAMB, network=network, data=data, epochs=1)
    b = runs.train(kt.LAMB, network=lambda: recompute(network(), ["l0", "l1"]), data=data, epochs=1)
    np.testing.assert_allclose(a.losses, b.losses, rtol=1e-6)
    np.testing.assert_array_equal(b.model(x)._keras_mask, x != 0)


def test_an_input_may_be_used_after_a_cut():
    x = inputs = keras.Input((4,))
    for index in range(5):
        x = layers.Dense(4, activation="tanh", name=f"d{index}")(layers.Concatenate(name=f"c{index}")([x, inputs]))
    model = keras.Model(inputs, x)
    new = recompute(model, ["d0", "d2"])
    data = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    gradients = []
    for m in (model, new):
        x = tf.constant(data)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(tf.sin(m(x, training=True)))
        gradients.append(tape.gradient(y, [x, *(v.value for v in m.trainable_variables)]))
    for a, b in zip(*gradients, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_saved_loaded_and_exported_it_is_the_same(tmp_path):
    new = recompute(residual())
    x = runs.images(4)[0]
    new.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(x), new(x))
    assert [layer.name for layer in loaded.layers] == [layer.name for layer in new.layers]
    new.export(tmp_path / "saved", verbose=False)
    exported = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(exported.serve(x), new(x), atol=1e-5)


def one_activation():
    x = inputs = keras.Input((8,))
    activation = layers.ReLU()
    for index in range(6):
        x = activation(layers.Dense(8, name=f"d{index}")(x))
    return keras.Model(inputs, layers.Dense(3)(x))


def one_mask():
    """The mask is used in every block, also as the numbers that a layer adds to its scores."""
    ids, mask = keras.Input((6,), dtype="int32", name="ids"), keras.Input((6,), dtype="bool", name="mask")
    allowed = layers.Reshape((1, 6))(mask)
    bias = keras.ops.expand_dims(keras.ops.cast(mask, "float32") * 0.5, -1)
    x = layers.Embedding(20, 8)(ids)
    for index in range(4):
        y = layers.MultiHeadAttention(2, 4, name=f"attention{index}")(x, x, attention_mask=allowed)
        x = layers.Dense(8, activation="relu", name=f"d{index}")(layers.Add()([x, y, bias]))
    return keras.Model({"ids": ids, "mask": mask}, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


def tied_weights():
    x = inputs = keras.Input((8,))
    first, second = layers.Dense(8, activation="tanh", name="first"), layers.Dense(8, name="second")
    for index in range(4):
        x = layers.LayerNormalization(name=f"n{index}")(second(first(x)))
    return keras.Model(inputs, {"a": layers.Dense(2, name="a")(first(x)), "b": layers.Dense(3, name="b")(x)})


def siamese():
    tower = keras.Sequential(
        [keras.Input((8,)), layers.Normalization(mean=1.0, variance=2.0), layers.Dense(8, "tanh"), layers.Dense(8)],
        name="tower",
    )
    left, right = keras.Input((8,), name="left"), keras.Input((8,), name="right")
    x = layers.Concatenate()([tower(left), tower(right)])
    for index in range(3):
        x = layers.Dense(8, name=f"d{index}")(x)
    return keras.Model([left, right], layers.Dense(1)(tower(x)))


def ones(model):
    return keras.tree.map_structure(lambda t: np.ones((2, *t.shape[1:]), t.dtype), model.input)


def trained(model, steps=2):
    """The outputs after steps on targets of 0, eagerly; goes on with the optimizer that the model has."""
    x, outputs = ones(model), keras.tree.map_structure(lambda t: np.zeros((2, *t.shape[1:])), model.output)
    if not model.compiled:
        loss = keras.tree.map_structure(lambda t: "mse", model.output)
        model.compile(keras.optimizers.SGD(0.1, momentum=0.9), loss, run_eagerly=True)
    for _ in range(steps):
        model.train_on_batch(x, outputs)
    return [np.array(y) for y in keras.tree.flatten(model(x))]


@pytest.mark.parametrize("make", [one_activation, one_mask, tied_weights, siamese])
def test_what_segments_share_stays_shared_when_saved_and_loaded(make, tmp_path):
    model = make()
    twin = keras.models.clone_model(model)
    twin.set_weights(model.get_weights())
    new = recompute(model, 4)
    assert {id(w) for w in new.weights} == {id(w) for w in model.weights}
    expected, received = trained(twin), trained(new)
    for a, b in zip(expected, received, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(keras.tree.flatten(model(ones(model)))[0], received[0])
    new.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert len(loaded.weights) == len(new.weights)
    for a, b in zip(loaded.get_weights(), new.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(trained(twin), trained(loaded), strict=True):  # with the momentum that was saved
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_plan_that_saves_next_to_nothing_is_refused():
    x, y = inputs = [keras.Input((8,)), keras.Input((8,))]
    for index in range(6):  # two tensors lead on, as in NASNet
        x, y = layers.Add(name=f"add{index}")([layers.Dense(8)(x), y]), x
    model = keras.Model(inputs, layers.Dense(2)(layers.Dense(2, name="last")(layers.Add(name="sum")([x, y]))))
    with pytest.raises(ValueError, match="save next to nothing"):
        recompute(model)
    report = recompute(model, ["sum"]).recompute_report
    assert report.after > 0.9 * report.before


def test_it_is_compiled_under_the_strategy_of_the_model_and_jitted_as_it_is():
    with runs.strategy_of(2).scope():
        model = kt.jit(dense())
        model.compile(kt.LAMB(0.01), "mse", jit_compile=False)
    new = recompute(model)
    assert new.distribute_strategy is model.distribute_strategy
    assert type(new.call) is type(model.call)
    assert new.compiled
    x = np.ones((4, 16))
    new.fit(x, x, verbose=0)


def test_what_it_cannot_be_compiled_with_is_said():
    class OwnLoss(keras.losses.MeanSquaredError):
        """Not registered."""

    model = dense()
    model.compile("sgd", OwnLoss())
    with pytest.warns(UserWarning, match="the new model is not compiled.*Compile the new model yourself"):
        new = recompute(model)
    assert not new.compiled


class OwnConstructor(keras.Model):
    def __init__(self, width=8):
        x = inputs = keras.Input((width,))
        for index in range(9):
            x = layers.Dense(width, name=f"d{index}")(x)
        super().__init__(inputs, x)


def test_a_model_with_a_constructor_of_its_own_is_cut_as_the_message_says():
    model = OwnConstructor()
    with pytest.raises(ValueError, match=r"own `__init__` the new.*keras\.Model\(model\.input, model\.output\)"):
        recompute(model)
    new = recompute(keras.Model(model.input, model.output))
    np.testing.assert_array_equal(new(ones(model)), model(ones(model)))
    head = keras.Model(model.input, layers.Dense(2)(model(model.input)))  # as a layer it stays whole
    np.testing.assert_array_equal(recompute(head, 2)(ones(head)), head(ones(head)))


def test_what_cannot_be_cut_says_what_to_do():
    with pytest.raises(ValueError, match="no place to cut"):
        recompute(dense(1))
    with pytest.raises(ValueError, match="save next to nothing"):
        recompute(dense(2))
    with pytest.raises(ValueError, match="from 2 to 9"):
        recompute(dense(), 10)
    with pytest.raises(ValueError, match="from 2 to 9"):
        recompute(dense(), 1)
    with pytest.raises(ValueError, match="`measure` must be at least 1"):
        recompute(dense(), measure=0)
    with pytest.raises(TypeError, match="segments='half'"):
        recompute(dense(), "half")
    with pytest.raises(ValueError, match=r"\['d0', 'd1'\]\. Received: \['d7'\]"):
        recompute(dense(3), ["d7"])
    with pytest.raises(ValueError, match="single tensor"):
        recompute(residual(), ["dropout"])


@pytest.mark.slow
def test_the_measured_peak_falls_too():
    model = keras.Sequential([keras.Input((256,)), *[layers.Dense(256, activation="gelu") for _ in range(24)]])
    before, after = recompute(model, measure=8192).recompute_report.measured
    assert before > 24 * 8192 * 256 * 4
    assert after < 0.4 * before
