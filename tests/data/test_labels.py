"""Labels in every form in which data sets have them, in all transformations that take labels."""

import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from keras_tricks._labels import labels as module

LABELS = np.repeat(np.arange(3), [20, 12, 4])
IMAGES = np.arange(36, dtype="float32")[:, None]


def source(labels):
    return tf.data.Dataset.from_tensor_slices((IMAGES, labels))


@pytest.mark.parametrize(
    "labels",
    [LABELS[:, None].astype("uint8"), LABELS.astype("float32"), LABELS[:, None].astype("float64")],
    ids=["column", "float", "float-column"],
)
def test_a_column_or_whole_floats_are_labels_as_any(labels):
    data = source(labels)
    for dataset in (data, data.batch(7), data.filter(lambda x, y: True)):
        assert kt.data.class_counts(dataset).tolist() == [20, 12, 4]
    tail = data.apply(kt.data.make_long_tailed(3, 10))
    assert kt.data.class_counts(tail).tolist() == [20, 6, 2]
    assert tail.element_spec == data.element_spec
    balanced = data.apply(kt.data.class_balanced([20, 12, 4]))
    assert kt.data.class_counts(balanced).tolist() == [12, 12, 12]
    mixed = next(iter(data.batch(36).apply(kt.data.remix([20, 12, 4], seed=0))))[1]
    expected = next(iter(source(LABELS).batch(36).apply(kt.data.remix([20, 12, 4], seed=0))))[1]
    np.testing.assert_array_equal(mixed, expected)


def test_weights_and_padding_are_left_out_of_the_count():
    weighted = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS, np.ones(36)))
    assert kt.data.class_counts(weighted).tolist() == [20, 12, 4]
    tokens = source(np.concatenate([LABELS[:, None], np.full((36, 2), -1)], axis=1))
    assert kt.data.class_counts(tokens, label=lambda x, y: y[y >= 0]).tolist() == [20, 12, 4]
    with pytest.raises(ValueError, match=r"label -1.*`label=lambda x, y: y\[y >= 0\]`"):
        kt.data.class_counts(tokens)


def test_a_single_class_is_counted_and_left_as_it_is():
    data = source(np.zeros(36, int))
    assert kt.data.class_counts(data).tolist() == [36]
    assert len(list(data.apply(kt.data.class_balanced([36])))) == 36


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": LABELS, "b": LABELS}, r'several labels: choose one, as `label=lambda x, y: y\["a"\]`'),
        ((LABELS, LABELS), r"several labels: choose one, as `label=lambda x, y: y\[0\]`"),
        (LABELS.astype(str), "Map strings to them first.*StringLookup"),
        (np.eye(3)[LABELS], r"one-hot labels take `label=lambda x, y: tf\.argmax\(y, -1\)`"),
        (np.eye(3, dtype=int)[LABELS], r"one-hot.*`label=lambda x, y: tf\.argmax\(y, -1\)`"),
        (LABELS + 0.5, "Labels must be whole numbers"),
    ],
    ids=["dict", "tuple", "strings", "one-hot", "one-hot integers", "fractions"],
)
def test_other_labels_are_refused_with_what_to_do(labels, message):
    data = source(labels)
    for use in (
        kt.data.class_counts,
        lambda d: list(d.apply(kt.data.make_long_tailed(3, 2))),
        lambda d: list(d.apply(kt.data.class_balanced([20, 12, 4]))),
    ):
        with pytest.raises((TypeError, ValueError, tf.errors.InvalidArgumentError), match=message):
            use(data)


def test_sparse_labels_are_refused_since_they_leave_out_class_0():
    data = source(tf.sparse.from_dense(LABELS[:, None]))
    with pytest.raises(TypeError, match=r"leaves out class 0: take `label=lambda x, y: tf\.sparse\.to_dense\(y\)`"):
        kt.data.class_counts(data)
    dense = kt.data.class_counts(data, label=lambda x, y: tf.sparse.to_dense(y))
    assert dense.tolist() == [20, 12, 4]


def test_sequences_with_a_single_one_can_be_counted_too():
    starts = np.eye(3, dtype=int)[LABELS]
    assert kt.data.class_counts(source(starts), label=lambda x, y: y[..., None]).tolist() == [72, 36]


def test_counting_without_a_known_end_says_so_after_a_while(monkeypatch, caplog):
    monkeypatch.setattr(module, "_PATIENCE", -1)
    unknown = source(LABELS).filter(lambda x, y: True)
    assert kt.data.class_counts(unknown).tolist() == [20, 12, 4]
    assert "36 elements are read, and no end is known" in caplog.text
    caplog.clear()
    kt.data.class_counts(source(LABELS))
    assert not caplog.text


@pytest.mark.parametrize("counts", [np.eye(3)[LABELS].sum(axis=0), np.float32([20, 12, 4]), [20.0, 12.0, 4.0]], ids=str)
def test_counts_that_are_whole_numbers_in_floating_point_are_counts(counts):
    assert kt.losses.BalancedSoftmax(counts).class_counts.tolist() == [20, 12, 4]
    assert kt.losses.BalancedSoftmax(tf.constant(counts)).get_config()["class_counts"] == [20, 12, 4]
    assert kt.metrics.ShotAccuracy(counts, "few").class_counts == (20, 12, 4)
    assert len(list(source(LABELS).apply(kt.data.class_balanced(counts)))) == 36


@pytest.mark.parametrize(
    "counts", [[20.0, 2.5], [20.0, np.nan], [20.0, np.inf], [20.0, -1.0], [1e300, 1.0], [True, False], ["20"], 20, []]
)
def test_what_is_no_count_is_refused(counts):
    for use in (
        kt.losses.BalancedSoftmax,
        kt.data.class_balanced,
        kt.data.remix,
        lambda c: kt.metrics.ShotAccuracy(c, "few"),
    ):
        with pytest.raises(ValueError, match="`class_counts` must be whole numbers, one a class"):
            use(counts)
