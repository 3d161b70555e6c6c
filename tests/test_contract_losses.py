"""What every loss of the catalogue keeps to; a new record is tested by being there."""

import dataclasses
import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from keras_tricks import catalog
from tests import runs, zoo

LOSSES = [t for t in catalog.TRICKS if t.kind == "loss"]
LABELS = np.array([0, 2, 1, 1, 0, 2])
LOGITS = np.random.default_rng(0).normal(size=(6, 3)).astype("float32")
WITH_COUNTS = [t for t in LOSSES if hasattr(t.make(), "class_counts")]


@pytest.fixture(params=LOSSES, ids=lambda t: t.name)
def trick(request):
    return request.param


# Losses differ in their formula only: one is trained with, the others are compared as functions, and trained slowly.
@pytest.fixture(params=runs.slow_where(lambda loss: loss is not kt.losses.ClassBalanced, LOSSES), ids=lambda t: t.name)
def trained(request):
    return request.param


def gradient(loss, labels, logits, **arguments):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        value = loss(labels, logits, **arguments)
    return tape.gradient(value, logits).numpy()


def test_config_round_trip(trick):
    loss = trick.make(reduction="sum", name="mine")
    config = json.loads(json.dumps(keras.saving.serialize_keras_object(loss)))
    again = keras.saving.deserialize_keras_object(config)
    assert again.get_config() == loss.get_config()
    assert again.name == "mine"
    np.testing.assert_array_equal(again(LABELS, LOGITS), loss(LABELS, LOGITS))


def test_labels_of_any_form_give_the_same(trick):
    loss = trick.make(reduction=None)
    plain = loss(LABELS, LOGITS)
    for labels in (LABELS[:, None], LABELS.astype("uint8"), LABELS.astype("float32"), np.eye(3)[LABELS]):
        np.testing.assert_allclose(loss(labels, LOGITS), plain, rtol=1e-5)


def test_sequences_and_images_are_examples_at_each_place(trick):
    loss = trick.make(reduction=None)
    plain = loss(LABELS, LOGITS)
    for shape in ((2, 3), (3, 2), (2, 1, 3)):
        logits = LOGITS.reshape(*shape, 3)
        for labels in (LABELS.reshape(shape), LABELS.reshape(*shape, 1), np.eye(3)[LABELS].reshape(*shape, 3)):
            np.testing.assert_allclose(loss(labels, logits), np.reshape(plain, shape), rtol=1e-5)


def test_the_gradient_is_that_of_finite_differences(trick):
    keras.config.set_floatx("float64")
    try:
        loss, logits = trick.make(), LOGITS.astype("float64")
        mixed = np.random.default_rng(1).dirichlet(np.ones(3), 6)
        for labels in (LABELS, np.eye(3)[LABELS], mixed):
            differences = np.zeros_like(logits)
            for place in np.ndindex(*logits.shape):
                step = np.zeros_like(logits)
                step[place] = 1e-6
                differences[place] = (loss(labels, logits + step) - loss(labels, logits - step)).numpy() / 2e-6
            np.testing.assert_allclose(gradient(loss, labels, logits), differences, rtol=1e-6, atol=1e-9)
    finally:
        keras.config.set_floatx("float32")


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_extreme_logits_have_a_finite_loss_and_gradient(trick, dtype):
    logits = tf.cast(1e4 * np.array([[1.0, -1, 0], [-1, 1, 0], [0, 0, 0], [1, 1, 1], [-1, -1, -1], [1, 1, -1]]), dtype)
    for labels in (LABELS, np.eye(3)[LABELS]):
        assert np.isfinite(trick.make()(labels, logits))
        assert np.isfinite(gradient(trick.make(), labels, logits).astype("float32")).all()


def test_logits_in_half_precision_are_computed_with_in_float32(trick):
    half = LOGITS.astype("float16")
    loss = trick.make()(LABELS, half)
    assert loss.dtype == "float32"
    np.testing.assert_array_equal(loss, trick.make()(LABELS, half.astype("float32")))


def test_labels_above_the_whole_numbers_of_half_precision_are_told_apart():
    keras.config.set_floatx("float16")
    try:
        loss = kt.losses.BalancedSoftmax([1] * 4096)
        logits = np.zeros((2, 4096), "float32")
        logits[0, 4095] = logits[1, 4093] = 50.0
        assert float(loss(np.array([4095, 4093]), logits)) < 1e-6
    finally:
        keras.config.set_floatx("float32")


