import json

import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import recall_score

import keras_tricks as kt

COUNTS = [500, 101, 100, 50, 20, 19, 5, 0]
GROUPS = {"many": [0, 1], "medium": [2, 3, 4], "few": [5, 6, 7]}


def examples(classes=8, size=200):
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, size)
    return labels, (random.normal(size=(size, classes)) + 2 * np.eye(classes)[labels]).astype("float32")


@pytest.mark.parametrize("group", GROUPS)
def test_it_is_the_mean_recall_of_the_groups_classes(group):
    labels, logits = examples()
    metric = kt.metrics.ShotAccuracy(COUNTS, group)
    recalls = recall_score(labels, logits.argmax(-1), average=None)
    assert float(metric(labels, logits)) == pytest.approx(recalls[GROUPS[group]].mean(), rel=1e-6)
    assert metric.name == f"{group}_shot_accuracy"


def test_bounds_can_be_set_and_belong_to_the_group_in_the_middle():
    labels, logits = examples(3)
    recalls = recall_score(labels, logits.argmax(-1), average=None)
    for group, classes in {"many": [0], "medium": [1], "few": [2]}.items():
        metric = kt.metrics.ShotAccuracy([11, 10, 9], group, many=10, few=10, name="shots")
        assert float(metric(labels, logits)) == pytest.approx(recalls[classes].mean(), rel=1e-6)
        assert metric.name == "shots"


def test_a_group_of_which_nothing_has_been_seen_has_no_value():
    labels, logits = examples()
    metric = kt.metrics.ShotAccuracy(COUNTS, "few")
    assert np.isnan(float(metric(labels[labels < 5], logits[labels < 5])))
    some = labels != 6  # only the classes that occur
    recalls = recall_score(labels[some], logits[some].argmax(-1), average=None, labels=[5, 7])
    assert float(metric(labels[some], logits[some])) == pytest.approx(recalls.mean(), rel=1e-6)


def test_counts_may_be_the_training_data_and_are_saved_as_numbers():
    train = tf.data.Dataset.from_tensor_slices((np.zeros(7), [0, 0, 0, 0, 1, 1, 2]))
    metric = kt.metrics.ShotAccuracy(train, "few", many=3, few=2)
    config = json.loads(json.dumps(metric.get_config()))
    assert config["class_counts"] == [4, 2, 1]
    again = kt.metrics.ShotAccuracy.from_config(config)
    assert again.get_config() == metric.get_config()
    np.testing.assert_array_equal(again.averaged, [False, False, True])


def test_a_group_without_classes_is_refused_with_the_counts():
    with pytest.raises(ValueError, match=r"fewer than 20 training examples: the counts are 30 to 500. Set the bounds"):
        kt.metrics.ShotAccuracy([500, 30], "few")
    with pytest.raises(ValueError, match="20 to 100 training"):
        kt.metrics.ShotAccuracy([500, 3], "medium")
    with pytest.raises(ValueError, match="more than 100 training"):
        kt.metrics.ShotAccuracy([50, 3], "many")


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"group": "some"}, ValueError),
        ({"class_counts": [0.5, 2]}, ValueError),
        ({"class_counts": [-1, 200]}, ValueError),
        ({"many": 10, "few": 20}, ValueError),
        ({"few": -1}, ValueError),
        ({"many": "100"}, TypeError),
    ],
    ids=str,
)
def test_impossible_values_are_refused(options, error):
    with pytest.raises(error, match="Received"):
        kt.metrics.ShotAccuracy(**{"class_counts": COUNTS, "group": "many", **options})
