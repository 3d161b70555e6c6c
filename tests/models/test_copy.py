"""Copies of layers that are more than their config and variables."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import keras_tricks as kt

OPERATIONS = {
    "convert": lambda model, x: kt.convert(model, {layers.Dense: "ws_conv"}, exclude="^last$")[0],
    "fuse": lambda model, x: kt.fuse(model, probe=x),
    "tau_normalize": lambda model, x: kt.models.tau_normalize(model),
}


def same_before_the_last_layers(operation, first, x, shape, **options):
    model = keras.Sequential([keras.Input(shape, **options), first, layers.Dense(3), layers.Dense(3, name="last")])
    copy = OPERATIONS[operation](model, x)
    new = next(layer for layer in copy.layers if layer.name == first.name)
    assert new is not first
    np.testing.assert_array_equal(new(x), first(x))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_normalisation_inside_a_wrapper_has_its_statistics(operation):
    x = np.random.default_rng(0).normal(3.0, 2.0, size=(2, 5, 4)).astype("float32")
    normalization = layers.Normalization()
    normalization.adapt(x[0])
    same_before_the_last_layers(operation, layers.TimeDistributed(normalization, name="first"), x, (5, 4))


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("mode", ["multi_hot", "tf_idf"])
def test_vocabularies_go_over_with_the_weights_of_words(operation, mode):
    words = layers.TextVectorization(output_mode=mode, name="first")
    words.adapt(np.array([["a b b"], ["c a a"], ["a"]]))
    same_before_the_last_layers(operation, words, tf.constant([["a b"], ["c c"]]), (1,), dtype="string")
