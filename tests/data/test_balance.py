import collections
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_tricks as kt
from tests import reference, runs

COUNTS = [60, 20, 6, 0, 2]


def examples(counts=COUNTS, seed=0):
    """Numbered examples in a random order, each with its label."""
    labels = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng(seed).shuffle(labels)
    return np.arange(len(labels)), labels


def source(counts=COUNTS):
    return tf.data.Dataset.from_tensor_slices(examples(counts))


def labels_of(dataset):
    return [int(y) for _, y in dataset.as_numpy_iterator()]


@pytest.mark.parametrize(
    "dataset",
    [
        lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)),
        lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).batch(7),
        lambda x, y: tf.data.Dataset.from_tensor_slices((x, y[:, None].astype("uint8"))).batch(7).batch(3),
        lambda x, y: tf.data.Dataset.from_tensors((x, tf.RaggedTensor.from_row_lengths(y, [80, 0, 8]))),
        lambda x, y: tf.data.Dataset.from_tensor_slices((x, y)).filter(lambda x, y: True),
    ],
    ids=["examples", "batches", "batches-of-batches", "ragged", "unknown-size"],
)
def test_counts_are_those_of_the_labels(dataset):
    assert kt.data.class_counts(dataset(*examples())).tolist() == COUNTS
    assert kt.data.class_counts(dataset(*examples()), num_classes=7).tolist() == [*COUNTS, 0, 0]


def test_the_label_is_found_by_index_key_field_or_function():
    Pair = collections.namedtuple("Pair", "image label")
    x, y = examples()
    for elements, label in (
        ((y, x), 0),
        ({"image": x, "label": y}, "label"),
        (Pair(y, x), "image"),
        ((x, y), lambda x, y: y),
        ({"a": {"b": y}}, lambda e: e["a"]["b"]),
        ((x, np.eye(5)[y]), lambda x, y: tf.argmax(y)),
    ):
        dataset = tf.data.Dataset.from_tensor_slices(elements)
        assert kt.data.class_counts(dataset, 5, label).tolist() == COUNTS
        balanced = dataset.apply(kt.data.class_balanced(COUNTS, label=label))
        assert kt.data.class_counts(balanced, 5, label).tolist() == [22, 22, 22, 0, 22]


@pytest.mark.parametrize("q", [1.0, 0.5, 0.0, -1.0])
def test_every_class_gives_its_share_to_one_example(q):
    balance = kt.data.class_balanced(COUNTS, q)
    balanced = source().apply(balance)
    got = np.bincount(labels_of(balanced), minlength=5)
    assert np.abs(got - reference.re_sampled(COUNTS, q)).max() < 1
    assert got.sum() == int(balanced.cardinality()) == sum(COUNTS)
    assert got.tolist() == balance.draws(0).tolist()


def test_progressive_balancing_goes_from_the_data_as_they_are_to_balanced_and_stays():
    balance = kt.data.class_balanced(COUNTS, epochs=4, seed=0)
    balanced = source().apply(balance)
    for epoch in range(6):
        assert balance.epoch == epoch
        got = np.bincount(labels_of(balanced), minlength=5)
        assert np.abs(got - reference.re_sampled(COUNTS, 0, min(epoch, 4), 4)).max() < 1
        if epoch == 0:
            assert got.tolist() == COUNTS
    assert got.tolist() == [22, 22, 22, 0, 22]


@pytest.mark.parametrize("epochs", [None, 2])
def test_deferred_balancing_uses_each_element_once_until_its_first_epoch(epochs):
    balanced = source().apply(kt.data.class_balanced(COUNTS, epochs=epochs, start_epoch=2, seed=0))
    weights = [0, 0, 1, 1, 1] if epochs is None else [0, 0, 0, 0.5, 1]
    for weight in weights:
        used = [int(x) for x, _ in balanced.as_numpy_iterator()]
        if weight == 0:
            assert sorted(used) == list(range(sum(COUNTS)))
        got = np.bincount(examples()[1][used], minlength=5)
        assert np.abs(got - reference.re_sampled(COUNTS, 0, weight, 1)).max() < 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any), st.sampled_from([0.0, 0.5, -1.0]))
