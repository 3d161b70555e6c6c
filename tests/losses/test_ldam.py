import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import reference

COUNTS = [5000, 600, 50, 7]
LABELS = np.array([0, 3, 1, 2, 2])
COSINES = np.random.default_rng(0).uniform(-1, 1, (5, 4)).astype("float32")


@pytest.mark.parametrize(("max_margin", "scale"), [(0.5, 30.0), (0.2, 10.0), (0.0, 1.0)])
def test_it_is_the_papers_loss(max_margin, scale):
    loss = kt.losses.LDAM(COUNTS, max_margin, scale, reduction=None)
    right = reference.ldam(COSINES, np.eye(4)[LABELS], COUNTS, max_margin, scale)
    np.testing.assert_allclose(loss(LABELS, COSINES), right, rtol=2e-5, atol=1e-6)


def test_a_mixed_label_takes_off_its_share_of_each_margin():
    t = np.array([[0.25, 0.0, 0.75, 0.0]])
    loss = kt.losses.LDAM(COUNTS)(t, COSINES[:1])
    np.testing.assert_allclose(loss, reference.ldam(COSINES[:1], t, COUNTS)[0], rtol=2e-5)


def test_an_empty_class_has_the_largest_margin_and_does_not_change_the_others():
    margins = kt.losses.LDAM([625, 0, 16]).margins
    np.testing.assert_allclose(margins, [0.2, 0.5, 0.5])


def test_with_a_cosine_classifier_it_trains_to_margins():
    labels = np.repeat([0, 1], [40, 4])
    x = np.random.default_rng(0).normal(size=(44, 2)) + 3 * np.eye(2)[labels]
    model = keras.Sequential([keras.Input((2,)), kt.layers.NormalizedDense(2)])
    model.compile(keras.optimizers.Adam(0.1), kt.losses.LDAM([40, 4]))
    before = model.evaluate(x, labels, verbose=0)
    model.fit(x, labels, epochs=20, batch_size=44, verbose=0)
    assert model.evaluate(x, labels, verbose=0) < 0.5 * before
    assert (model.predict(x, verbose=0).argmax(-1) == labels).mean() > 0.9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"max_margin": -0.1}, "`max_margin` must be at least 0"), ({"scale": 0}, "`scale` must be greater than 0")],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        kt.losses.LDAM(COUNTS, **arguments)
