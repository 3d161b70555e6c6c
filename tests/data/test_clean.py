import collections
import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from tests import runs

checks = kt.data.checks


def examples():
    """Twenty examples; 4 and 7 are not finite, 9 has a label that is none."""
    x, y = np.random.default_rng(0).normal(size=(20, 3)).astype("float32"), np.arange(20) % 4
    x[4, 1], x[7] = np.nan, -np.inf
    y[9] = 12
    return x, y


def source():
    return tf.data.Dataset.from_tensor_slices(examples())


def both():
    return [checks.finite(), checks.valid_label(4)]


def test_what_is_corrupt_is_dropped_and_the_rest_stays_as_it_is_in_its_order():
    cleaned = source().apply(kt.data.drop_corrupt(both()))
    assert cleaned.element_spec == source().element_spec
    x, y = examples()
    good = np.isfinite(x).all(axis=1) & (y < 4)
    kept = list(cleaned.as_numpy_iterator())
    np.testing.assert_array_equal([a for a, _ in kept], x[good])
    np.testing.assert_array_equal([b for _, b in kept], y[good])


def test_counts_by_reason_and_positions_are_those_of_the_pass():
    clean = kt.data.drop_corrupt(both())
    cleaned = source().apply(clean)
    assert clean.seen == 0
    for _ in range(2):  # each pass counts anew
        assert len(list(cleaned)) == 17
        assert clean.counts == {"not finite": 2, "label outside 0..3": 1}
        assert clean.positions == {"not finite": [4, 7], "label outside 0..3": [9]}
        assert (clean.seen, clean.kept, clean.dropped) == (20, 17, 3)
    assert str(clean) == (
        'drop_corrupt dropped 3 of 20 elements: 2 for "not finite", at positions 4, 7; 1 for "label outside 0..3", at '
        "position 9."
    )


def test_an_element_counts_under_the_first_check_that_fails():
    clean = kt.data.drop_corrupt({"odd": lambda x, y: y % 2 == 0, "not below 2": lambda x, y: y < 2})
    list(source().apply(clean))
    assert clean.counts == {"odd": 9, "not below 2": 6}


def test_counts_of_a_pass_that_runs_and_of_one_that_was_given_up():
    clean = kt.data.drop_corrupt(both())
    cleaned = source().apply(clean)
    list(cleaned.take(5))
    assert 6 <= clean.seen <= 20
    assert clean.counts["not finite"] >= 1
    one, other = iter(cleaned), iter(cleaned)  # two passes at a time do not mix
    list(zip(one, other, strict=True))
    assert (clean.seen, clean.dropped) == (20, 3)


def test_nothing_is_dropped_without_a_word(caplog):
    caplog.set_level(logging.INFO, "keras_tricks")
    clean = kt.data.drop_corrupt(both())
    cleaned = source().apply(clean)
    list(cleaned.take(5))
    assert [r.message for r in caplog.records if 'at position 4 for "not finite"' in r.message]
    caplog.clear()
    list(cleaned)
    totals = [r for r in caplog.records if "dropped 3 of 20 elements" in r.message]
    assert len(totals) == 1
    assert totals[0].levelno == logging.WARNING
    caplog.clear()
    list(tf.data.Dataset.from_tensor_slices(np.ones(6)).apply(kt.data.drop_corrupt()))
    assert [(r.levelno, r.message) for r in caplog.records] == [
        (logging.INFO, "drop_corrupt found none of 6 elements corrupt.")
    ]


def test_raise_stops_at_the_first_with_its_position_and_keeps_the_cardinality():
    cleaned = source().apply(kt.data.drop_corrupt(both(), on_error="raise"))
    assert int(cleaned.cardinality()) == 20
    assert cleaned.element_spec == source().element_spec
    assert len(list(cleaned.take(4))) == 4
    with pytest.raises(tf.errors.InvalidArgumentError, match="element at position 4 is corrupt: not finite"):
        list(cleaned)
    assert len(list(source().skip(10).apply(kt.data.drop_corrupt(both(), on_error="raise")))) == 10


def test_a_dataset_of_which_nothing_is_left_is_an_error():
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"nothing is left.*dropped 6 of 6 elements"):
        list(tf.data.Dataset.from_tensor_slices(np.full(6, np.nan)).apply(kt.data.drop_corrupt()))


