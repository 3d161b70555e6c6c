import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.ops import convert_to_numpy as numpy_of
from sklearn.metrics import balanced_accuracy_score

import keras_tricks as kt


def examples(shape=(64,), classes=4, seed=0):
    """Labels of a long-tailed set, and logits that often have them right."""
    random = np.random.default_rng(seed)
    labels = np.minimum(random.geometric(0.5, shape) - 1, classes - 1)
    return labels, (random.normal(size=(*shape, classes)) + 2 * np.eye(classes)[labels]).astype("float32")


def score(labels, logits, weights=None):
    flat = None if weights is None else np.broadcast_to(weights, labels.shape).ravel()
    with warnings.catch_warnings(action="ignore"):  # for predicted classes that do not occur
        return balanced_accuracy_score(labels.ravel(), logits.argmax(-1).ravel(), sample_weight=flat)


def value(*batches, classes=4, **options):
    metric = kt.metrics.BalancedAccuracy(classes, **options)
    for batch in batches:
        metric.update_state(*batch)
    return float(metric.result())


def count(metric):
    """Everything it has counted, as a float64."""
    return numpy_of(metric.seen).astype("float64").sum()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.booleans())
def test_it_equals_scikit_learn_over_several_batches(seed, size, weighted):
    labels, logits = examples((size,), seed=seed)
    weights = np.random.default_rng(seed).uniform(0.1, 3, size) if weighted else None
    middle = size // 2
    parts = [slice(middle), slice(middle, None)]
    batches = [(labels[p], logits[p], None if weights is None else weights[p]) for p in parts]
    assert value(*batches) == pytest.approx(score(labels, logits, weights), rel=1e-5)


def test_classes_that_do_not_occur_are_left_out():
    labels, logits = np.array([0, 0, 2]), np.eye(4)[[0, 1, 2]].astype("float32")
    assert value((labels, logits)) == pytest.approx((0.5 + 1) / 2)


@pytest.mark.parametrize("shape", [(6,), (6, 5), (6, 4, 3)], ids=str)
def test_labels_and_weights_of_every_form_count_the_same(shape):
    labels, logits = examples(shape)
    weights = np.random.default_rng(1).uniform(0.1, 2, (6,)).astype("float32")  # of whole sequences and images
    spread = weights.reshape(6, *[1] * (len(shape) - 1))
    expected = pytest.approx(score(labels, logits, spread), rel=1e-5)
    for y in (labels, labels[..., None], labels.astype("float32"), labels.astype("uint8"), np.eye(4)[labels]):
        assert value((y, logits, weights)) == expected
    for w in (spread, weights[:, None], np.broadcast_to(spread, shape)):
        if w.ndim <= len(shape) + 1:
            assert value((labels, logits, w)) == expected


def test_soft_labels_count_as_the_class_with_the_largest_share():
    labels, logits = examples()
    assert value((0.8 * np.eye(4)[labels] + 0.05, logits)) == value((labels, logits))


def test_masked_positions_do_not_count_whatever_their_label_is():
    labels, _ = examples((8, 5), 3)
    x = np.random.default_rng(0).integers(0, 6, (8, 5))  # 0 is padding
    labels = np.where(x == 0, -1, labels)
    model = keras.Sequential([keras.layers.Embedding(6, 4, mask_zero=True), keras.layers.Dense(3)])
    model.compile(loss=lambda y, z: keras.ops.mean(z, -1), weighted_metrics=[kt.metrics.BalancedAccuracy(3)])
    found = model.evaluate(x, labels, batch_size=4, verbose=0, return_dict=True)["balanced_accuracy"]
    counted = labels >= 0
    assert found == pytest.approx(score(labels[counted], model.predict(x, verbose=0)[counted]))


