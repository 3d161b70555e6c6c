import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_tricks as kt
from tests import reference

LABELS = np.array([0, 3, 1, 2, 2])
LOGITS = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("alpha", [None, 0.25, [0.1, 0.2, 0.3, 0.4]])
def test_it_is_the_papers_loss(gamma, alpha):
    loss = kt.losses.SparseFocal(gamma, alpha, reduction=None)
    right = reference.focal(LOGITS, np.eye(4)[LABELS], gamma, 1.0 if alpha is None else np.array(alpha))
    np.testing.assert_allclose(loss(LABELS, LOGITS), right, rtol=1e-5)


def test_with_one_hot_labels_it_is_keras_categorical_focal_crossentropy():
    t = np.eye(4, dtype="float32")[LABELS]
    theirs = keras.losses.CategoricalFocalCrossentropy(alpha=0.25, gamma=2.0, from_logits=True)(t, LOGITS)
    np.testing.assert_allclose(kt.losses.SparseFocal(2.0, 0.25)(LABELS, LOGITS), theirs, rtol=1e-5)


def test_gamma_0_with_a_list_is_crossentropy_with_class_weights():
    weights = [1.0, 0.5, 3.0, 2.0]
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    right = plain(LABELS, LOGITS, sample_weight=np.array(weights)[LABELS])
    np.testing.assert_allclose(kt.losses.SparseFocal(0.0, weights)(LABELS, LOGITS), right, rtol=1e-6)


@given(st.floats(-30, 30), st.sampled_from([0.0, 0.3, 1.0, 2.0]))
def test_it_never_exceeds_crossentropy_and_the_better_an_example_is_known_the_less_it_counts(logit, gamma):
    def share(z):
        logits, labels = np.array([[z - 1, -1.0]], "float32"), np.array([0])
        return kt.losses.SparseFocal(gamma)(labels, logits) / kt.losses.SparseFocal(0.0)(labels, logits)

    if logit < 15:  # beyond, the loss is 0 in float32
        assert 0 <= share(logit) <= 1 + 1e-6
        assert share(logit) >= share(logit + 0.5) - 1e-6


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gamma": float("inf")}, ValueError, "`gamma` must be at least 0 and finite"),
        ({"alpha": [0.1, -0.1]}, ValueError, "`alpha` must be at least 0"),
        ({"alpha": "balanced"}, TypeError, "`alpha`.*balanced"),
        ({"from_logits": False}, ValueError, "leave out the last layer's softmax"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        kt.losses.SparseFocal(**arguments)


def test_an_alpha_for_another_number_of_classes_is_refused():
    with pytest.raises(ValueError, match="`alpha` has 2 values"):
        kt.losses.SparseFocal(alpha=[0.5, 0.5])(LABELS, LOGITS)