def test_repeats_of_one_class_differ_by_at_most_one_and_the_size_stays(counts, q):
    balance = kt.data.class_balanced(counts, q, seed=1, shuffle_buffer=None)
    used = collections.Counter(int(x) for x, _ in source(counts).apply(balance).as_numpy_iterator())
    numbers, labels = examples(counts)
    draws = balance.draws(0)
    assert draws.sum() == sum(counts)
    for j, count in enumerate(counts):
        times = [used[i] for i in numbers[labels == j]]
        assert sum(times) == draws[j]
        assert all(draws[j] // count <= t <= -(-draws[j] // count) for t in times)


def test_examples_of_a_frequent_class_take_turns():
    balanced = source().apply(kt.data.class_balanced(COUNTS, seed=0))
    frequent = examples()[0][examples()[1] == 0]
    epochs = [{int(x) for x, y in balanced.as_numpy_iterator() if y == 0} for _ in range(20)]
    assert {len(e) for e in epochs} == {22}  # of 60
    assert len({frozenset(e) for e in epochs}) > 10
    assert set.union(*epochs) == set(frequent)


def test_a_seed_fixes_all_and_a_peek_changes_nothing():
    def epochs(seed, peek):
        tf.random.set_seed(3)
        balance = kt.data.class_balanced(COUNTS, seed=seed, shuffle_buffer=None)
        balanced = source().apply(balance)
        found = []
        for _ in range(2):
            if peek:
                next(iter(balanced))
            found.append([int(x) for x, _ in balanced.as_numpy_iterator()])
        assert balance.epoch == 2
        return found

    assert epochs(5, False) == epochs(5, True) != epochs(6, False)
    first, second = epochs(5, False)
    assert first != second


def test_without_a_seed_keras_seed_fixes_it():
    def order():
        keras.utils.set_random_seed(11)
        return labels_of(source().apply(kt.data.class_balanced(COUNTS)))

    assert order() == order()


@pytest.mark.parametrize("shuffle_buffer", [None, "auto", 10])
def test_a_resumed_run_goes_on_where_it_was_in_the_same_order(shuffle_buffer):
    def elements(dataset):
        return [int(x) for x, _ in dataset.as_numpy_iterator()]

    whole, resumed = (kt.data.class_balanced(COUNTS, epochs=4, seed=2, shuffle_buffer=shuffle_buffer) for _ in "ab")
    keras.utils.set_random_seed(1)
    dataset = source().apply(whole)
    epochs = [elements(dataset) for _ in range(4)]
    assert len({tuple(epoch) for epoch in epochs}) == 4
    keras.utils.set_random_seed(2)
    resumed.epoch = 2
    dataset = source().apply(resumed)
    next(iter(dataset))
    assert [elements(dataset), elements(dataset)] == epochs[2:]


def test_the_shuffle_spreads_the_repeats():
    def together(shuffle_buffer):
        numbers = [
            int(x) for x, _ in source().apply(kt.data.class_balanced(COUNTS, seed=0, shuffle_buffer=shuffle_buffer))
        ]
        return sum(a == b for a, b in itertools.pairwise(numbers))

    assert together(None) > 30
    assert together("auto") < 15


def test_data_that_are_balanced_already_are_not_changed():
    balance = kt.data.class_balanced([5, 5, 5])
    assert [int(x) for x, _ in source([5, 5, 5]).apply(balance).as_numpy_iterator()] == list(range(15))


def test_elements_of_any_structure_keep_it_and_their_static_shape():
    x, y = examples()
    sparse = tf.sparse.from_dense(x[:, None] * np.ones(3))
    ragged = tf.RaggedTensor.from_row_lengths(np.repeat(x, x % 3), x % 3)
    dataset = tf.data.Dataset.from_tensor_slices(
        {"y": y, "other": (ragged, {"text": tf.as_string(x), "sparse": sparse})}
    )
    balanced = dataset.apply(kt.data.class_balanced(COUNTS, label="y"))
    assert balanced.element_spec == dataset.map(lambda e: e).element_spec
    for element in balanced.take(20):
        number = int(element["other"][1]["text"].numpy())
        assert element["y"] == y[number]
        assert element["other"][0].shape == (number % 3,)
        assert float(tf.sparse.reduce_max(element["other"][1]["sparse"])) == number


def test_fit_on_two_replicas_counts_epochs_and_knows_the_size():
    counts = [300, 100, 30, 0, 10]
    with runs.strategy_of(2).scope():
        balance = kt.data.class_balanced(counts, epochs=3)
        model = keras.Sequential([keras.layers.Dense(5)])  # not built: fit looks at a batch first
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    images = source(counts).map(lambda x, y: (tf.one_hot(x, 9), y))
    batches = images.apply(balance).batch(8, drop_remainder=True).prefetch(2)
    assert int(batches.cardinality()) == 55
    model.fit(batches, epochs=3, verbose=0)
    assert int(model.optimizer.iterations.numpy()) == 165
    assert balance.epoch == 3


def test_it_works_with_cache_repeat_take_shards_and_echo():
    balanced = source().apply(kt.data.class_balanced(COUNTS))
    assert np.bincount(labels_of(balanced.repeat(2))).tolist() == [44, 44, 44, 0, 44]
    assert len(labels_of(balanced.take(10))) == 10
    assert len(labels_of(balanced.cache())) == 88
    assert len(labels_of(balanced.shard(2, 0))) == 44
    assert np.bincount(labels_of(balanced.apply(kt.data.echo(1.5)))).sum() == 132


def test_a_pass_that_does_not_fit_the_counts_is_an_error():
    unknown = source().filter(lambda x, y: True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="more examples than `class_counts` says of class"):
        list(unknown.apply(kt.data.class_balanced([40, 20, 6, 0, 2])))
    with pytest.raises(tf.errors.InvalidArgumentError, match="outside of the 4 classes"):
        list(unknown.apply(kt.data.class_balanced([60, 20, 6, 2])))
    with pytest.raises(tf.errors.FailedPreconditionError, match="expected to contain 178 elements"):
        list(unknown.apply(kt.data.class_balanced([60, 110, 6, 0, 2])))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kt.data.class_counts([1, 2]), TypeError, "tf.data.Dataset"),
        (lambda: kt.data.class_counts(source().repeat()), ValueError, "no end"),
        (lambda: kt.data.class_counts(source().take(0)), ValueError, "no elements"),
        (lambda: kt.data.class_counts(source(), 3), ValueError, r"0..2. Received a label 4"),
        (lambda: kt.data.class_counts(source().map(lambda x, y: (x, y - 1))), ValueError, "label -1"),
        (lambda: kt.data.class_counts(source().map(lambda x, y: (x, tf.one_hot(y, 5)))), TypeError, "one-hot"),
        (lambda: kt.data.class_counts(source(), label=2), ValueError, "label=2"),
        (lambda: kt.data.class_counts(source().map(lambda x, y: y)), ValueError, "label=1, for elements int64"),
        (lambda: kt.data.class_balanced([]), ValueError, "whole numbers"),
        (lambda: kt.data.class_balanced([0.5, 0.5]), ValueError, "whole numbers"),
        (lambda: kt.data.class_balanced([3, -1]), ValueError, "not negative"),
        (lambda: kt.data.class_balanced([0, 0]), ValueError, "not all 0"),
        (lambda: kt.data.class_balanced(COUNTS, q="half"), TypeError, "`q` must be a number"),
        (lambda: kt.data.class_balanced(COUNTS, epochs=0), ValueError, "`epochs`"),
        (lambda: kt.data.class_balanced(COUNTS, seed=-1), ValueError, "`seed`"),
        (lambda: kt.data.class_balanced(COUNTS, shuffle_buffer=0), ValueError, "`shuffle_buffer`"),
        (lambda: kt.data.class_balanced(COUNTS)([1]), TypeError, "tf.data.Dataset"),
        (lambda: source().apply(kt.data.class_balanced([60, 20])), ValueError, "add up to 80, but.*88 elements"),
        (lambda: source().repeat().apply(kt.data.class_balanced(COUNTS)), ValueError, r"before `repeat\(\)`"),
        (lambda: source().batch(1).apply(kt.data.class_balanced(COUNTS)), ValueError, "before `batch`"),
    ],
)
def test_what_cannot_be_balanced_is_said_at_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()