def test_sample_weights_and_reductions_are_those_of_keras(trick):
    each, weights = trick.make(reduction=None)(LABELS, LOGITS).numpy(), np.arange(6.0)
    for reduction, expected in (
        ("sum_over_batch_size", (each * weights).mean()),
        ("sum", (each * weights).sum()),
        ("mean_with_sample_weight", (each * weights).sum() / weights.sum()),
    ):
        loss = trick.make(reduction=reduction)
        for w in (weights, weights[:, None], weights.tolist()):
            np.testing.assert_allclose(loss(LABELS, LOGITS, sample_weight=w), expected, rtol=1e-5)


def test_the_weight_of_a_sequence_is_that_of_all_its_places(trick):
    # As many sequences as places: Keras' own losses take the weight of the sequence for that of the place.
    loss, labels = trick.make(), np.resize(LABELS, (3, 3))
    logits = np.random.default_rng(1).normal(size=(3, 3, 3)).astype("float32")
    each = trick.make(reduction=None)(labels, logits).numpy()
    np.testing.assert_allclose(loss(labels, logits, sample_weight=[1, 0, 0]), each[0].sum() / 9, rtol=1e-5)
    places = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    np.testing.assert_allclose(loss(labels, logits, sample_weight=places), (each * places).sum() / 9, rtol=1e-5)


def test_masked_places_do_not_count(trick):
    logits = keras.layers.Masking()(np.concatenate([LOGITS.reshape(2, 3, 3), np.zeros((2, 2, 3))], axis=1))
    labels = np.concatenate([LABELS.reshape(2, 3), np.zeros((2, 2), int)], axis=1)
    np.testing.assert_allclose(trick.make()(labels, logits), trick.make()(LABELS, LOGITS), rtol=1e-5)


def test_a_label_that_has_no_weight_may_be_anything(trick):
    weights = np.array([1, 0, 1, 0, 1, 1])
    right = trick.make()(LABELS, LOGITS, sample_weight=weights)
    padded = np.where(weights == 0, [0, -1, 0, 99, 0, 0], LABELS)
    rows = np.eye(3)[LABELS] * weights[:, None]
    logits = keras.layers.Masking(mask_value=7.0)(np.where(weights[:, None] == 0, 7.0, LOGITS).reshape(2, 3, 3))
    for labels in (padded, rows):
        compiled = tf.function(lambda loss, labels=labels: loss(labels, LOGITS, sample_weight=weights))
        for loss in (trick.make()(labels, LOGITS, sample_weight=weights), compiled(trick.make())):
            np.testing.assert_allclose(loss, right, rtol=1e-5)
        masked = trick.make(reduction="sum")(np.reshape(labels, (2, 3, *labels.shape[1:])), logits)
        np.testing.assert_allclose(masked, 6 * right, rtol=1e-5)


