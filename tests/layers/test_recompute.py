import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from keras_tricks.layers.recompute import Recompute, recompute_call
from keras_tricks.layers.rezero import ReZero
from keras_tricks.models.recompute import recompute
from tests import runs


def plain(layer):
    return layer


def block(seed, width=6):
    """With everything that a second run could get wrong: moving statistics, random numbers, losses."""
    return keras.Sequential(
        [
            layers.Dense(width, activation="tanh", kernel_regularizer="l2"),
            layers.BatchNormalization(momentum=0.5),
            layers.Dropout(0.4, seed=seed),
            layers.Dense(width, activity_regularizer=keras.regularizers.L2(0.1)),
        ]
    )


def network(wrap):
    inner = keras.Sequential([layers.Dense(6), wrap(keras.Sequential([layers.Dropout(0.4, seed=2), layers.Dense(6)]))])
    return keras.Sequential(
        [keras.Input((6, 6, 1)), layers.Flatten(), wrap(block(1)), wrap(inner), layers.Dense(3, dtype="float32")]
    )


def block_without_losses(seed):
    return keras.Sequential(
        [layers.Dense(6, activation="tanh"), layers.BatchNormalization(momentum=0.5), layers.Dropout(0.4, seed=seed)]
    )


def sgd():
    return keras.optimizers.SGD(0.1, momentum=0.9)


def both(make, **kwargs):
    """The same training without and with `Recompute`; `make(wrap)` makes the network."""
    kwargs = {"data": runs.images(16), "epochs": 1, **kwargs}
    return [runs.train(sgd, network=lambda w=wrap: make(w), **kwargs) for wrap in (plain, Recompute)]


