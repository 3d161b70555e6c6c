"""Networks that end in a softmax or sigmoid, whose losses work on logits."""

import contextlib
import json
import re
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_tricks as kt
from tests import runs

HEADS = {
    "softmax": lambda: [layers.Dense(3, activation="softmax")],
    "Activation": lambda: [layers.Dense(3), layers.Activation("softmax")],
    "Softmax": lambda: [layers.Dense(3), layers.Softmax()],
    "float32": lambda: [layers.Dense(3), layers.Activation("softmax", dtype="float32")],
    "inside": lambda: [keras.Sequential([keras.Input((5,)), layers.Dense(3, activation="softmax")])],
    "sigmoid": lambda: [layers.Dense(3, activation="sigmoid")],
    "reshaped": lambda: [layers.Dense(3), layers.Softmax(), layers.Reshape((3, 1)), layers.Reshape((3,))],
}
LOSSES = (
    kt.losses.BalancedSoftmax([30, 20, 10]),
    kt.losses.SparseFocal(),
    kt.losses.LDAM([30, 20, 10], scale=2.0),
    kt.losses.ClassBalanced([30, 20, 10], base="sigmoid"),
)


@contextlib.contextmanager
def warned(match):
    """As `pytest.warns`, which would also raise TensorFlow's own deprecations that the configuration ignores."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
    assert any(re.search(match, str(warning.message)) for warning in seen)


def trained(head, mode="graph", replicas=1, precision="float32", loss=LOSSES[0]):
    def network():
        return keras.Sequential([keras.Input((5,)), layers.Dense(5, activation="tanh"), *head()])

    random = np.random.default_rng(0)
    data = random.normal(size=(22, 5)).astype("float32"), random.integers(0, 3, 22)
    sgd = keras.optimizers.SGD
    return runs.train(sgd, mode, replicas, precision, epochs=1, network=network, data=data, loss=lambda: loss)


@pytest.mark.parametrize(
    ("mode", "replicas", "precision"),
    [
        ("graph", 1, "float32"),
        ("graph", 2, "mixed_bfloat16"),
        runs.slow("xla", 1, "float32"),
        runs.slow("xla", 2, "float32"),
        runs.slow("xla", 2, "mixed_bfloat16"),
    ],
)
@pytest.mark.parametrize("head", [h if h in ("softmax", "sigmoid") else runs.slow(h) for h in HEADS if h != "reshaped"])
def test_the_logits_behind_the_last_activation_are_found_and_said(head, mode, replicas, precision):
    plain = trained(lambda: [layers.Dense(3)], mode, replicas, precision)
    with warned("BalancedSoftmax works on logits, but the outputs come from a s.*Leave"):
        found = trained(HEADS[head], mode, replicas, precision)
    runs.assert_same_weights(plain, found, 0)
    assert plain.losses == found.losses


def test_probabilities_are_recognised_where_their_logits_are_out_of_reach():
    plain = trained(lambda: [layers.Dense(3)])
    runs.assert_same_weights(plain, trained(HEADS["reshaped"]), 1e-6)
    with warned("are probabilities, with a sum of 1. Their logarithm is used"):
        runs.assert_same_weights(plain, trained(HEADS["softmax"], "eager"), 1e-6)


@pytest.mark.filterwarnings("ignore:.*works on logits")
@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.name)
def test_probabilities_give_the_loss_of_the_logits_compiled_or_not(loss):
    logits, labels = 3 * np.random.default_rng(0).normal(size=(8, 3)).astype("float32"), np.arange(8) % 3
    if loss.applies == "Sigmoid":  # softmax's probabilities are taken for those of each class
        logits = np.log(keras.ops.softmax(logits)) - np.log1p(-keras.ops.softmax(logits))
        probabilities = keras.ops.sigmoid(logits)
    else:
        probabilities = keras.ops.softmax(logits)
    expected = loss(labels, logits)
    inside = tf.function(lambda x: x + 0.0)
    for found in (
        loss(labels, probabilities),
        tf.function(lambda: loss(labels, inside(probabilities)))(),
        tf.function(lambda: loss(labels, inside(probabilities)), jit_compile=True)(),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_masked_places_need_not_be_probabilities():
    logits, labels = (
        np.random.default_rng(0).normal(size=(2, 3, 3)).astype("float32"),
        np.array([[0, 1, -1], [2, 1, 0]]),
    )
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(logits)) * (labels >= 0)[..., None]
    weights = np.float32(labels >= 0)
    for loss in LOSSES[:3]:
        with warned("are probabilities"):
            found = loss(labels, probabilities, sample_weight=weights)
        np.testing.assert_allclose(found, loss(labels, logits, sample_weight=weights), rtol=1e-5)


def test_the_mask_stays_with_the_logits():
    @tf.function
    def masked(activation):
        x = layers.Masking()(tf.constant([[[1.0, 2.0], [3.0, 1.0], [0.0, 0.0]]]))
        return LOSSES[1](tf.constant([[0, 1, -1]]), layers.Activation(activation)(x))

    plain = masked("linear")
    with warned("softmax"):
        np.testing.assert_allclose(masked("softmax"), plain, rtol=1e-6)


def test_a_softmax_over_another_axis_is_refused():
    with pytest.raises(ValueError, match="softmax over another axis than the last"):
        tf.function(lambda: LOSSES[1](tf.zeros((2, 3), "int32"), keras.ops.softmax(tf.ones((2, 3, 4)), axis=1)))()


def test_a_sigmoid_that_only_its_values_show_is_warned_of():
    outputs = keras.ops.sigmoid(np.random.default_rng(0).normal(size=(8, 3)))
    with warned("all between 0 and 1, as a sigmoid makes them"):
        LOSSES[0](np.zeros(8), outputs)


@pytest.mark.slow
def test_on_jax_probabilities_give_the_loss_of_the_logits_compiled_or_not():
    code = """
        import json, warnings
        import jax, keras, numpy as np
        import keras_tricks as kt

        warnings.simplefilter("ignore")
        logits, labels = np.random.default_rng(0).normal(size=(8, 3)).astype("float32"), np.arange(8) % 3
        loss = kt.losses.BalancedSoftmax([30, 20, 10])
        compiled = jax.jit(lambda x: loss(labels, x))
        p = keras.ops.softmax(logits)
        print(json.dumps([float(f(x)) for f in (lambda x: loss(labels, x), compiled) for x in (logits, p)]))
        """
    found = json.loads(runs.on_jax(code))
    np.testing.assert_allclose(found, found[0], rtol=1e-5)


@pytest.mark.parametrize("make", [lambda: LOSSES[1], lambda: kt.metrics.BalancedAccuracy(3)], ids=["loss", "metric"])
@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"a": [0]}, r"must be one tensor.*a dict of \['a'\]"),
        (tf.ragged.constant([[0], [1, 2]]), "must be dense: pad ragged ones"),
        (np.array(["cat", "dog"]), "Map strings to whole numbers first"),
    ],
    ids=["dict", "ragged", "strings"],
)
def test_labels_that_are_no_numbers_are_refused(make, labels, message):
    with pytest.raises(TypeError, match=message):
        make()(labels, np.random.default_rng(0).normal(size=(2, 3)))
