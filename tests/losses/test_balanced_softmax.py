import numpy as np
import pytest

import keras_tricks as kt
from tests import reference

COUNTS = [5000, 600, 50, 7]
LABELS = np.array([0, 3, 1, 2, 2])
LOGITS = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


def test_it_is_the_papers_loss():
    loss = kt.losses.BalancedSoftmax(COUNTS, reduction=None)
    right = reference.balanced_softmax(LOGITS, np.eye(4)[LABELS], COUNTS)
    np.testing.assert_allclose(loss(LABELS, LOGITS), right, rtol=1e-5)


def test_logits_that_know_the_frequencies_only_have_no_gradient_left_when_all_are_equal():
    # With equal logits the model says "all classes alike" at test time, and fits the training frequencies.
    counts = np.array([6, 3, 1])
    loss = kt.losses.BalancedSoftmax(counts)
    labels = np.repeat(np.arange(3), counts)
    equal = float(loss(labels, np.zeros((10, 3))))
    for step in np.random.default_rng(0).normal(size=(10, 3)):
        assert float(loss(labels, np.tile(0.1 * (step - step.mean()), (10, 1)))) > equal


def test_an_empty_class_counts_as_one_example():
    z, y = LOGITS[:, :3], np.array([0, 2, 2, 0, 0])
    empty, one = (kt.losses.BalancedSoftmax([100, n, 10], reduction=None)(y, z) for n in (0, 1))
    np.testing.assert_allclose(empty, one, rtol=1e-6)


def test_the_number_of_classes_must_be_that_of_the_logits():
    with pytest.raises(ValueError, match=r"counts of 4 classes, but logits of shape \(5, 3\)"):
        kt.losses.BalancedSoftmax(COUNTS)(LABELS, LOGITS[:, :3])