def test_an_empty_dataset_stays_empty():
    clean = kt.data.drop_corrupt()
    assert list(tf.data.Dataset.from_tensor_slices(np.ones(0)).apply(clean)) == []
    assert (clean.seen, clean.dropped) == (0, 0)


Pair = collections.namedtuple("Pair", "image label")


@pytest.mark.parametrize(
    "structure",
    [
        lambda x, y: x,
        lambda x, y: (x,),
        lambda x, y: {"a": y, "b": (x, {"c": y})},
        lambda x, y: Pair(x, y),
        lambda x, y: (tf.RaggedTensor.from_row_lengths(tf.reshape(x, [-1]), [1] * 12 + [0] * 2 + [8] * 6), y),
        lambda x, y: {"sparse": tf.sparse.from_dense(x), "text": tf.as_string(y)},
    ],
    ids=["tensor", "tuple-of-one", "nested", "namedtuple", "ragged", "sparse"],
)
def test_elements_of_any_structure_keep_it_and_their_static_shape(structure):
    whole = tf.data.Dataset.from_tensor_slices(structure(*examples()))
    for cleaned in (
        whole.apply(kt.data.drop_corrupt(on_error="drop")),
        whole.take(1).apply(kt.data.drop_corrupt(on_error="raise")),
    ):
        assert (
            cleaned.element_spec == whole.map(lambda *p: p if type(whole.element_spec) is tuple else p[0]).element_spec
        )
        first, expected = next(iter(cleaned)), next(iter(whole))
        tf.nest.assert_same_structure(first, expected)
        for a, b in zip(tf.nest.flatten(first, True), tf.nest.flatten(expected, True), strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_users_code_is_converted_by_autograph():
    def small(x, y):
        result = True
        if y > 2:  # a tensor: only AutoGraph makes a condition of it
            result = False
        return result

    clean = kt.data.drop_corrupt(small)
    list(source().apply(clean))
    assert clean.counts == {"small": 6}


def test_it_works_with_cache_repeat_take_prefetch_shards_and_echo():
    clean = kt.data.drop_corrupt(both())
    cleaned = source().apply(clean)
    assert len(list(cleaned.cache().repeat(2).prefetch(2))) == 34
    assert len(list(cleaned.apply(kt.data.echo(2)).take(30))) == 30
    assert len(list(cleaned.shard(2, 0))) + len(list(cleaned.shard(2, 1))) == 17
    endless = source().repeat().apply(clean)
    assert int(endless.cardinality()) == tf.data.INFINITE_CARDINALITY
    assert len(list(endless.take(50))) == 50


def fit_twice(replicas, count_first):
    with runs.strategy_of(replicas).scope():
        clean = kt.data.drop_corrupt(both(), count_first=count_first)
        model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    batches = source().apply(clean).batch(4)
    assert int(batches.cardinality()) == (5 if count_first else tf.data.UNKNOWN_CARDINALITY)
    history = model.fit(batches, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    # Without a known size Keras counts a step more at the end of each epoch, one that fails for want of data.
    assert int(model.optimizer.iterations.numpy()) == (10 if count_first else 12)
    assert clean.counts == {"not finite": 2, "label outside 0..3": 1}


def test_counted_first_fit_knows_the_size(replicas):
    fit_twice(replicas, True)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_not_counted_fit_learns_the_size_in_its_first_epoch():
    fit_twice(1, False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: kt.data.drop_corrupt(on_error="ignore"), ValueError, "'drop' or 'raise'"),
        (lambda: kt.data.drop_corrupt([]), ValueError, "one check or more"),
        (lambda: kt.data.drop_corrupt([checks.finite(), checks.finite()]), ValueError, "a reason of its own"),
        (lambda: kt.data.drop_corrupt(["finite"]), TypeError, "Received: 'finite'"),
        (lambda: kt.data.drop_corrupt(3), TypeError, "list or dict of checks"),
        (lambda: kt.data.drop_corrupt()([1.0]), TypeError, "tf.data.Dataset"),
        (lambda: source().apply(kt.data.drop_corrupt(lambda x, y: x > 0)), TypeError, "one boolean"),
    ],
)
def test_what_cannot_be_checked_is_said_at_construction(make, error, message):
    with pytest.raises(error, match=message):
        make()
