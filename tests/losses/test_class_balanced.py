import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import reference

COUNTS = [5000, 600, 50, 7]
LABELS = np.array([0, 3, 1, 2, 2])
LOGITS = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")


@pytest.mark.parametrize("beta", [0.0, 0.9, 0.999, 0.9999, 0.9999999])
def test_weights_are_those_of_the_effective_numbers(beta):
    weights = kt.losses.ClassBalanced(COUNTS, beta).class_weights
    np.testing.assert_allclose(weights, reference.class_balanced_weights(COUNTS, beta), rtol=1e-6)
    assert weights.sum() == pytest.approx(4)


def test_beta_1_is_the_inverse_frequency():
    weights = kt.losses.ClassBalanced(COUNTS, 1.0).class_weights
    inverse = 1 / np.array(COUNTS)
    np.testing.assert_allclose(weights, 4 * inverse / inverse.sum(), rtol=1e-6)


def test_a_beta_close_to_1_and_large_counts_lose_no_digits():
    # 1 - β^n, computed so, would have three right digits.
    weights = kt.losses.ClassBalanced([10**6, 10], 1 - 1e-13).class_weights
    np.testing.assert_allclose(weights[1] / weights[0], 1e5, rtol=1e-5)


@pytest.mark.parametrize(
    ("base", "gamma", "expected"),
    [
        ("softmax", 2.0, reference.crossentropy),
        ("focal", 1.5, lambda z, t: reference.focal(z, t, 1.5)),
        ("sigmoid", 2.0, lambda z, t: reference.sigmoid_focal(z, t, 0.0)),
        ("sigmoid_focal", 0.5, lambda z, t: reference.sigmoid_focal(z, t, 0.5)),
    ],
)
def test_the_loss_is_the_weighted_mean_over_the_batch_size(base, gamma, expected):
    loss = kt.losses.ClassBalanced(COUNTS, 0.99, base=base, gamma=gamma)
    weights = reference.class_balanced_weights(COUNTS, 0.99)[LABELS]
    right = (weights * expected(LOGITS, np.eye(4)[LABELS])).sum() / 5
    np.testing.assert_allclose(loss(LABELS, LOGITS), right, rtol=1e-5)


def test_sigmoids_that_start_at_minus_log_of_the_others_start_at_the_right_probabilities():
    # As the docstring advises: each class then starts at 1 / classes, and the loss is that of guessing.
    logits = np.full((1, 4), -np.log(3.0))
    loss = kt.losses.ClassBalanced(COUNTS, 0.0, base="sigmoid")(np.array([2]), logits)
    assert float(loss) == pytest.approx(-np.log(1 / 4) - 3 * np.log(3 / 4), rel=1e-5)


def test_an_empty_class_weighs_as_one_with_a_single_example_and_does_not_change_the_others():
    weights = kt.losses.ClassBalanced([100, 0, 10], 0.99).class_weights
    np.testing.assert_allclose(weights[[0, 2]], reference.class_balanced_weights([100, 10], 0.99), rtol=1e-6)
    with_one = reference.class_balanced_weights([100, 1, 10], 0.99)
    assert weights[1] / weights[2] == pytest.approx(with_one[1] / with_one[2], rel=1e-5)


def test_several_outputs_have_class_weights_each_which_fit_refuses():
    inputs = keras.Input((3,))
    model = keras.Model(inputs, {"a": keras.layers.Dense(4)(inputs), "b": keras.layers.Dense(2)(inputs)})
    losses = {"a": kt.losses.ClassBalanced(COUNTS, 1.0), "b": kt.losses.ClassBalanced([90, 10], 1.0)}
    model.compile("sgd", losses)
    x, y = np.ones((5, 3), "float32"), {"a": LABELS, "b": np.array([0, 1, 1, 0, 1])}
    with pytest.raises(ValueError, match="class_weight"):
        model.fit(x, y, class_weight={0: 1.0, 1: 2.0}, verbose=0)
    outputs = model.predict(x, verbose=0)
    right = sum(
        (
            reference.class_balanced_weights(n, 1 - 1e-9)[y[k]] * reference.crossentropy(outputs[k], np.eye(c)[y[k]])
        ).mean()
        for k, n, c in (("a", COUNTS, 4), ("b", [90, 10], 2))
    )
    assert model.fit(x, y, verbose=0).history["loss"][0] == pytest.approx(right, rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"class_counts": [3.5, 1]}, ValueError, "whole numbers"),
        ({"class_counts": [[3, 1]]}, ValueError, "one a class"),
        ({"class_counts": [0, 0]}, ValueError, "not all 0"),
        ({"class_counts": [3, -1]}, ValueError, "not negative"),
        ({"beta": 1.5}, ValueError, "`beta` must be at least 0 and at most 1.*1.5"),
        ({"beta": "x"}, TypeError, "`beta` must be a number"),
        ({"base": "relu"}, ValueError, "'softmax', 'sigmoid', 'focal' or 'sigmoid_focal'.*relu"),
        ({"gamma": -1}, ValueError, "`gamma` must be at least 0"),
        ({"from_logits": False}, ValueError, "leave out the last layer's softmax"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        kt.losses.ClassBalanced(**{"class_counts": COUNTS, **arguments})
