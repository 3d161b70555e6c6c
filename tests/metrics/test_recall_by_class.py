import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.metrics import accuracy_score, precision_score, recall_score

import keras_tricks as kt
from tests import runs

COUNTS = [500, 120, 60, 8, 0]
CLASSES = len(COUNTS)


def examples(shape=(300,), seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, CLASSES, shape)
    return labels, (random.normal(size=(*shape, CLASSES)) + 2 * np.eye(CLASSES)[labels]).astype("float32")


def found(labels, predictions, counts=COUNTS, **options):
    return kt.metrics.recall_by_class(labels, predictions, counts, **options)


def assert_same(a, b):
    for name in ("recall", "precision", "support", "class_counts", "accuracy", "balanced_accuracy"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-6, err_msg=name)
    assert a.groups == pytest.approx(b.groups, rel=1e-6)


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
def test_the_figures_are_scikit_learns(weighted):
    labels, logits = examples()
    weights = np.random.default_rng(1).uniform(0.1, 3, 300) if weighted else None
    result = found(labels, logits, sample_weight=weights)
    predictions, options = logits.argmax(-1), {"average": None, "sample_weight": weights}
    recalls = recall_score(labels, predictions, **options)
    np.testing.assert_allclose(result.recall, recalls, rtol=1e-6)
    np.testing.assert_allclose(result.precision, precision_score(labels, predictions, **options), rtol=1e-6)
    np.testing.assert_allclose(result.support, np.bincount(labels, weights, CLASSES), rtol=1e-6)
    assert result.accuracy == pytest.approx(accuracy_score(labels, predictions, sample_weight=weights))
    assert result.balanced_accuracy == pytest.approx(recalls.mean())
    expected = {"many": recalls[:2].mean(), "medium": recalls[2], "few": recalls[3:].mean()}
    assert result.groups == pytest.approx(expected)


def test_the_groups_are_those_of_the_metrics():
    labels, logits = examples()
    result = found(labels, logits, many=60, few=9)
    assert set(result.groups) == {"many", "medium", "few"}
    for group, value in result.groups.items():
        metric = kt.metrics.ShotAccuracy(COUNTS, group, many=60, few=9)
        assert float(metric(labels, logits)) == pytest.approx(value)
    assert set(found(labels, logits, many=500, few=0).groups) == {"medium"}


@pytest.mark.parametrize("shape", [(CLASSES,), (40, CLASSES), (4, 3, 2)], ids=str)
def test_labels_and_predictions_of_every_form_give_the_same(shape):
    labels, logits = examples(shape)
    expected = found(labels.ravel(), logits.reshape(-1, CLASSES))
    probabilities = keras.ops.softmax(logits)
    scores = (100 * logits).astype("int32")
    for predictions in (logits, keras.ops.cast(logits, "float16"), probabilities, logits.argmax(-1), scores):
        assert_same(found(labels, predictions), expected)
    for y in (labels[..., None], labels.astype("float32"), np.eye(CLASSES)[labels], np.eye(CLASSES, dtype=int)[labels]):
        assert_same(found(y, logits), expected)
        assert_same(found(y, logits.argmax(-1)), expected)
    assert_same(found(labels, logits.argmax(-1)[..., None]), expected)
    one_hot = np.eye(CLASSES, dtype=int)
    assert_same(found(one_hot[labels], one_hot[logits.argmax(-1)]), expected)


@pytest.mark.parametrize(("replicas", "policy"), [(1, "float32"), (2, "mixed_bfloat16")])
def test_a_model_is_judged_on_shuffled_data_in_one_pass(replicas, policy):
    keras.config.set_dtype_policy(policy)
    x, labels = np.random.default_rng(0).normal(size=(50, 4)).astype("float32"), np.arange(50) % CLASSES
    weights = np.linspace(0.1, 1, 50)
    with runs.strategy_of(replicas).scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization(), keras.layers.Dense(CLASSES)])
    expected = found(labels, model.predict(x, verbose=0), sample_weight=weights)
    data = tf.data.Dataset.from_tensor_slices((x, labels, weights)).shuffle(50, seed=1)
    assert_same(kt.metrics.recall_by_class(model, data.batch(16), COUNTS), expected)

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 5

        def __getitem__(self, i):
            return tuple(a[10 * i : 10 * i + 10] for a in (x, labels, weights))

    assert_same(kt.metrics.recall_by_class(model, Batches(), COUNTS), expected)
    assert_same(kt.metrics.recall_by_class(model, list(data.batch(16)), COUNTS), expected)


def test_what_a_model_masks_does_not_count():
    x = np.random.default_rng(0).integers(0, 6, (8, 5))
    labels = np.where(x == 0, -1, x % CLASSES)
    model = keras.Sequential([keras.layers.Embedding(6, 4, mask_zero=True), keras.layers.Dense(CLASSES)])
    result = kt.metrics.recall_by_class(model, [(x, labels)], COUNTS)
    assert result.support.sum() == (x != 0).sum()
    assert result.support.dtype == "int64"
    assert_same(result, found(labels[x != 0], model.predict(x, verbose=0)[x != 0]))


def test_classes_that_do_not_occur_or_are_not_predicted_have_no_figure():
    result = found([0, 0, 1, 3], [0, 2, 0, 3])
    np.testing.assert_array_equal(result.recall, [0.5, 0, np.nan, 1, np.nan])
    np.testing.assert_array_equal(result.precision, [0.5, np.nan, 0, 1, np.nan])
    assert result.balanced_accuracy == pytest.approx(0.5)
    assert (result.groups["many"], result.groups["few"]) == (0.25, 1)
    assert np.isnan(result.groups["medium"])
    row = next(line for line in str(result).splitlines() if line.startswith("4 "))
    assert row.split() == ["4", "0", "few", "0", "-", "-"]