def test_a_mask_of_the_first_axes_and_of_a_single_example_counts():
    class Masked(keras.layers.Layer):
        def compute_mask(self, inputs, previous_mask=None):
            return keras.ops.any(keras.ops.not_equal(inputs, 0), axis=tuple(range(2, len(inputs.shape))))

        def call(self, inputs):
            return 1.0 * inputs

    labels, logits = examples((4, 5, 3))
    logits[:, 3:] = 0
    assert value((labels, Masked()(logits))) == pytest.approx(score(labels[:, :3], logits[:, :3]))
    logits[0, 0] = 0
    metric = kt.metrics.BalancedAccuracy(4)
    metric.update_state(labels[:1, :1, 0], Masked()(logits[:1, :1, 0]))
    assert count(metric) == 0


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_it_counts_beyond_what_float32_can(mode):
    # 2^24 + 1 is not a float32. One example at a time goes to the same sum of its class.
    metric = kt.metrics.BalancedAccuracy(2)
    start = np.zeros(metric.seen.shape, "float32")
    start[0, 0] = 2.0**24
    metric.seen.assign(start)
    metric.right.assign(start)

    @tf.function(jit_compile=mode == "xla")
    def step(logits):
        metric.update_state([0], logits)

    for n in range(101):
        step(tf.constant([[float(n % 2 == 0), 0.5]]))
    assert count(metric) == 2 * 2**24 + 101
    assert numpy_of(metric.right).astype("float64").sum() == 2 * 2**24 + 51


def test_one_batch_may_have_more_of_a_class_than_float32_can_count():
    size = 2**24 + 2**20 + 3
    metric = kt.metrics.BalancedAccuracy(2)
    metric.update_state(tf.zeros(size, tf.uint8), tf.broadcast_to(tf.constant([1.0, 0.0], tf.float16), (size, 2)))
    assert count(metric) == size
    assert float(metric.result()) == 1


def test_before_the_first_example_and_after_a_reset_there_is_no_value():
    labels, logits = examples()
    metric = kt.metrics.BalancedAccuracy(4)
    assert np.isnan(float(metric.result()))
    assert 0 < float(metric(labels, logits)) < 1
    metric.reset_state()
    assert np.isnan(float(metric.result()))
    assert np.isnan(value((labels, logits, np.zeros(64))))


@pytest.mark.parametrize(
    ("dtype", "result", "sums"),
    [(None, "float32", "float32"), ("float16", "float16", "float32"), ("float64", "float64", "float64")],
)
def test_sums_are_float32_or_wider(dtype, result, sums):
    metric = kt.metrics.BalancedAccuracy(3, dtype=dtype)
    assert {v.dtype for v in metric.variables} == {sums}
    assert keras.backend.standardize_dtype(metric(*examples((9,), 3)).dtype) == result


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 7], r"whole numbers in 0..3. Received: 1 others, from 7 to 7"),
        ([0, -1], "from -1 to -1"),
        ([0.0, 1.5], "whole numbers"),
        (np.array([0, 2**32]), "whole numbers"),
        ([[0, 0, 0, 0], [1, 0, 0, 0]], "A row of zeros"),
        ([[1, 0, 1, 0], [1, 0, 0, 0]], "several classes at once"),
    ],
    ids=str,
)
def test_labels_that_are_none_of_the_classes_are_refused_unless_they_weigh_nothing(labels, message):
    metric = kt.metrics.BalancedAccuracy(4)
    labels, logits = np.array(labels), np.zeros((2, 4), "float32")
    with pytest.raises(ValueError, match=message):
        metric.update_state(labels, logits)
    bad_first = labels.ndim == 2
    metric.update_state(labels, logits, np.array([0.0, 1.0] if bad_first else [1.0, 0.0]))
    assert float(metric.result()) == 1


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (([0, 1], np.zeros((2, 1))), "has to become two"),
        (([0, 1], np.zeros((2, 5))), "for 4 classes"),
        (([0, 1], np.zeros(4)), "for 4 classes"),
        (([[[0, 1]]], np.zeros((2, 4))), "labels"),
        (([0], np.zeros((2, 4))), "a prediction for each label"),
        (([0, 1], np.zeros((2, 4)), [1.0, 1.0, 1.0]), "`sample_weight` must have the shape of the labels"),
        (([0, 1], np.zeros((2, 4)), np.ones((2, 2))), "`sample_weight` must have the shape of the labels"),
    ],
    ids=str,
)
def test_shapes_that_do_not_fit_are_refused(batch, message):
    with pytest.raises(ValueError, match=message):
        value(batch)


@pytest.mark.parametrize(("num_classes", "error"), [(1, ValueError), (2.5, TypeError), (True, TypeError)])
def test_impossible_numbers_of_classes_are_refused(num_classes, error):
    with pytest.raises(error, match="Received"):
        kt.metrics.BalancedAccuracy(num_classes)
