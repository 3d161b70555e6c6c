import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.ops import convert_to_numpy as numpy_of

import keras_tricks as kt
from keras_tricks.layers import ExtendedBatchNormalization
from tests import reference, runs


def inputs(*shape, seed=0):
    """Channels (the last axis) of different means and sizes."""
    random = np.random.default_rng(seed)
    return (random.normal(size=shape) * np.arange(1, shape[-1] + 1) + random.normal(size=shape[-1])).astype("float32")


def randomized(layer, x, seed=1):
    """Builds the layer on `x` and gives all of its weights random positive values."""
    layer(x)
    random = np.random.default_rng(seed)
    layer.set_weights([random.uniform(0.5, 2, size=w.shape) for w in layer.get_weights()])
    return layer


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 5), st.data())
def test_training_normalizes_as_the_paper_says_for_any_rank_and_axis(rank, data):
    axis = data.draw(st.integers(-rank, rank - 1)) if rank > 1 else 0
    shape = data.draw(st.lists(st.integers(2, 4), min_size=rank, max_size=rank))
    x = inputs(*shape)
    layer = randomized(ExtendedBatchNormalization(axis=axis, momentum=0.75, epsilon=0.01), x)
    gamma, beta, moving_mean, moving_variance = layer.get_weights()
    y, mean, variance = reference.extended_batch_normalized(x, gamma, beta, 0.01, axis)
    np.testing.assert_allclose(layer(x, training=True), y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, 0.75 * moving_mean + 0.25 * mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.75 * moving_variance + 0.25 * variance, rtol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"scale": False}, {"center": False}, {"scale": False, "center": False}], ids=str
)
@pytest.mark.parametrize("axis", [-1, 1])
def test_inference_uses_the_moving_averages_and_changes_nothing(options, axis):
    x = inputs(4, 3, 3)
    layer = randomized(ExtendedBatchNormalization(axis=axis, **options), x)
    before = layer.get_weights()
    weights = {v.name: numpy_of(v) for v in layer.weights}
    along = (3, 1) if axis == 1 else (3,)
    scale = weights.get("gamma", np.ones(3)).reshape(along) / np.sqrt(weights["moving_variance"] + 1e-3)
    expected = (x - weights["moving_mean"].reshape(along)) * scale + weights.get("beta", np.zeros(3)).reshape(along)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)
    layer.trainable = False
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    for a, b in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_with_one_channel_it_is_batch_normalization():
    x = inputs(8, 5, 5, 1)
    ours, plain = ExtendedBatchNormalization(), keras.layers.BatchNormalization()
    np.testing.assert_allclose(ours(x, training=True), plain(x, training=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ours.moving_variance, plain.moving_variance[0], rtol=1e-6)
    assert [w.name for w in ours.weights] == [w.name for w in plain.weights]


def test_it_is_built_with_every_argument_of_batch_normalization():
    arguments = {
        "axis": 1, "momentum": 0.9, "epsilon": 1e-5, "center": True, "scale": True,
        "beta_initializer": "ones", "gamma_initializer": "zeros", "moving_mean_initializer": "ones",
        "moving_variance_initializer": "zeros", "beta_regularizer": "l2", "gamma_regularizer": "l1",
        "beta_constraint": "non_neg", "gamma_constraint": "non_neg", "renorm": False, "renorm_clipping": None,
        "renorm_momentum": 0.9, "synchronized": True, "name": "norm",
    }  # fmt: skip
    layer = ExtendedBatchNormalization(**arguments)
    layer.build((None, 3, 4))
    assert [list(w.shape) for w in layer.weights] == [[3], [3], [3], []]
    assert [numpy_of(w).max() for w in layer.weights] == [0, 1, 1, 0]
    assert len(layer.losses) == 2
    plain = keras.layers.BatchNormalization(**arguments)
    assert layer.get_config() == plain.get_config()
    assert ExtendedBatchNormalization.from_config(layer.get_config()).get_config() == layer.get_config()
    assert ExtendedBatchNormalization(1, 0.9, 1e-5, False).center is False  # by position


def test_masked_positions_do_not_count_even_if_they_are_nan():
    x, mask = inputs(4, 6, 3), np.random.default_rng(0).random((4, 6)) < 0.6
    hidden = np.where(mask[..., None], x, np.nan).astype("float32")
    layer = ExtendedBatchNormalization(momentum=0.0)
    y, mean, variance = reference.extended_batch_normalized(x, mask=np.repeat(mask[..., None], 3, -1))
    np.testing.assert_allclose(layer(x, training=True, mask=mask), y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(numpy_of(layer(hidden, training=True, mask=mask))[mask], y[mask], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)
    full = layer(x, training=True, mask=np.ones((4, 6), bool))
    np.testing.assert_allclose(full, layer(x, training=True), rtol=1e-5, atol=1e-6)
    assert np.isfinite(numpy_of(layer(x, training=True, mask=np.zeros((4, 6), bool)))).all()


def test_a_mask_made_by_a_layer_before_it_reaches_it_and_goes_on():
    x = inputs(4, 6, 3)
    x[:, 4:] = 0
    masking, layer = keras.layers.Masking(), ExtendedBatchNormalization(momentum=0.0)
    y = layer(masking(x), training=True)
    np.testing.assert_allclose(layer.moving_mean, x[:, :4].mean((0, 1)), rtol=1e-4, atol=1e-6)
    assert numpy_of(y._keras_mask).sum() == 16


def test_first_and_second_derivatives_are_those_of_the_formula():
    x = tf.constant(inputs(4, 3).astype("float64"))
    layer = ExtendedBatchNormalization(dtype="float64")
    layer.build((4, 3))
    layer.gamma.assign([1.0, 2.0, 3.0])

    def formula(x):
        mean = tf.reduce_mean(x, 0)
        return layer.gamma * (x - mean) * tf.math.rsqrt(tf.reduce_mean((x - mean) ** 2) + layer.epsilon)

    def derivatives(normalize):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(tf.sin(normalize(x)))
            first = tape.gradient(loss, x)
            penalty = tf.reduce_sum(first**2)
        return first, outer.gradient(penalty, x)

    for ours, exact in zip(derivatives(lambda x: layer(x, training=True)), derivatives(formula), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("compiled", [False, True], ids=["graph", "xla"])
def test_compiled_with_an_unknown_batch_size_it_is_the_same_as_eager(compiled):
    x = inputs(6, 4, 3)
    eager, other = ExtendedBatchNormalization(), ExtendedBatchNormalization()
    other.build((None, None, 3))
    step = tf.function(
        lambda x: other(x, training=True), jit_compile=compiled, input_signature=[tf.TensorSpec((None, None, 3))]
    )
    np.testing.assert_allclose(step(x), eager(x, training=True), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.moving_variance, eager.moving_variance, rtol=1e-6)


@pytest.mark.parametrize(("policy", "dtype"), [("mixed_float16", "float16"), ("mixed_bfloat16", "bfloat16")])
def test_statistics_are_float32_under_mixed_precision(policy, dtype):
    # Squares of 300 overflow in float16, and the mean of 4096 numbers has lost its digits in bfloat16.
    x = keras.ops.cast(300 * inputs(64, 64, 2), dtype)
    layer = ExtendedBatchNormalization(momentum=0.0, dtype=policy)
    y = layer(x, training=True)
    _, mean, variance = reference.extended_batch_normalized(keras.ops.cast(x, "float32"))
    assert y.dtype == dtype
    assert layer.gamma.dtype == layer.moving_variance.dtype == "float32"
    np.testing.assert_allclose(layer.moving_mean, mean, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(layer.moving_variance, variance, rtol=1e-5)


def on_two_replicas(layer_of, parts, masks=None):
    strategy = runs.strategy_of(2)
    with strategy.scope():
        layer = layer_of()
        layer.build((None, *parts[0].shape[1:]))

    def replica(x, mask):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, training=True, mask=mask)
            loss = tf.reduce_sum(tf.sin(y))
        return y, tape.gradient(loss, x)

    def spread(values):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(values[context.replica_id_in_sync_group])
        )

    arguments = (spread(parts), None if masks is None else spread(masks))
    y, gradient = tf.function(lambda: strategy.run(replica, args=arguments))()
    joined = [np.concatenate(strategy.experimental_local_results(v)) for v in (y, gradient)]
    return layer, *joined


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_synchronized_replicas_of_any_size_equal_one_device(masked, shift):
    x = inputs(8, 5, 3) + np.float32(shift)
    masks = np.random.default_rng(1).random((8, 5)) < 0.7 if masked else None
    parts = [x[:2], x[2:]]
    layer, y, gradient = on_two_replicas(
        lambda: ExtendedBatchNormalization(momentum=0.0, synchronized=True),
        parts,
        (masks[:2], masks[2:]) if masked else None,
    )
    one = ExtendedBatchNormalization(momentum=0.0)
    whole = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(whole)
        expected = one(whole, training=True, mask=masks)
        loss = tf.reduce_sum(tf.sin(expected))
    tolerance = 5e-4 if shift else 1e-5  # float32 numbers near 1000 are 6e-5 apart
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=tolerance)
    np.testing.assert_allclose(gradient, tape.gradient(loss, whole), rtol=1e-3, atol=tolerance)
    _, mean, variance = reference.extended_batch_normalized(
        x, mask=np.repeat(masks[..., None], 3, -1) if masked else None
    )
    np.testing.assert_allclose(numpy_of(layer.moving_mean), mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(numpy_of(layer.moving_variance), variance, rtol=1e-4)


def test_saved_and_loaded_it_is_the_same_also_by_weights_alone_and_exported(tmp_path):
    x = inputs(4, 5, 3)
    model = keras.Sequential([keras.Input((5, 3)), ExtendedBatchNormalization(), ExtendedBatchNormalization(axis=1)])
    for layer in model.layers:
        randomized(layer, x)
    model.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "m.keras")(x), model(x))
    model.save_weights(tmp_path / "m.weights.h5")
    fresh = keras.models.clone_model(model)
    fresh.load_weights(tmp_path / "m.weights.h5")
    np.testing.assert_array_equal(fresh(x), model(x))
    model.export(tmp_path / "saved", verbose=False)
    exported = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(exported.serve(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"axis": 1}, {"center": False}, {"scale": False}], ids=str)
