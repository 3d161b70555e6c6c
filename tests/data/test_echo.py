import collections

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_tricks as kt
from tests import reference, runs


def values(dataset):
    return [int(x) for x in dataset.as_numpy_iterator()]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 40), st.integers(100, 500))
def test_after_i_elements_floor_of_i_times_the_factor_have_come_out(count, hundredths):
    dataset = tf.data.Dataset.range(count).apply(kt.data.echo(hundredths / 100))
    assert values(dataset) == reference.echoed(range(count), hundredths, 100)
    assert int(dataset.cardinality()) == count * hundredths // 100


def test_a_factor_is_the_decimal_it_is_written_as():
    assert len(values(tf.data.Dataset.range(100).apply(kt.data.echo(1.15)))) == 115  # 100 * 1.15 is 114.99... in binary


def test_many_copies_are_not_made_at_once():
    echoed = tf.data.Dataset.range(2).apply(kt.data.echo(100_000))
    assert sum(len(b) for b in echoed.batch(10_000)) == int(echoed.cardinality()) == 200_000


def test_factor_one_is_free():
    dataset = tf.data.Dataset.range(5)
    assert dataset.apply(kt.data.echo(1)) is dataset
    assert dataset.apply(kt.data.echo(1.0)) is dataset


Pair = collections.namedtuple("Pair", "image label")


@pytest.mark.parametrize("factor", [2, 1.5])
@pytest.mark.parametrize(
    "structure",
    [
        lambda: tf.range(4),
        lambda: (tf.range(4), tf.ones((4, 2))),
        lambda: (tf.range(4),),
        lambda: (tf.range(4), tf.ones((4, 3000))),  # large elements are repeated in another way than small ones
        lambda: {"a": tf.range(4), "b": (tf.ones(4), {"c": tf.ones((4, 3))})},
        lambda: Pair(tf.range(4), tf.ones(4)),
        lambda: (tf.ragged.constant([[1], [2, 3], [], [4]]), tf.range(4)),
        lambda: {"sparse": tf.sparse.from_dense(np.eye(4)), "text": tf.constant(["a", "b", "c", "d"])},
    ],
    ids=["tensor", "pair", "tuple-of-one", "large", "nested", "namedtuple", "ragged", "sparse"],
)
def test_elements_of_any_structure_keep_it_and_their_static_shape(structure, factor):
    source = tf.data.Dataset.from_tensor_slices(structure())
    echoed = source.apply(kt.data.echo(factor))
    assert echoed.element_spec == source.map(lambda *x: x if type(source.element_spec) is tuple else x[0]).element_spec
    want = reference.echoed(list(source), int(2 * factor), 2)
    for got, expected in zip(echoed, want, strict=True):
        tf.nest.assert_same_structure(got, expected)
        for a, b in zip(tf.nest.flatten(got, True), tf.nest.flatten(expected, True), strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_ragged_last_batch_is_echoed_as_it_is():
    batches = tf.data.Dataset.range(5).batch(2).apply(kt.data.echo(2))
    assert [b.tolist() for b in batches.as_numpy_iterator()] == [[0, 1], [0, 1], [2, 3], [2, 3], [4], [4]]


def test_the_cardinality_stays_known_through_shuffle_batch_and_repeat():
    echoed = tf.data.Dataset.range(10).apply(kt.data.echo(1.5, shuffle_buffer=4))
    assert int(echoed.cardinality()) == 15
    assert int(echoed.batch(4).cardinality()) == 4
    assert int(echoed.batch(4).repeat(2).cardinality()) == 8
    endless = tf.data.Dataset.range(3).repeat().apply(kt.data.echo(2))
    assert int(endless.cardinality()) == tf.data.INFINITE_CARDINALITY
    unknown = tf.data.Dataset.range(9).filter(lambda x: x < 3).apply(kt.data.echo(2))
    assert int(unknown.cardinality()) == tf.data.UNKNOWN_CARDINALITY
    assert values(unknown) == [0, 0, 1, 1, 2, 2]
    assert values(endless.take(7)) == [0, 0, 1, 1, 2, 2, 0]


def test_the_shuffle_spreads_the_repeats_and_its_seed_fixes_the_order():
    def order(seed):
        tf.random.set_seed(7)
        return values(tf.data.Dataset.range(50).apply(kt.data.echo(3, shuffle_buffer=60, seed=seed)))

    assert sorted(order(1)) == sorted([*range(50)] * 3)
    assert order(1) == order(1) != order(2)
    together = sum(a == b for a, b in zip(order(1), order(1)[1:], strict=False))
    assert together < 20  # 100 without the shuffle


def test_each_epoch_is_whole():
    dataset = tf.data.Dataset.range(3).apply(kt.data.echo(1.5)).repeat(2)
    assert values(dataset) == [0, 1, 1, 2, 0, 1, 1, 2]


def test_random_augmentation_after_the_echo_differs_between_the_repeats():
    images = tf.data.Dataset.from_tensor_slices(np.zeros((20, 8), "float32"))
    augmented = images.apply(kt.data.echo(2)).map(lambda x: x + tf.random.uniform((8,)))
    pairs = np.array(list(augmented.as_numpy_iterator())).reshape(20, 2, 8)
    assert (np.abs(pairs[:, 0] - pairs[:, 1]).max(axis=1) > 0.1).all()


def test_augmentation_before_the_echo_is_repeated():
    images = tf.data.Dataset.from_tensor_slices(np.zeros((20, 8), "float32"))
    augmented = images.map(lambda x: x + tf.random.uniform((8,))).apply(kt.data.echo(2))
    pairs = np.array(list(augmented.as_numpy_iterator())).reshape(20, 2, 8)
    np.testing.assert_array_equal(pairs[:, 0], pairs[:, 1])


def test_each_element_is_read_once():
    reads = []

    def read():
        for i in range(4):
            reads.append(i)
            yield i

    source = tf.data.Dataset.from_generator(read, output_signature=tf.TensorSpec((), tf.int64))
    assert values(source.apply(kt.data.echo(3))) == [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    assert reads == [0, 1, 2, 3]


def test_replicas_share_the_echoed_batches():
    strategy = runs.strategy_of(2)
    dataset = tf.data.Dataset.range(8).apply(kt.data.echo(2)).batch(4)
    seen = []
    for batch in strategy.experimental_distribute_dataset(dataset):
        seen += [x for part in strategy.experimental_local_results(batch) for x in part.numpy().tolist()]
    assert sorted(seen) == sorted([*range(8)] * 2)


def test_shards_are_disjoint():
    dataset = tf.data.Dataset.range(6).apply(kt.data.echo(2))
    assert values(dataset.shard(2, 0)) == values(dataset.shard(2, 1)) == [*range(6)]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (("2",), TypeError),
        ((True,), TypeError),
        ((0.5,), ValueError),
        ((-1,), ValueError),
        ((float("inf"),), ValueError),
        ((1e7,), ValueError),
        ((2, 4, -1), ValueError),
        ((float("nan"),), ValueError),
        ((2, 0), ValueError),
        ((2, 1.5), TypeError),
    ],
    ids=str,
)
def test_impossible_factors_and_buffers_are_refused_at_once(arguments, error):
    with pytest.raises(error, match="Received"):
        kt.data.echo(*arguments)


def test_a_list_is_not_a_dataset():
    with pytest.raises(TypeError, match=r"dataset.apply\(echo\(\.\.\.\)\)"):
        kt.data.echo(2)([1, 2, 3])
