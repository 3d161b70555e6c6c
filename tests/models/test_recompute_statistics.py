import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from keras_tricks.models import recompute_statistics
from tests import runs, zoo


def statistics_of(layer):
    return [keras.ops.convert_to_numpy(v).astype("float64") for v in (layer.moving_mean, layer.moving_variance)]


def assert_close(a, b, tolerance=1e-6):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def normalization_of(model):
    """All layers of batch normalisation in a model, however deep."""
    return [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]


@pytest.mark.parametrize(
    "network",
    [
        lambda: [keras.layers.BatchNormalization()],
        lambda: [kt.layers.ExtendedBatchNormalization()],
        lambda: [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(3)],
        lambda: [keras.Sequential([kt.layers.ReZero(keras.layers.BatchNormalization(), "ones")])],
        lambda: [kt.layers.Recompute(keras.layers.BatchNormalization())],
    ],
    ids=["plain", "extended", "in-between", "nested", "recomputed"],
)
def test_statistics_are_those_of_all_the_data_and_not_the_mean_of_batches(network, replicas):
    random = np.random.default_rng(0)
    # Batches of unequal size, far apart, next to a large mean: means of variances, and E[x²] - E[x]², would be wrong.
    batches = [1000 + 3 * i + random.normal(size=(n, 4)).astype("float32") for i, n in enumerate((5, 8, 3))]
    with runs.strategy_of(replicas).scope():
        model = keras.Sequential([keras.Input((4,)), *network()])
    (layer,) = normalization_of(model)
    others = [w.numpy() for w in model.weights if w is not layer.moving_mean and w is not layer.moving_variance]
    assert recompute_statistics(model, batches) is None
    if len(model.layers) > 1:
        batches = [model.layers[0](b).numpy() for b in batches]
    everything = np.concatenate(batches).astype("float64")
    variance = everything.var(axis=0)
    if isinstance(layer, kt.layers.ExtendedBatchNormalization):
        variance = variance.mean()
    assert_close(statistics_of(layer), [everything.mean(axis=0), variance], 1e-5)
    for v in (layer.moving_mean, layer.moving_variance):
        parts = [part.numpy() for part in model.distribute_strategy.experimental_local_results(v.value)]
        assert len(parts) == replicas
        np.testing.assert_array_equal(parts[0], parts[-1])
    kept = [w.numpy() for w in model.weights if w is not layer.moving_mean and w is not layer.moving_variance]
    for a, b in zip(others, kept, strict=True):
        np.testing.assert_array_equal(a, b)
    assert "call" not in vars(layer)


def test_statistics_of_images_of_masked_sequences_and_of_branches():
    x, _ = runs.images(channels=2)
    model = keras.Sequential([keras.Input((6, 6, 2)), keras.layers.BatchNormalization(axis=1)])
    recompute_statistics(model, [x[:20], x[20:]])
    assert_close(statistics_of(model.layers[0]), [x.mean(axis=(0, 2, 3)), x.var(axis=(0, 2, 3))])

    sequences = np.random.default_rng(0).normal(size=(6, 5, 3)).astype("float32")
    sequences[::2, 3:] = 0
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.Masking(), keras.layers.BatchNormalization()])
    recompute_statistics(model, [sequences[:2], sequences[2:]])
    kept = sequences[(sequences != 0).any(axis=-1)]
    assert_close(statistics_of(model.layers[1]), [kept.mean(axis=0), kept.var(axis=0)])

    model = keras.Sequential([keras.Input((6, 6, 2)), kt.layers.ACConv2D(3, 3)])
    before = [statistics_of(layer) for layer in normalization_of(model)]
    assert len(before) == 3
    recompute_statistics(model, [x])
    for layer, (mean, variance) in zip(normalization_of(model), before, strict=True):
        assert (statistics_of(layer)[0] != mean).all()
        assert (statistics_of(layer)[1] != variance).all()