def test_batch_normalization_converted_and_fused_back_computes_the_same(options):
    x = inputs(4, 3, 3)
    plain = randomized(keras.layers.BatchNormalization(epsilon=0.01, name="norm", **options), x)
    extended = ExtendedBatchNormalization.from_batch_normalization(plain)
    np.testing.assert_allclose(extended(x), plain(x), rtol=1e-4, atol=1e-5)
    (fused,) = extended.fused()
    assert type(fused) is keras.layers.BatchNormalization
    assert (fused.name, fused.axis, fused.epsilon) == ("norm", plain.axis, 0.01)
    np.testing.assert_allclose(fused(x), plain(x), rtol=1e-4, atol=1e-5)


def test_it_is_fused_in_the_dtype_policy_it_has():
    x = inputs(4, 3)
    layer = randomized(ExtendedBatchNormalization(dtype="mixed_bfloat16"), x)
    (fused,) = layer.fused()
    assert fused.dtype_policy.name == "mixed_bfloat16"
    np.testing.assert_array_equal(keras.ops.cast(fused(x), "float32"), keras.ops.cast(layer(x), "float32"))


def test_weights_of_batch_normalization_are_not_taken_for_its_own(tmp_path):
    plain = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    plain.save_weights(tmp_path / "m.weights.h5")
    ours = keras.Sequential([keras.Input((3,)), ExtendedBatchNormalization()])
    with pytest.raises(ValueError, match="could not be loaded"):
        ours.load_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match="shape"):
        ours.set_weights(plain.get_weights())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"renorm": True}, "no batch renormalisation"),
        ({"momentum": 1.5}, "`momentum` must be at least 0 and at most 1"),
        ({"epsilon": -1e-3}, "`epsilon` must be at least 0"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ExtendedBatchNormalization(**options)


def test_wrong_inputs_masks_and_layers_are_refused():
    with pytest.raises(ValueError, match="axis of known size"):
        ExtendedBatchNormalization(axis=3).build((None, 4, 4))
    with pytest.raises(ValueError, match="axis of known size"):
        ExtendedBatchNormalization().build((None, 4, None))
    with pytest.raises(ValueError, match="one dimension less"):
        ExtendedBatchNormalization()(inputs(4, 3), training=True, mask=np.ones((4, 3), bool))
    with pytest.raises(ValueError, match="no weights yet"):
        ExtendedBatchNormalization().fused()
    with pytest.raises(ValueError, match="no weights yet"):
        ExtendedBatchNormalization.from_batch_normalization(keras.layers.BatchNormalization())
    with pytest.raises(TypeError, match=r"Expected a keras\.layers\.BatchNormalization"):
        ExtendedBatchNormalization.from_batch_normalization(keras.layers.LayerNormalization())


def network(**options):
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3, use_bias=False),
            ExtendedBatchNormalization(**options),
            keras.layers.Flatten(),
            keras.layers.Dense(3, dtype="float32"),
        ]
    )


@pytest.mark.parametrize(("mode", "replicas"), [("graph", 1), ("xla", 1), ("eager", 2), ("graph", 2)])
def test_training_with_synchronized_statistics_is_the_same_everywhere(mode, replicas):
    arguments = {"network": lambda: network(synchronized=True), "epochs": 1}
    plain = runs.train(lambda: keras.optimizers.SGD(0.1), "eager", **arguments)
    other = runs.train(lambda: keras.optimizers.SGD(0.1), mode, replicas, **arguments)
    runs.assert_same_weights(plain, other, 2e-5)


def test_jit_trains_replicas_that_keep_their_own_statistics_and_refuses_synchronized_ones():
    run = runs.train(lambda: keras.optimizers.SGD(0.1), "xla", 2, network=network, epochs=1)
    assert np.isfinite(run.losses).all()
    with runs.strategy_of(2).scope():
        model = network(synchronized=True)
        with pytest.raises(ValueError, match="synchronized=True"):
            kt.jit(model)