def test_the_table_has_the_frequent_classes_first_and_shortens_what_is_long():
    labels, logits = examples()
    names = ["an elephant with a name that is much too long", "bee", "cat", "dog", "emu"]
    lines = str(found(labels, logits, [8, 500, 60, 120, 0], class_names=names)).splitlines()
    assert [line.split()[0] for line in lines[1:6]] == ["bee", "dog", "cat", "an", "emu"]
    assert max(map(len, lines)) <= 90
    counts = np.arange(1000, 0, -1)
    everything = np.arange(1000)
    lines = str(found(everything, np.where(everything < 500, everything, 0), counts)).splitlines()
    assert len(lines) < 45
    assert [lines[1].split()[0], lines[31].split()[0]] == ["0", "999"]
    assert lines[16] == "... 970 more classes with a mean recall of 0.500 ..."


def test_the_picture_shows_every_class_and_the_groups_means(tmp_path):
    import matplotlib.image

    labels, logits = examples()
    results = {"plain": found(labels, logits), "worse": found(labels, logits + examples(seed=1)[1])}
    figure = kt.metrics.plot_recalls(results, tmp_path / "recalls.png")
    (axes,) = figure.axes
    marks = [line for line in axes.lines if line.get_linestyle() == "None"]
    assert len({(line.get_marker(), line.get_color()) for line in marks}) == 2
    for line, result in zip(marks, results.values(), strict=True):
        np.testing.assert_array_equal(line.get_xdata(), [500, 120, 60, 8, 1])  # the empty class, too, has a place
        np.testing.assert_array_equal(line.get_ydata(), result.recall)
        means = {other.get_ydata()[0] for other in axes.lines if other.get_color() == line.get_color()} - {line}
        assert set(result.groups.values()) <= means
    assert (axes.get_xscale(), len(axes.patches)) == ("log", 3)
    written = {text.get_text() for text in axes.texts}
    assert written >= {"many", "medium", "few", *"01234"}
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert (
        legend[0]
        == f"plain\naccuracy {results['plain'].accuracy:.3f}\nbalanced {results['plain'].balanced_accuracy:.3f}"
    )
    drawn, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert 0 <= drawn.x0 < drawn.x1 <= width
    assert 0 <= drawn.y0 < drawn.y1 <= height
    assert matplotlib.image.imread(tmp_path / "recalls.png").std() > 0.05


def test_names_at_the_same_place_are_written_as_one_and_many_are_not_written():
    figure = found([0, 1, 2], [0, 1, 0], [50, 50, 50]).plot()
    assert {text.get_text() for text in figure.axes[0].texts} == {"medium", "0, 1", "2"}
    figure = found(np.arange(40), np.arange(40), np.arange(40) + 1).plot()
    assert {text.get_text() for text in figure.axes[0].texts} == {"medium", "few"}


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'keras_tricks\[plot\]'"):
        found([0], [0]).plot()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 9], [0, 0]), "Labels must be whole numbers in 0..4"),
        (([0, 1], [0, 9]), "Predicted classes must be in 0..4. Received: 1 others, from 9 to 9"),
        (([0, 1], np.zeros((2, 3))), "for 5 classes"),
        (([0, 1], [0.0, 1.0]), "for 5 classes"),
        (([0, 1, 2], [0, 1]), "prediction for each label"),
        (([0, 1], np.full((2, 5), np.nan)), "has NaN"),
        (([], np.zeros((0, 5))), "no example"),
        (([0], [0], [0, 0]), "class_counts"),
        (([0], [0], COUNTS, ["a"]), "a name for each of the 5 classes"),
        (([0], [0], COUNTS, None, 10, 20), "`many` must be at least `few`"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(arguments, message):
    arguments = arguments if len(arguments) > 2 else (*arguments, COUNTS)
    with pytest.raises(ValueError, match=message):
        kt.metrics.recall_by_class(*arguments)


def test_data_that_does_not_suit_a_model_is_refused():
    x, y = np.zeros((4, 2), "float32"), np.zeros(4, int)
    inputs = keras.Input((2,))
    outputs = keras.layers.Dense(CLASSES)(inputs)
    model, two = keras.Model(inputs, outputs), keras.Model(inputs, [outputs, outputs])
    endless = tf.data.Dataset.from_tensor_slices((x, y)).batch(2).repeat()
    for arguments, error, message in (
        ((model, (x, y), COUNTS), TypeError, "iterable of batches"),
        ((model, x, COUNTS), TypeError, r"model.predict\(x\)"),
        ((model, [x], COUNTS), ValueError, "no labels"),
        ((model, endless, COUNTS), ValueError, "no end"),
        ((two, [(x, y)], COUNTS), TypeError, "one output"),
    ):
        with pytest.raises(error, match=message):
            kt.metrics.recall_by_class(*arguments)
    with pytest.raises(ValueError, match="weights come with the data"):
        kt.metrics.recall_by_class(model, [(x, y)], COUNTS, sample_weight=y)


def test_results_that_cannot_be_compared_are_refused():
    one, other = found([0], [0]), found([0], [0], [5, 4, 3, 2, 1])
    with pytest.raises(ValueError, match="same classes"):
        kt.metrics.plot_recalls({"a": one, "b": other})
    with pytest.raises(ValueError, match="same classes"):
        kt.metrics.plot_recalls({"a": one, "b": found([0], [0], many=50)})
    with pytest.raises(ValueError, match="1 to 7"):
        kt.metrics.plot_recalls({})
    with pytest.raises(TypeError, match="dictionary"):
        kt.metrics.plot_recalls([one])