def test_labels_that_are_not_classes_are_an_error_in_eager_mode(trick):
    for labels, message in (
        (np.array([0, 3, 1, 1, 0, 2]), r"whole numbers in 0\.\.2.*1 others, from 3 to 3"),
        (np.array([0, -1, 1, 1, 0, 2]), r"from -1 to -1.*`sample_weight` of 0"),
        (np.array([0, 0.5, 1, 1, 0, 2]), "whole numbers"),
        (np.ones((6, 3)), "sum of 1.*several classes at once"),
        (np.zeros((6, 3)), "sum of 1.*A row of zeros"),
        (np.zeros((6, 2)), r"integers of shape \(6,\) or \(6, 1\), or class probabilities of shape \(6, 3\)"),
        (np.zeros((6, 3, 1)), r"integers of shape \(6,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            trick.make()(labels, LOGITS)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_in_a_compiled_step_their_loss_is_nan_and_the_others_go_on(trick, jit_compile):
    loss = trick.make(reduction=None)

    @tf.function(jit_compile=jit_compile)
    def compiled(labels, logits):
        with tf.GradientTape() as tape:
            tape.watch(logits)
            losses = loss(labels, logits)
        return losses, tape.gradient(losses, logits)

    rows = np.eye(3)[[0, 0, 1, 0, 0, 2]] * [[1], [2], [1], [0], [1], [1]]
    assert np.isnan(compiled(tf.constant(rows), tf.constant(LOGITS))[0]).nonzero()[0].tolist() == [1, 3]
    losses, gradients = (x.numpy() for x in compiled(tf.constant([0, 3, 1, -1, 0, 2]), tf.constant(LOGITS)))
    right, right_gradients = (x.numpy() for x in compiled(tf.constant(LABELS, tf.int32), tf.constant(LOGITS)))
    wrong = [1, 3]
    assert np.isnan(losses[wrong]).all()
    assert (gradients[wrong] == 0).all()
    np.testing.assert_allclose(right, loss(LABELS, LOGITS), rtol=1e-5)
    np.testing.assert_allclose(right_gradients, gradient(loss, LABELS, LOGITS), rtol=1e-4, atol=1e-6)
    for x, y in ((losses, right), (gradients, right_gradients)):
        np.testing.assert_allclose(np.delete(x, wrong, 0), np.delete(y, wrong, 0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("counted", WITH_COUNTS, ids=lambda t: t.name)
@pytest.mark.parametrize("counts", [[5, 0, 1], [0, 0, 7], [1, 1, 1], [10**12, 1, 0]])
def test_empty_and_single_classes_stay_finite(counted, counts):
    loss = counted.object(counts)
    assert np.isfinite(loss(LABELS, LOGITS))
    assert np.isfinite(gradient(loss, LABELS, LOGITS)).all()


@pytest.mark.parametrize("counted", WITH_COUNTS, ids=lambda t: t.name)
def test_a_model_of_one_class_has_a_finite_loss(counted):
    for labels in (np.zeros(4), np.zeros((4, 1))):
        assert np.isfinite(counted.object([9])(labels, np.ones((4, 1), "float32")))


@pytest.mark.parametrize("counted", WITH_COUNTS, ids=lambda t: t.name)
def test_counts_are_a_list_an_array_or_the_dataset(counted):
    labels = np.repeat([0, 1, 2], [7, 3, 1])
    dataset = tf.data.Dataset.from_tensor_slices((np.zeros(11), labels)).batch(4)
    losses = [counted.object(counts)(LABELS, LOGITS) for counts in ([7, 3, 1], np.bincount(labels), dataset)]
    assert losses[0] == losses[1] == losses[2]


def test_the_counts_must_be_those_of_the_models_classes(trick):
    with pytest.raises(ValueError, match=r"logits .*shape \(6, 2\)"):
        trick.make()(LABELS % 2, LOGITS[:, :2])
    with pytest.raises(ValueError, match=r"logits of shape \(batch, \.\.\., classes\)"):
        trick.make()(LABELS, LOGITS[:, 0])


def sgd(loss=None):
    # LDAM's gradients are as much larger as its scale, which would show how a rectifier rounds in bfloat16.
    return keras.optimizers.SGD(0.05 / getattr(loss, "scale", 1))


@functools.cache
def plain(trick):
    """One epoch on one device, as a graph, in float32."""
    return runs.train(lambda: sgd(trick.make()), loss=trick.make, epochs=1)


def test_the_result_is_the_same_eager_compiled_under_xla_and_on_two_replicas(trained):
    for mode, replicas in (("eager", 1), ("xla", 1), ("graph", 2)):  # XLA on two: the next test
        other = runs.train(lambda: sgd(trained.make()), mode, replicas, loss=trained.make, epochs=1)
        runs.assert_same_weights(plain(trained), other, 2e-5)
        assert other.losses == pytest.approx(plain(trained).losses, rel=1e-5)


def test_mixed_precision_on_two_replicas_under_xla(trained, mixed_precision):
    # A scale with which no step overflows, since such a step is left out.
    other = runs.train(
        lambda: kt.LossScaleOptimizer(sgd(trained.make()), initial_scale=2**10),
        "xla",
        2,
        mixed_precision,
        loss=trained.make,
        epochs=1,
    )
    runs.assert_same_weights(plain(trained), other, runs.tolerance(mixed_precision))


def test_accumulated_small_batches_equal_the_large_batch(trained):
    large = runs.train(lambda: kt.LAMB(0.01), batch=16, loss=trained.make, epochs=1)
    small = runs.train(
        lambda: kt.GradientAccumulation(kt.LAMB(0.01), 2), "graph", 2, batch=8, loss=trained.make, epochs=1
    )
    runs.assert_same_weights(large, small, 5e-5)


def test_saved_loaded_and_continued_equals_uninterrupted(trained, tmp_path):
    run = runs.train(kt.LAMB, loss=trained.make, epochs=1)
    run.model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.loss.get_config() == run.model.loss.get_config()
    x, y = runs.images()
    ends = [model.fit(x, y, batch_size=8, shuffle=False, verbose=0).history["loss"] for model in (run.model, loaded)]
    assert ends[0] == ends[1]


def test_a_loss_that_was_made_outside_of_the_strategy_works_in_it(trained):
    loss = trained.make()
    other = runs.train(lambda: sgd(loss), "graph", 2, loss=lambda: loss, epochs=1)
    runs.assert_same_weights(plain(trained), other, 2e-5)


def with_loss(network, loss, padding=None):
    """A network of the zoo with another loss, whose padded labels, of weight 0, are `padding`."""

    def data():
        x, y, *w = network.data()
        return (x, np.where(w[0] > 0, y, padding), *w) if w and padding is not None else (x, y, *w)

    return dataclasses.replace(network, loss=loss, data=data)


TOKENS = [zoo.NETWORKS[name] for name in ("token_classifier", "gru_tagger", "causal_transformer")]
CLASSIFIERS = zoo.select(zoo.CLASSIFIER, without=[zoo.LARGE]) + TOKENS
CROSSENTROPY = kt.losses.SparseFocal(gamma=0)  # the same as Keras' own, by another way


@pytest.mark.parametrize("network", [n if n in TOKENS[:2] else runs.slow(n) for n in CLASSIFIERS], ids=str)
def test_real_networks_train_as_with_keras_crossentropy(network):
    plain = zoo.train(network, lambda: keras.optimizers.SGD(0.05))
    other = zoo.train(with_loss(network, CROSSENTROPY, padding=-1), lambda: keras.optimizers.SGD(0.05))
    runs.assert_same_weights(plain, other, 1e-6)
    assert other.losses == pytest.approx(plain.losses, rel=1e-6)


@pytest.mark.parametrize(
    ("mode", "replicas", "precision"),
    [("graph", 2, "float32"), runs.slow("xla", 1, "float32"), runs.slow("xla", 2, "mixed_bfloat16")],
)
@pytest.mark.parametrize(
    "network", [TOKENS[1], *map(runs.slow, (TOKENS[0], zoo.NETWORKS["bidirectional_lstm"]))], ids=str
)
def test_real_networks_on_replicas_whose_last_part_is_empty(network, mode, replicas, precision):
    # 9 examples in batches of 4: the last batch has none for the second replica.
    def trained(network):
        x, y, *w = keras.tree.map_structure(lambda a: a[:9], list(network.data()))
        data = {"x": x, "y": y, "batch_size": 4, **({"sample_weight": w[0]} if w else {})}
        return zoo.train(network, lambda: keras.optimizers.SGD(0.05), mode, replicas, precision, data=data)

    plain, other = trained(network), trained(with_loss(network, CROSSENTROPY, padding=-1))
    runs.assert_same_weights(plain, other, runs.tolerance(precision))
    assert np.isfinite(other.losses).all()


@pytest.mark.parametrize("form", zoo.DATA)
def test_any_form_of_data_gives_the_same(form):
    network = with_loss(zoo.NETWORKS["reused_layer"], kt.losses.LogitAdjusted([5, 3, 2]))
    plain = zoo.train(network, lambda: keras.optimizers.SGD(0.05))
    other = zoo.train(network, lambda: keras.optimizers.SGD(0.05), data=zoo.DATA[form](network))
    runs.assert_same_weights(plain, other, 1e-6)


def test_one_of_two_outputs_has_a_loss_of_ours():
    network = zoo.NETWORKS["two_inputs_two_outputs"]
    plain = zoo.train(network, lambda: keras.optimizers.SGD(0.05))
    other = with_loss(network, {**network.loss, "label": CROSSENTROPY})
    runs.assert_same_weights(plain, zoo.train(other, lambda: keras.optimizers.SGD(0.05)), 1e-6)
