import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from tests import runs


def balanced(num_classes, size, seed=0):
    labels = np.repeat(np.arange(num_classes), size)
    np.random.default_rng(seed).shuffle(labels)
    return tf.data.Dataset.from_tensor_slices((np.arange(len(labels)), labels))


@pytest.mark.parametrize(
    ("num_classes", "size", "imbalance", "total", "all_counts"),
    [
        (10, 5000, 100, 12_406, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
        runs.slow(100, 500, 50, 12_608, None),
    ],
    ids=["CIFAR-10, 100", "CIFAR-100, 50"],
)
def test_sizes_are_those_of_the_published_sets(num_classes, size, imbalance, total, all_counts):
    dataset = balanced(num_classes, size).apply(kt.data.make_long_tailed(num_classes, imbalance))
    counts = kt.data.class_counts(dataset, num_classes)
    assert int(dataset.cardinality()) == counts.sum() == total
    assert counts[0] == imbalance * counts[-1]
    assert all_counts is None or counts.tolist() == all_counts


def test_a_step_profile_has_a_half_of_full_classes():
    dataset = balanced(5, 40).apply(kt.data.make_long_tailed(5, 10, profile="step"))
    assert kt.data.class_counts(dataset).tolist() == [40, 40, 4, 4, 4]


def test_no_example_is_used_twice_every_pass_is_the_same_and_the_seed_decides():
    def kept(seed):
        dataset = balanced(4, 30).apply(kt.data.make_long_tailed(4, 10, seed=seed))
        passes = [[int(x) for x, _ in dataset.as_numpy_iterator()] for _ in range(2)]
        assert passes[0] == passes[1] == sorted(set(passes[0]))
        return passes[0]

    assert kept(0) == kept(0) != kept(1)


def test_examples_are_drawn_from_the_whole_class():
    drawn = []
    for seed in range(8):
        dataset = balanced(2, 400, seed=1).apply(kt.data.make_long_tailed(2, 4, seed=seed))
        drawn += [int(x) for x, y in dataset.as_numpy_iterator() if y == 1]
    assert len(drawn) == 800
    # Their places in the dataset, scaled to 0..1, are uniform: mean 1/2 with standard deviation 1/sqrt(12 · 800).
    assert abs(np.mean(drawn) / 800 - 0.5) < 4 / np.sqrt(12 * 800)
    # Of 400, so many are drawn in none of 8 times: 400 · 0.75^8 = 40.
    assert 20 < 400 - len(set(drawn)) < 60


def test_unequal_classes_give_the_largest_tail_that_all_can_follow():
    labels = np.repeat(np.arange(3), [100, 30, 25])
    dataset = tf.data.Dataset.from_tensor_slices((labels, labels))
    counts = kt.data.class_counts(dataset.apply(kt.data.make_long_tailed(3, 4)))
    assert counts.tolist() == [61, 30, 15]  # 30 is half of 60 or 61


def test_a_shuffle_before_it_is_an_error_since_every_epoch_would_have_other_examples():
    dataset = balanced(4, 30).shuffle(120).apply(kt.data.make_long_tailed(4, 10))
    with pytest.raises(tf.errors.InvalidArgumentError, match="order has changed"):
        list(dataset)
    fixed = balanced(4, 30).shuffle(120, seed=1, reshuffle_each_iteration=False)
    list(fixed.apply(kt.data.make_long_tailed(4, 10)))


def test_elements_keep_their_structure():
    dataset = balanced(3, 10).map(lambda x, y: {"y": y, "text": tf.as_string(x), "ragged": tf.range(x % 2)})
    tail = dataset.apply(kt.data.make_long_tailed(3, 5, label="y"))
    assert tail.element_spec == dataset.element_spec
    assert len(list(tail.shuffle(9).batch(1).repeat(2))) == 2 * (10 + 4 + 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kt.data.make_long_tailed(1), ValueError, "num_classes"),
        (lambda: kt.data.make_long_tailed(3, 0.5), ValueError, "imbalance"),
        (lambda: kt.data.make_long_tailed(3, profile="linear"), ValueError, "profile"),
        (lambda: kt.data.make_long_tailed(3, seed=1.5), TypeError, "seed"),
        (lambda: kt.data.make_long_tailed(3)([1]), TypeError, "tf.data.Dataset"),
        (lambda: balanced(3, 10).apply(kt.data.make_long_tailed(3, 100)), ValueError, "1 of 3 classes would be left"),
        (lambda: balanced(3, 10).apply(kt.data.make_long_tailed(2, 2)), ValueError, "0..1"),
        (lambda: balanced(3, 10).apply(kt.data.make_long_tailed(4, 2)), ValueError, "would be left without"),
        (lambda: balanced(3, 10).repeat().apply(kt.data.make_long_tailed(3, 2)), ValueError, "no end"),
        (lambda: balanced(3, 10).batch(5).apply(kt.data.make_long_tailed(3, 2)), ValueError, "before `batch`"),
    ],
)
def test_what_cannot_be_made_is_said_at_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()
