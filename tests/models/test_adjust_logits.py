import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.ops import convert_to_numpy as numpy_of

import keras_tricks as kt
from keras_tricks.models import adjust_logits
from tests.models.classifiers import data, network

COUNTS = [60, 20, 6, 0]


@pytest.mark.parametrize("tau", [0.0, 1.0, 1.7])
def test_logits_are_adjusted_by_the_logarithms_of_the_frequencies(tau):
    model = network(layers.Dense(4, name="head"))
    adjusted = adjust_logits(model, COUNTS, tau)
    x, _ = data()
    shares = np.array([60, 20, 6, 1]) / 86  # an empty class counts as one example
    expected = numpy_of(model(x)).astype("float64") - tau * np.log(shares)
    np.testing.assert_allclose(adjusted(x), expected, rtol=1e-5, atol=1e-5)
    model.get_layer("head").bias.assign(np.zeros(4))
    np.testing.assert_allclose(numpy_of(adjusted(x) - model(x)), np.tile(-tau * np.log(shares), (24, 1)), rtol=1e-4)
    assert not adjusted.compiled


def test_the_adjustment_is_not_rounded_to_half_precision():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3, kernel_initializer="zeros", name="head")])
    model.get_layer("head").bias.assign([1000.0, 1000.0, 1000.0])
    adjusted = adjust_logits(model, [1001, 1000, 999])
    assert adjusted.output.dtype == "float32"
    assert len(np.unique(adjusted(data()[0])[0])) == 3


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_the_last_axis_is_the_classes_for_images_too(data_format):
    default = keras.config.image_data_format()
    keras.config.set_image_data_format(data_format)
    try:
        model = keras.Sequential([keras.Input((4, 5, 2)), layers.Dense(3)])
        adjusted = adjust_logits(model, [4, 2, 1])
        x = np.ones((2, 4, 5, 2), "float32")
        expected = numpy_of(model(x)) - np.log(np.array([4, 2, 1]) / 7)
        np.testing.assert_allclose(adjusted(x), expected, rtol=1e-5, atol=1e-6)
    finally:
        keras.config.set_image_data_format(default)


def test_an_adjusted_model_is_saved_in_plain_keras_and_exported(tmp_path):
    adjusted = adjust_logits(network(layers.Dense(4, name="head")), COUNTS)
    assert "keras_tricks" not in adjusted.to_json()
    adjusted.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x, _ = data()
    np.testing.assert_array_equal(loaded(x), numpy_of(adjusted(x)))
    with pytest.raises(ValueError, match="adjusted by `adjust_logits` already"):
        adjust_logits(loaded, COUNTS)
    adjusted.export(tmp_path / "export", verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "export"))
    np.testing.assert_allclose(exported.serve(x), adjusted(x, training=False), rtol=1e-5)


def test_counts_may_be_the_dataset_and_outputs_a_dict():
    inputs = {"image": keras.Input((6,), name="image")}
    model = keras.Model(inputs, {"logits": layers.Dense(3)(inputs["image"])})
    x, y = data()
    adjusted = adjust_logits(model, tf.data.Dataset.from_tensor_slices((x, y)))
    for_all = np.log(3)
    difference = adjusted({"image": x})["logits"] - model({"image": x})["logits"]
    np.testing.assert_allclose(difference, np.full((24, 3), for_all), rtol=1e-5)


def test_the_cosines_that_ldam_trains_are_not_taken_for_logits():
    model = network(kt.layers.NormalizedDense(3))
    model.compile("sgd", kt.losses.LDAM([3, 2, 1], scale=20))
    with pytest.raises(ValueError, match=r"LDAM.*20 times as large.*Rescaling\(20\)"):
        adjust_logits(model, [3, 2, 1])
    adjust_logits(keras.Model(model.input, layers.Rescaling(20)(model.output)), [3, 2, 1])


@pytest.mark.parametrize("loss", [kt.losses.BalancedSoftmax([3, 2, 1]), kt.losses.LogitAdjusted([3, 2, 1])])
def test_a_model_that_was_trained_with_an_adjusted_loss_is_not_adjusted_again(loss):
    model = network()
    model.compile("sgd", [loss])
    with pytest.raises(ValueError, match=f"trained with {type(loss).__name__}, which adjusts the"):
        adjust_logits(model, [3, 2, 1])


def test_counts_of_other_classes_or_no_counts_are_refused():
    with pytest.raises(ValueError, match="has 3 classes, and `class_counts` has 2"):
        adjust_logits(network(), [3, 2])
    with pytest.raises(ValueError, match="`class_counts` must be whole numbers"):
        adjust_logits(network(), [0.5, 0.2, 0.3])
