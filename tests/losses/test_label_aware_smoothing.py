import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import reference

COUNTS = [5000, 600, 50, 7]
LABELS = np.array([0, 3, 1, 2, 2])
LOGITS = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


@pytest.mark.parametrize(("head", "tail"), [(0.3, 0.0), (0.4, 0.1), (0.0, 0.0)])
def test_it_is_the_papers_loss(head, tail):
    loss = kt.losses.LabelAwareSmoothing(COUNTS, head, tail, reduction=None)
    right = reference.label_aware_smoothing(LOGITS, np.eye(4)[LABELS], COUNTS, head, tail)
    np.testing.assert_allclose(loss(LABELS, LOGITS), right, rtol=1e-5)


def test_classes_of_one_size_are_smoothed_as_keras_does():
    t = np.eye(4, dtype="float32")[LABELS]
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3)(t, LOGITS)
    np.testing.assert_allclose(kt.losses.LabelAwareSmoothing([9] * 4)(LABELS, LOGITS), theirs, rtol=1e-5)


def test_an_empty_class_is_smoothed_as_the_rarest():
    smoothing = kt.losses.LabelAwareSmoothing([100, 0, 10], smooth_tail=0.1).smoothing
    np.testing.assert_allclose(smoothing, [0.3, 0.1, 0.1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"smooth_head": 1.1}, "`smooth_head` must be at least 0 and at most 1"),
        ({"smooth_head": 0.1, "smooth_tail": 0.2}, "`smooth_tail` must be at least 0 and at most 0.1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kt.losses.LabelAwareSmoothing(COUNTS, **arguments)