def test_a_model_whose_weights_were_averaged_by_hand_predicts_again_as_it_trains():
    x, y = runs.images(64)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            keras.layers.Conv2D(4, 3, use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, y, verbose=0)
    first = model.get_weights()
    model.fit(x, y, epochs=3, verbose=0)
    model.set_weights([(a + b) / 2 for a, b in zip(first, model.get_weights(), strict=True)])
    before = model.predict(x, verbose=0)
    recompute_statistics(model, tf.data.Dataset.from_tensor_slices((x, y)).batch(64))
    training = keras.ops.convert_to_numpy(model(x, training=True))
    assert np.abs(before - training).max() > 0.01
    np.testing.assert_allclose(model.predict(x, verbose=0), training, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("residual_cnn", (kt.jit, kt.recompute)),
        runs.slow("separable_cnn", (kt.jit, kt.recompute)),
        runs.slow("channels_first", (kt.jit,)),
        ("backbone_and_head", (kt.jit,)),
    ],
)
def test_on_real_networks_also_once_another_trick_has_changed_them(name, changes):
    network = zoo.NETWORKS[name]
    x, expected = zoo.arrays(network)["x"], None
    for change in (lambda model: model, *changes):
        model = change(network.compiled(lambda: keras.optimizers.SGD(0.1)))
        before = [statistics_of(layer) for layer in normalization_of(model)]
        recompute_statistics(model, [x])
        after = [statistics_of(layer) for layer in normalization_of(model)]
        assert all((a[0] != b[0]).any() for a, b in zip(after, before, strict=True))
        expected = after if expected is None else expected
        for a, b in zip(after, expected, strict=True):
            assert_close(a, b, 1e-5)


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_in_mixed_precision_they_are_those_of_what_arrives_and_are_saved_in_full(precision, tmp_path):
    keras.config.set_dtype_policy(precision)
    x = 3 + np.random.default_rng(0).normal(size=(300, 4)).astype("float32")
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4), keras.layers.BatchNormalization()])
    recompute_statistics(model, [x[:200], x[200:]])
    arrives = keras.ops.convert_to_numpy(keras.ops.cast(model.layers[0](x), "float32")).astype("float64")
    assert_close(statistics_of(model.layers[1]), [arrives.mean(axis=0), arrives.var(axis=0)], 1e-5)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert_close(statistics_of(loaded.layers[1]), statistics_of(model.layers[1]), 0)


def test_frozen_layers_keep_their_statistics():
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.BatchNormalization(trainable=False), keras.layers.BatchNormalization()]
    )
    recompute_statistics(model, [np.full((3, 4), 2.0)])
    assert_close(statistics_of(model.layers[0]), [np.zeros(4), np.ones(4)])
    assert (statistics_of(model.layers[1])[1] == 0).all()


def test_batches_may_come_from_a_generator_a_pydataset_or_the_start_of_what_never_ends():
    class Data(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, i):
            return (np.full((3, 4), 2.0 + 2 * i), np.zeros(3))

    endless = tf.data.Dataset.from_tensor_slices(np.array([[2.0] * 4, [4.0] * 4])).batch(1).repeat()
    for data, steps in ((Data(), None), ((Data()[i] for i in range(2)), None), (endless, 2)):
        model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
        recompute_statistics(model, data, steps=steps)
        assert_close(statistics_of(model.layers[0]), [np.full(4, 3.0), np.ones(4)])


def test_seeds_and_the_state_of_training_stay_as_they_are():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dropout(0.5, seed=1), keras.layers.BatchNormalization()])
    seed = model.layers[0].seed_generator.state.numpy()
    recompute_statistics(model, [np.ones((3, 4))])
    np.testing.assert_array_equal(model.layers[0].seed_generator.state.numpy(), seed)
    with pytest.raises(Exception, match="shape"):
        recompute_statistics(model, [np.ones((3, 4)), np.ones((3, 5))])
    assert "call" not in vars(model.layers[1])
    np.testing.assert_array_equal(model.layers[0].seed_generator.state.numpy(), seed)


def test_what_it_cannot_do_is_refused():
    model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    with pytest.raises(TypeError, match=r"expects a keras.Model. Received: 3"):
        recompute_statistics(3, [])
    with pytest.raises(ValueError, match="`data` gave no batches"):
        recompute_statistics(model, [])
    with pytest.raises(ValueError, match="`data` must give batches"):
        recompute_statistics(model, np.ones((3, 4)))
    with pytest.raises(ValueError, match="`data` never ends"):
        recompute_statistics(model, tf.data.Dataset.from_tensors(np.ones((3, 4))).repeat())
    with pytest.raises(ValueError, match="no layer of model 'plain' has statistics"):
        recompute_statistics(keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)], name="plain"), [])
    model.trainable = False
    with pytest.raises(ValueError, match="are frozen: set `trainable=True` first"):
        recompute_statistics(model, [np.ones((3, 4))])
    with pytest.raises(ValueError, match="is not built"):
        recompute_statistics(keras.Sequential([keras.layers.BatchNormalization()]), [np.ones((3, 4))])
    with pytest.raises(ValueError, match="`steps`"):
        recompute_statistics(model, [np.ones((3, 4))], steps=0)


@pytest.mark.slow
def test_on_jax_it_gives_the_same():
    code = """
        import json, keras, numpy as np, keras_tricks as kt
        x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32") * 3 + 7
        model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(2)])
        kt.models.recompute_statistics(model, [x[:5], x[5:]])
        print(json.dumps([np.asarray(w).tolist() for w in model.get_weights()[2:4]]))
        """
    x = np.random.default_rng(0).normal(size=(12, 4)).astype("float32") * 3 + 7
    assert_close([np.array(w) for w in json.loads(runs.on_jax(code))], [x.mean(axis=0), x.var(axis=0)], 1e-5)
