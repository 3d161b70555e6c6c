import numpy as np
import pytest

import keras_tricks as kt
from tests import reference

COUNTS = [5000, 600, 50, 7]
LABELS = np.array([0, 3, 1, 2, 2])
LOGITS = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


@pytest.mark.parametrize("tau", [0, 0.5, 1.0, 2.5])
def test_it_is_the_papers_loss(tau):
    loss = kt.losses.LogitAdjusted(COUNTS, tau, reduction=None)
    right = reference.logit_adjusted(LOGITS, np.eye(4)[LABELS], COUNTS, tau)
    np.testing.assert_allclose(loss(LABELS, LOGITS), right, rtol=1e-5, atol=1e-6)


def test_with_tau_1_it_is_balanced_softmax():
    adjusted, balanced = kt.losses.LogitAdjusted(COUNTS), kt.losses.BalancedSoftmax(COUNTS)
    np.testing.assert_allclose(adjusted(LABELS, LOGITS), balanced(LABELS, LOGITS), rtol=1e-6)


def test_a_negative_tau_is_refused():
    with pytest.raises(ValueError, match="`tau` must be at least 0"):
        kt.losses.LogitAdjusted(COUNTS, tau=-1)
