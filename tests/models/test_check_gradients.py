import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

import keras_tricks as kt
from keras_tricks.models import check_gradients
from tests import runs, zoo

X = np.random.default_rng(0).normal(size=(3, 6))


def around(*inner):
    """A network with these layers in its middle."""
    keras.utils.set_random_seed(0)
    return keras.Sequential([keras.Input((6,)), layers.Dense(5, "tanh", name="first"), *inner, layers.Dense(3)])


@tf.custom_gradient
def half_a_square(x):
    return x * x, lambda upstream: upstream * x  # a factor of 2 is missing


class HalfASquare(layers.Layer):
    def call(self, x):
        return half_a_square(x)


class ThroughNumPy(layers.Layer):
    def call(self, x):
        return tf.ensure_shape(tf.numpy_function(np.tanh, [x], x.dtype), x.shape) + 0 * x


class Stopped(layers.Layer):
    """The weight has a gradient through one of its two uses only."""

    def build(self, shape):
        self.gain = self.add_weight(shape=(shape[-1],), initializer="ones", name="gain")

    def call(self, x):
        return x * self.gain * ops.stop_gradient(self.gain)


class InFloat32(layers.Layer):
    def call(self, x):
        return ops.tanh(ops.cast(x, "float32"))


class Holder(layers.Layer):
    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def call(self, x):
        return 2 * self.inner(x)


def test_a_correct_model_has_equal_gradients_to_many_digits():
    model = around(layers.LayerNormalization(), layers.ReLU(), kt.layers.WSDense(4, "gelu"))
    report = check_gradients(model, X)
    assert not report.wrong, report
    assert max(check.error for check in report.checks) < 1e-6
    assert {check.layer for check in report.checks} > {layer.name for layer in model.layers}
    assert "all gradients are right" in str(report)


@pytest.mark.parametrize("make", [HalfASquare, ThroughNumPy, Stopped])
def test_the_layer_that_is_wrong_is_named_and_no_other(make):
    report = check_gradients(around(make(name="wrong")), X)
    assert {check.layer for check in report.wrong} == {"wrong", "the whole model"}
    tensor = "gain" if make is Stopped else "input 0"
    (check,) = (check for check in report.wrong if check.layer == "wrong")
    assert check.tensor.endswith(tensor)
    assert check.error > 0.4
    assert f"wrong, {check.tensor}: automatic {check.automatic:.6g}, numerical" in str(report)


def test_of_layers_inside_each_other_the_innermost_is_named():
    report = check_gradients(around(Holder(HalfASquare(name="wrong"), name="holder")), X)
    assert {check.layer for check in report.wrong} == {"holder/wrong", "the whole model"}


def test_what_the_model_does_between_its_layers_is_checked_by_the_whole():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.one, self.two = layers.Dense(4), layers.Dense(2)

        def call(self, x):
            return self.two(ops.stop_gradient(self.one(x)))

    model = Model()
    model(X)
    assert {check.layer for check in check_gradients(model, X).wrong} == {"the whole model"}


def test_a_layer_that_computes_in_float32_is_right_as_far_as_that_goes():
    report = check_gradients(around(InFloat32(name="coarse")), X)
    assert not report.wrong, report
    assert any(check.is_coarse and check.layer == "coarse" for check in report.checks)
    assert "right with a large step only" in str(report)


def test_corners_are_left_out():
    x = np.array([[0.0, 0.0, 1.0, -1.0]])
    model = keras.Sequential([keras.Input((4,)), layers.ReLU()])
    (check,) = check_gradients(model, x).checks
    assert (check.entries, check.kinks, check.is_right) == (2, 2, True)


def test_the_loss_is_checked_too():
    def wrong_loss(y, p):
        return ops.mean(half_a_square(p - y), axis=-1)

    for loss, is_right in (
        (keras.losses.MeanSquaredError(), True),
        (wrong_loss, False),
        (kt.losses.SparseFocal(2), True),
    ):
        model = around()
        model.compile("sgd", loss)
        y = np.zeros(3) if isinstance(loss, kt.losses.SparseFocal) else np.ones((3, 3))
        report = check_gradients(model, X, y)
        assert "the loss" in {check.layer for check in report.checks}
        assert bool(report.wrong) != is_right, report


@pytest.mark.parametrize("precision", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_in_mixed_precision_is_checked_in_float64_all_the_same(precision):
    keras.config.set_dtype_policy(precision)
    model = around(layers.BatchNormalization(), kt.layers.Recompute(layers.Dense(4, "gelu")))
    report = check_gradients(model, X, training=True)
    assert max(check.error for check in report.checks) < 1e-5
    assert not any(check.is_coarse for check in report.checks), report
    assert {layer.compute_dtype for layer in model.layers} == {precision.removeprefix("mixed_")}


def test_nothing_of_the_model_changes():
    model = around(layers.Dropout(0.5, seed=1), layers.BatchNormalization())
    model.compile("adam", "mse")
    model.fit(X, np.ones((3, 3)), verbose=0)
    before = [ops.convert_to_numpy(v) for v in (*model.variables, *model.optimizer.variables)]
    check_gradients(model, X, training=True)
    for v, value in zip((*model.variables, *model.optimizer.variables), before, strict=True):
        np.testing.assert_array_equal(ops.convert_to_numpy(v), value)
        assert keras.backend.standardize_dtype(v.dtype) == value.dtype
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}
    assert not any("call" in vars(layer) for layer in model.layers)
    with pytest.raises(Exception, match="shape"):
        check_gradients(model, np.ones((3, 5)))
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}


QUICK = ("residual_cnn", "subclassed", "low_rank_adaptation")
NETWORKS = [n for n in zoo.select(without={zoo.NOT_FOR_XLA}) if n.name not in ("channels_first", "quantized_int8")]


@pytest.mark.parametrize("network", [n if n.name in QUICK else runs.slow(n) for n in NETWORKS], ids=str)
def test_real_networks_have_right_gradients(network):
    model = network.compiled(lambda: keras.optimizers.SGD(0.1))
    x = keras.tree.map_structure(lambda array: array[:2], zoo.arrays(network)["x"])
    if not model.built:
        model(x)
    report = check_gradients(model, x, entries=2, training=True)
    assert not report.wrong, report
    assert len(report.checks) > 5


def test_what_cannot_be_checked_is_refused():
    with pytest.raises(TypeError, match=r"expects a keras.Model. Received: 3"):
        check_gradients(3, X)
    with pytest.raises(ValueError, match="is not built"):
        check_gradients(keras.Sequential([layers.Dense(2)]), X)
    with pytest.raises(ValueError, match="Received: a model that is not compiled"):
        check_gradients(around(), X, np.ones((3, 3)))
    with pytest.raises(ValueError, match="`entries`"):
        check_gradients(around(), X, entries=0)
    model = around()
    model.layers[0].quantize("int8")
    with pytest.raises(ValueError, match="is quantized"):
        check_gradients(model, X)


@pytest.mark.slow
def test_other_backends_are_told_why_not():
    code = """
        import json, keras, numpy as np, keras_tricks as kt
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, "tanh")])
        try:
            kt.models.check_gradients(model, np.ones((2, 4)))
        except RuntimeError as error:
            print(json.dumps(str(error)))
        """
    assert "which Keras does on TensorFlow alone; this is jax" in json.loads(runs.on_jax(code))
