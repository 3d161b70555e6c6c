import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from tests import reference

COUNTS = np.array([300, 100, 10, 1])


def batches(count=64, batch=16, one_hot=False, seed=0):
    """Images that are the unit vector of their number, so that a mixture shows what it was made of."""
    labels = np.random.default_rng(seed).integers(0, len(COUNTS), count)
    y = np.eye(len(COUNTS), dtype="float32")[labels] if one_hot else labels
    return tf.data.Dataset.from_tensor_slices((np.eye(count, dtype="float32"), y)).batch(batch), labels


@pytest.mark.parametrize("one_hot", [False, True])
@pytest.mark.parametrize(("kappa", "tau"), [(3.0, 0.5), (1.0, 1.0), (20.0, 0.3), (float("inf"), 0.5)])
def test_mixtures_are_those_of_the_paper(kappa, tau, one_hot):
    dataset, labels = batches(one_hot=one_hot)
    favoured = 0
    for start, (x, y) in enumerate(dataset.apply(kt.data.remix(COUNTS, kappa=kappa, tau=tau, seed=1))):
        x = x.numpy()[:, 16 * start : 16 * start + 16]
        own = np.arange(16)
        partner = np.array([([j for j in np.flatnonzero(row) if j != i] or [i])[0] for i, row in enumerate(x)])
        lam = np.where(partner == own, 1.0, x[own, own]).astype("float32")
        part = labels[16 * start : 16 * start + 16]
        images, mixed = reference.remixed(np.eye(16), part, COUNTS, partner, lam, kappa, tau)
        np.testing.assert_allclose(x, images, atol=1e-6)
        # An example that is its own partner keeps its label whatever lam was.
        np.testing.assert_allclose(y, mixed, atol=1e-6)
        favoured += np.sum((y.numpy().max(axis=1) == 1) & (lam < 1) & (part != part[partner]))
    assert (favoured > 0) == (kappa < 300)


def test_labels_add_up_to_one_and_partners_are_a_permutation():
    dataset, _ = batches()
    for x, y in dataset.apply(kt.data.remix(COUNTS, alpha=0.2, seed=0)):
        np.testing.assert_allclose(y.numpy().sum(axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(x.numpy().sum(axis=1), 1, atol=1e-6)


def test_weights_are_beta_distributed():
    data = tf.data.Dataset.from_tensors((np.eye(4000, dtype="float32")[:, :1] * 0 + 1, np.arange(4000) % 2)).repeat(5)
    # Labels 0 and 1, equally frequent: the label's weight is lam where the partner is of the other class.
    weights = np.concatenate([y.numpy()[:, 0] for _, y in data.apply(kt.data.remix([5, 5], alpha=0.4, seed=0))])
    mixed = weights[(weights > 1e-6) & (weights < 1 - 1e-6)]
    # Beta(a, a): mean 1/2, variance 1 / (4 (2 a + 1)).
    np.testing.assert_allclose([mixed.mean(), mixed.var()], [0.5, 1 / (4 * 1.8)], atol=0.01)


def test_a_seed_fixes_the_epochs_and_each_is_different():
    def epochs(seed):
        dataset = batches()[0].apply(kt.data.remix(COUNTS, seed=seed))
        return [np.concatenate([x for x, _ in dataset.as_numpy_iterator()]) for _ in range(2)]

    one, again, other = epochs(3), epochs(3), epochs(4)
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one[0], one[1])
    assert not np.array_equal(one[0], other[0])


def test_shapes_size_and_dtype_stay_for_structures_of_inputs_and_an_uneven_last_batch():
    x = {"a": np.ones((10, 4, 4, 1), "float16"), "b": (np.ones((10, 3), "float64"),)}
    dataset = tf.data.Dataset.from_tensor_slices((x, np.arange(10)[:, None] % 4)).batch(4)
    mixed = dataset.apply(kt.data.remix(COUNTS))
    assert int(mixed.cardinality()) == 3
    assert mixed.element_spec[0] == dataset.element_spec[0]
    assert mixed.element_spec[1].shape.as_list() == [None, 4]
    assert [y.shape[0] for _, y in mixed] == [4, 4, 2]


def refused(elements):
    tf.data.Dataset.from_tensors(elements).apply(kt.data.remix(COUNTS))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kt.data.remix([1.5]), ValueError, "class_counts"),
        (lambda: kt.data.remix(COUNTS, alpha=0), ValueError, "alpha"),
        (lambda: kt.data.remix(COUNTS, kappa=0.5), ValueError, "kappa"),
        (lambda: kt.data.remix(COUNTS, tau=2), ValueError, "tau"),
        (lambda: kt.data.remix(COUNTS)(3), TypeError, "tf.data.Dataset"),
        (lambda: refused(np.ones((4, 2))), ValueError, r"batches `\(x, y\)`"),
        (lambda: refused((np.ones((4, 2)), np.ones(4, int), np.ones(4))), ValueError, "sample weights"),
        (lambda: refused((np.ones(2), 1)), ValueError, "after `batch`"),
        (lambda: refused((np.ones((4, 2)), np.ones((4, 3)))), ValueError, r"\(batch, 4\)"),
        (lambda: refused((np.ones((4, 2), "uint8"), np.ones(4, int))), TypeError, "convert uint8"),
    ],
)
def test_what_cannot_be_mixed_is_said_at_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_label_outside_of_the_counts_is_an_error():
    with pytest.raises(tf.errors.InvalidArgumentError, match="outside of the 4 classes"):
        list(tf.data.Dataset.from_tensors((np.ones((2, 1), "float32"), [0, 4])).apply(kt.data.remix(COUNTS)))