def assert_equal(a, b):
    assert a.losses == b.losses
    for x, y in zip(a.weights, b.weights, strict=True):
        np.testing.assert_array_equal(x, y)
    for x, y in zip(a.model.non_trainable_variables, b.model.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(x, y)  # seeds too


def gradients(layer, *inputs, **kwargs):
    """Outputs, gradients of inputs and weights, and losses of one training call."""
    inputs = [tf.constant(x) for x in inputs]
    with tf.GradientTape() as tape:
        tape.watch([x for x in inputs if x.dtype.is_floating])
        outputs = layer(*inputs, training=True, **kwargs)
        floats = [y for y in keras.tree.flatten(outputs) if y.dtype.is_floating]
        loss = sum(tf.reduce_sum(tf.sin(tf.cast(y, "float32"))) for y in floats) + sum(layer.losses)
    sources = [x for x in inputs if x.dtype.is_floating] + [v.value for v in layer.trainable_variables]
    return outputs, [tf.convert_to_tensor(g) for g in tape.gradient(loss, sources)], loss


def assert_same_gradients(make, *inputs, **kwargs):
    results = []
    for wrap in (plain, Recompute):
        keras.utils.set_random_seed(0)
        layer = wrap(make())
        results.append(gradients(layer, *inputs, **kwargs))
    for a, b in zip(*map(keras.tree.flatten, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    return layer


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@pytest.mark.parametrize(("mode", "replicas"), [("eager", 1), runs.slow("graph", 2), ("xla", 2), runs.slow("xla", 1)])
def test_training_is_bit_for_bit_the_same(mode, replicas):
    assert_equal(*both(network, mode=mode, replicas=replicas))


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_training_is_bit_for_bit_the_same_in_mixed_precision(precision):
    def make(wrap):
        return keras.Sequential([keras.Input((6, 6, 1)), layers.Flatten(), wrap(block_without_losses(1))])

    a, b = both(make, precision=precision)
    assert_equal(a, b)
    assert b.model.layers[1].compute_dtype == precision.removeprefix("mixed_")


def test_the_layer_runs_again_in_the_backward_pass_and_only_there():
    calls = []

    class Counting(layers.Dense):
        def call(self, inputs, training=None):
            calls.append(training)
            return super().call(inputs)

    layer = Recompute(Counting(3))
    x = tf.constant(numbers(2, 4))
    layer(x)
    layer(x, training=False)
    calls.clear()
    with tf.GradientTape() as tape:
        y = layer(x, training=True)
        assert calls == [True]
    tape.gradient(y, layer.trainable_variables)
    assert calls == [True, True]
    calls.clear()
    with tf.GradientTape() as tape:
        y = layer(x, training=False)
    tape.gradient(y, [v.value for v in layer.trainable_variables])
    assert calls == [False]


def test_in_inference_it_is_the_layer():
    inner = block(1)
    x = numbers(4, 5)
    layer = Recompute(inner)
    for call in (layer, tf.function(layer)):
        np.testing.assert_allclose(call(x), inner(x), atol=1e-6)
        np.testing.assert_allclose(call(x, training=False), inner(x, training=False), atol=1e-6)


def test_each_training_call_draws_a_new_mask():
    layer = Recompute(layers.Dropout(0.5, seed=1))
    x = np.ones((1, 100), "float32")
    for call in (layer, tf.function(layer)):
        first, second = (np.array(call(x, training=True)) for _ in range(2))
        assert (first != second).any()


def test_keywords_of_the_call_reach_the_layer():
    x, y = numbers(2, 3, 4), numbers(2, 5, 4, seed=1)
    mask = np.ones((2, 3, 5), bool)
    mask[:, :, 3:] = False
    for options in (
        {},
        {"attention_mask": tf.constant(mask)},
        {"key": tf.constant(y), "return_attention_scores": True, "attention_mask": tf.constant(mask)},
    ):
        assert_same_gradients(lambda: layers.MultiHeadAttention(2, 3, dropout=0.3, seed=1), x, y, **options)
    inputs, values = keras.Input((3, 4)), keras.Input((5, 4))
    attention = Recompute(layers.MultiHeadAttention(2, 3))
    model = keras.Model([inputs, values], attention(inputs, value=values, return_attention_scores=True))
    assert [t.shape for t in model.outputs] == [
        t.shape for t in attention.layer(inputs, value=values, return_attention_scores=True)
    ]
    again = keras.Model.from_config(model.get_config())
    assert len(again([x, y])) == 2
    assert_same_gradients(lambda: layers.LSTM(3), x, mask=tf.constant(mask[:, :, 0]), initial_state=None)


def test_several_inputs_and_outputs_and_integers_among_them():
    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.table, self.dense = layers.Embedding(10, 4), layers.Dense(4, activation="tanh")

        def call(self, inputs):
            ids, (a, b) = inputs["ids"], inputs["pair"]
            x = self.dense(a) * b + self.table(ids)
            return {"x": x, "again": (keras.ops.argmax(x, axis=-1), ids, a), "sum": keras.ops.sum(x, axis=1)}

    def once(wrap):
        keras.utils.set_random_seed(0)
        layer = wrap(Block())
        inputs = {"ids": np.array([[1, 2, 3]]), "pair": (numbers(1, 3, 4), numbers(1, 3, 4, seed=1))}
        layer(inputs)

        @tf.function
        def run(a):
            with tf.GradientTape() as tape:
                tape.watch(a)
                outputs = layer({**inputs, "pair": (a, inputs["pair"][1])}, training=True)
                loss = tf.reduce_sum(tf.sin(outputs["x"]))  # `sum` gets no gradient
            sources = [a, *(v.value for v in layer.trainable_variables)]
            return outputs, [tf.convert_to_tensor(g) for g in tape.gradient(loss, sources)]

        return run(tf.constant(inputs["pair"][0]))

    a, b = once(plain), once(Recompute)
    keras.tree.assert_same_structure(a, b)
    for x, y in zip(keras.tree.flatten(a), keras.tree.flatten(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6)


def test_masks_go_in_and_come_out():
    def make(wrap):
        return keras.Sequential(
            [
                keras.Input((6,), dtype="int32"),
                wrap(layers.Embedding(10, 4, mask_zero=True)),
                wrap(layers.LSTM(4, return_sequences=True, dropout=0.3, seed=1)),
                layers.Dense(3),
            ]
        )

    x = np.random.default_rng(0).integers(1, 10, (16, 6))
    x[:, 4:] = 0
    data = x, np.random.default_rng(1).integers(0, 3, (16, 6))
    a, b = both(make, data=data)
    runs.assert_same_weights(a, b, 1e-6)  # the gradients of an embedding's rows are added in another order
    np.testing.assert_array_equal(b.model(x, training=True)._keras_mask, x != 0)


def test_added_losses_have_their_gradient():
    class Loss(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = layers.Dense(3)

        def call(self, x):
            y = self.dense(x)
            self.add_loss(keras.ops.mean(keras.ops.square(y)))
            return y

    assert len(assert_same_gradients(Loss, numbers(2, 3)).losses) == 1
    layer = assert_same_gradients(lambda: Recompute(Loss(activity_regularizer="l2")), numbers(2, 3))
    assert len(layer.losses) == 2


def test_any_signature_of_the_wrapped_layer_will_do():
    class Block(layers.Layer):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3, activation="tanh")

        def build(self, input_shape):
            self.dense.build(input_shape)

        def call(self, x, *more, **named):
            return self.dense(x) + sum(more) + sum(named.values())

    assert_same_gradients(Block, numbers(2, 3))
    assert_same_gradients(Block, numbers(2, 3), numbers(2, 3, seed=1))
    assert_same_gradients(Block, numbers(2, 3), numbers(2, 3, seed=1), other=numbers(2, 3, seed=2))


def test_a_shared_layer_gets_all_of_its_gradient():
    def make():
        shared = Recompute(block_without_losses(1))
        inputs = keras.Input((6,))
        return keras.Model(inputs, shared(shared(inputs)))

    assert_same_gradients(make, numbers(4, 6))
    inner = block_without_losses(1)
    x = numbers(4, 6)
    inner(x)
    once = gradients(Recompute(inner), x)[1]
    assert len(once) == len(gradients(keras.Sequential([Recompute(inner), Recompute(inner)]), x)[1])


def test_layers_without_weights_and_metrics_inside():
    assert_same_gradients(lambda: layers.Activation("tanh"), numbers(3, 4))

    class Counts(layers.Layer):
        def __init__(self):
            super().__init__()
            self.mean = keras.metrics.Mean()

        def call(self, x):
            self.mean.update_state(x)
            return x * x

    layer = assert_same_gradients(Counts, numbers(3, 4))
    assert float(layer.layer.mean.count) == 3  # rows, once


def test_a_frozen_layer_stays_as_it_is():
    layer = Recompute(block(1))
    x = numbers(4, 5)
    layer(x)
    before = layer.get_weights()
    layer.trainable = False
    assert layer.trainable_variables == []
    gradient = gradients(layer, x)[1][0]
    assert np.abs(gradient).max() > 0
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_pure_function_of_the_weights_has_their_gradient():
    # As in a training loop of one's own: every weight's value is given from outside.
    x = numbers(4, 5)
    results = []
    for wrap in (plain, Recompute):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((5,)), wrap(block_without_losses(1))])
        weights = [tf.constant(2 * v.numpy()) for v in model.trainable_variables]
        state = [tf.convert_to_tensor(v.value) for v in model.non_trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch(weights)
            y, new = model.stateless_call(weights, state, x, training=True)
            loss = tf.reduce_sum(tf.sin(y))
        results.append((tape.gradient(loss, weights), new))
    for a, b in zip(*map(keras.tree.flatten, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_shapes_dtypes_and_config(tmp_path):
    layer = Recompute(layers.Dense(4, dtype="mixed_float16"), name="r", activity_regularizer="l2")
    assert layer.compute_output_shape((None, 3)) == (None, 4)
    assert layer(keras.Input((3,))).dtype == layer.compute_dtype == "float16"
    again = Recompute.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert again.layer.dtype_policy.name == "mixed_float16"
    assert again.layer.built
    assert Recompute(layers.Embedding(5, 4, mask_zero=True)).compute_mask(np.array([[1, 0]]), None).shape == (1, 2)


def test_saved_loaded_and_continued_equals_uninterrupted(tmp_path):
    run = runs.train(sgd, network=lambda: network(Recompute), data=runs.images(16), epochs=1)
    x, y = runs.images(16)
    run.model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    np.testing.assert_array_equal(loaded(x), run.model(x))
    for a, b in zip(run.model.variables, loaded.variables, strict=True):
        a.assign(b)  # Keras does not save the seeds' states
    for model in (run.model, loaded):
        model.fit(x, y, batch_size=8, shuffle=False, verbose=0)
    for a, b in zip(run.model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    loaded.export(tmp_path / "saved", verbose=False)
    exported = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(exported.serve(x), loaded(x), atol=1e-5)


def test_what_cannot_be_recomputed_is_refused():
    x = numbers(3, 3)
    with pytest.raises(TypeError, match=r"expects a keras\.Layer"):
        Recompute(lambda x: x)
    with pytest.raises(ValueError, match="give `dtype` to layer 'inner'"):
        Recompute(layers.Dense(3, name="inner"), dtype="float16")
    spectral = Recompute(layers.SpectralNormalization(layers.Dense(3)))
    spectral(x)  # in inference it is the layer
    with pytest.raises(ValueError, match="assigns its trainable weight"):
        spectral(x, training=True)

    class NoSeed(layers.Layer):
        def call(self, x, training=None):
            return keras.random.dropout(x, 0.5) if training else x

    with pytest.raises(ValueError, match=r"keras\.random\.SeedGenerator"):
        Recompute(NoSeed())(x, training=True)
    recurrent = Recompute(layers.LSTM(2, stateful=True))
    recurrent(numbers(2, 3, 4))
    with pytest.raises(ValueError, match="stateful"):
        recurrent(numbers(2, 3, 4), training=True)

    layer = Recompute(layers.Dense(3))
    with tf.GradientTape() as outer:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(tf.sin(layer(x, training=True)))
        gradient = tape.gradient(loss, layer.layer.kernel.value)
    with pytest.raises(NotImplementedError, match="recompute_grad"):
        outer.gradient(gradient, layer.layer.kernel.value)


def check_on_jax():
    a, b = (runs.train(sgd, network=lambda w=w: network(w), data=runs.images(16), epochs=1) for w in (plain, Recompute))
    np.testing.assert_allclose(a.losses, b.losses, rtol=1e-5)
    runs.assert_same_weights(a, b, 1e-5)
    for x, y in zip(a.model.non_trainable_variables, b.model.non_trainable_variables, strict=True):
        np.testing.assert_allclose(np.array(x), np.array(y), rtol=1e-5, atol=1e-6)

    chain = keras.Sequential([keras.Input((4,)), *[layers.Dense(4, activation="tanh") for _ in range(5)]])
    cut = recompute(chain, 3)
    start, ends = chain.get_weights(), []
    for model in (chain, cut):
        model.set_weights(start)
        model.compile("sgd", "mse")
        model.fit(numbers(4, 4), numbers(4, 4, seed=1), verbose=0)
        ends.append(model.get_weights())
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)

    import jax

    layer = Recompute(keras.Sequential([layers.Masking(), layers.Dense(3), layers.Dropout(0.5, seed=1)]))
    x = numbers(2, 3, 4)
    x[:, 2] = 0
    eager = layer(x)
    assert layer(x, training=True).shape == eager.shape
    state = [v.value for v in layer.trainable_variables], [v.value for v in layer.non_trainable_variables]

    def loss(weights):
        return keras.ops.sum(layer.stateless_call(weights, state[1], x, training=True)[0])

    assert "remat" in str(jax.make_jaxpr(jax.grad(loss))(state[0]))
    assert all(np.abs(g).max() > 0 for g in jax.grad(loss)(state[0]))


@pytest.mark.slow  # the contract on JAX trains with it too
def test_on_jax():
    runs.on_jax("from tests.layers import test_recompute as t; t.check_on_jax()")


@pytest.mark.parametrize("wrap", [Recompute, lambda layer: ReZero(layer, "ones")], ids=["Recompute", "ReZero"])
def test_a_layer_in_two_wrappers_is_one_layer_in_the_file_too(wrap, tmp_path):
    shared, x = layers.Dense(6), keras.Input((6,))
    model = keras.Model(x, wrap(shared)(wrap(shared)(x)))
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert len(loaded.weights) == len(model.weights)
    np.testing.assert_array_equal(loaded(numbers(2, 6)), model(numbers(2, 6)))


def own_layer(decorate, takes_training=True):
    """A layer of one's own with moving statistics, random numbers and losses, whose `call` may be decorated."""

    class Own(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first = layers.Dense(8, activation="gelu")
            self.statistics = layers.BatchNormalization(momentum=0.5)
            self.dropout = layers.Dropout(0.4, seed=1)
            self.last = layers.Dense(6)

        def build(self, shape):
            self.gain = self.add_weight(shape=(6,), initializer="ones", name="gain")
            self.first.build(shape)
            self.statistics.build((*shape[:-1], 8))
            self.last.build((*shape[:-1], 8))

        def body(self, x, **kwargs):
            x = self.dropout(self.statistics(self.first(x), **kwargs), **kwargs)
            y = self.last(x) * self.gain
            self.add_loss(0.01 * keras.ops.mean(keras.ops.square(keras.ops.cast(y, "float32"))))
            return y

        if takes_training:

            @decorate
            def call(self, x, training=None, scale=1.0):
                return self.body(x, training=training) * scale
        else:

            @decorate
            def call(self, x, scale=1.0):
                return self.body(x) * scale

    return Own()


def both_decorated(takes_training, **kwargs):
    kwargs = {"data": runs.images(16), "epochs": 1, **kwargs}

    def make(decorate):
        inputs = keras.Input((6, 6, 1))
        x = own_layer(decorate, takes_training)(layers.Flatten()(inputs), scale=0.5)
        return keras.Model(inputs, layers.Dense(3, dtype="float32")(own_layer(decorate, takes_training)(x)))

    return [runs.train(sgd, network=lambda d=d: make(d), **kwargs) for d in (plain, recompute_call)]


@pytest.mark.parametrize("takes_training", [runs.slow(True), False])
@pytest.mark.parametrize(("mode", "replicas"), [("eager", 1), runs.slow("graph", 1), ("xla", 2), runs.slow("xla", 1)])
def test_a_decorated_call_trains_as_it_would_without(takes_training, mode, replicas):
    a, b = both_decorated(takes_training, mode=mode, replicas=replicas)
    if mode == "eager":
        assert_equal(a, b)
    else:  # XLA joins other operations in the two
        runs.assert_same_weights(a, b, 1e-5)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_a_decorated_call_computes_in_the_same_precision_both_times(precision):
    # Eagerly, since a graph of bfloat16 is rewritten, and rounds otherwise where it is cut.
    assert_equal(*both_decorated(True, precision=precision, mode="eager"))


def test_a_decorated_call_runs_again_in_the_backward_pass_and_only_there():
    calls = []

    class Counting(layers.Dense):
        @recompute_call
        def call(self, inputs, training=None):
            calls.append(training)
            return super().call(inputs)

    layer, x = Counting(3), tf.constant(numbers(2, 4))
    layer(x)
    calls.clear()
    with tf.GradientTape() as tape:
        y = layer(x, training=True)
        assert calls == [True]
    tape.gradient(y, layer.trainable_variables)
    assert calls == [True, True]
    with tf.GradientTape() as tape:
        y = layer(x, training=False)
    tape.gradient(y, [v.value for v in layer.trainable_variables])
    assert calls == [True, True, False]
    assert Counting.call.__name__ == "call"


def test_a_decorated_layer_saves_and_loads_as_it_would_without(tmp_path):
    @keras.saving.register_keras_serializable(package="test_recompute")
    class FeedForward(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner, self.outer = layers.Dense(5, activation="gelu"), layers.Dense(4)

        def build(self, shape):
            self.inner.build(shape)
            self.outer.build((*shape[:-1], 5))

        @recompute_call
        def call(self, x):
            return x + self.outer(self.inner(x))

    model = keras.Sequential([keras.Input((4,)), FeedForward(), FeedForward()])
    model.compile(sgd(), "mse")
    model.fit(numbers(8, 4), numbers(8, 4, seed=1), verbose=0)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for m in (model, loaded):
        m.fit(numbers(8, 4), numbers(8, 4, seed=1), verbose=0)
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_decorated_call_that_cannot_be_recomputed_is_refused():
    class Random(layers.Layer):
        @recompute_call
        def call(self, x):
            return x + keras.random.normal((4,))

    layer = Random()
    layer(np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"layer 'random\w*' assigns a variable that it does not own"):
        layer(np.ones((2, 4)), training=True)
