import re
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.ops import convert_to_numpy as numpy_of

import keras_tricks as kt
from keras_tricks.layers.ac_conv import ACConv2D
from keras_tricks.layers.extended_batch_normalization import ExtendedBatchNormalization
from keras_tricks.layers.recompute import Recompute
from keras_tricks.layers.rezero import ReZero, ReZeroAdd
from keras_tricks.models import convert
from tests import reference, runs

WS = {layers.Conv2D: "ws_conv"}


def randomized(model, seed=0):
    """All weights random, variances positive: a model that has been trained for a while."""
    random = np.random.default_rng(seed)
    for v in model.weights:
        value = random.normal(size=v.shape) * 0.3
        v.assign(np.abs(value) + 0.5 if "variance" in v.name else value)
    return model


def images(channels=3, size=8, seed=1):
    return np.random.default_rng(seed).normal(size=(2, size, size, channels)).astype("float32")


def conv(x, filters=4, size=3, **options):
    return layers.Conv2D(filters, size, padding="same", **options)(x)


def residual(order=(0, 1), **options):
    """Two convolutions and a residual sum, whose inputs come in the order given."""
    inputs = keras.Input((8, 8, 3))
    x = conv(inputs, name="stem")
    branch = conv(layers.ReLU()(conv(x, name="first", **options)), name="second")
    x = layers.Add(name="sum")([[x, branch][i] for i in order])
    return randomized(keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(x))))


def sequential(*inner, shape=(8, 8, 3)):
    return randomized(keras.Sequential([keras.Input(shape), *inner]))


def classes(model):
    return {layer.name: type(layer).__name__ for layer in model.layers}


def outputs(model, x, **options):
    return keras.tree.map_structure(numpy_of, model(x, **options))


# Weight standardisation


@pytest.mark.parametrize(
    ("layer", "shape", "name"),
    [
        (layers.Conv1D(4, 3, padding="causal", dilation_rate=2), (9, 3), "WSConv1D"),
        (layers.Conv2D(6, 3, groups=3, padding="same"), (8, 8, 3), "WSConv2D"),
        (layers.Conv3D(4, 3, use_bias=False), (5, 5, 5, 2), "WSConv3D"),
        (layers.DepthwiseConv2D(3, depth_multiplier=2), (8, 8, 3), "WSDepthwiseConv2D"),
        (layers.Dense(5, activation="tanh"), (7,), "WSDense"),
    ],
)
def test_kernel_and_bias_go_over_raw_and_the_output_is_that_of_the_standardized_kernel(layer, shape, name):
    model = sequential(layer, shape=shape)
    converted, report = convert(model, {type(layer): "ws_conv"})
    new = converted.layers[0]
    assert type(new).__name__ == name
    assert report.changed == ((layer.name, type(layer).__name__, name),)
    old = {v.path: numpy_of(v) for v in model.weights}
    for v in new.weights:
        np.testing.assert_array_equal(v, old[v.path] if v.name != "gain" else np.ones(v.shape))
    kernel = numpy_of(layer.kernel)
    axes = 2 if "Depthwise" in name else 1
    standardized = reference.standardized_kernel(kernel.reshape(*kernel.shape[:-axes], -1)).reshape(kernel.shape)
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    y = outputs(converted, x)
    layer.kernel.assign(standardized)
    np.testing.assert_allclose(y, outputs(model, x), rtol=1e-4, atol=1e-4)


def test_only_layers_of_exactly_the_class_are_changed():
    inner = [layers.DepthwiseConv2D(3), layers.SeparableConv2D(4, 3), layers.Conv2DTranspose(4, 3), layers.Conv2D(2, 3)]
    converted, report = convert(sequential(*inner), WS)
    assert [type(layer).__name__ for layer in converted.layers] == [
        "DepthwiseConv2D", "SeparableConv2D", "Conv2DTranspose", "WSConv2D",
    ]  # fmt: skip
    assert not report.kept


def test_a_kernel_of_one_weight_is_kept_with_the_reason():
    model = sequential(layers.Conv2D(4, 1, name="one"), layers.Conv2D(4, 1, name="four"), shape=(8, 8, 1))
    converted, report = convert(model, WS)
    assert classes(converted) == {"one": "Conv2D", "four": "WSConv2D"}
    assert report.kept[0][:2] == ("one", "Conv2D")
    assert "(1, 1, 1, 4) has one weight for each output unit" in report.kept[0][2]
    one = sequential(layers.DepthwiseConv2D(1, name="depth"))
    with pytest.raises(ValueError, match=r"nothing to change.*\n  depth: DepthwiseConv2D, its kernel of shape"):
        convert(one, {layers.DepthwiseConv2D: "ws_conv"})


def test_a_kernel_with_lora_and_one_that_is_quantized_are_kept():
    model = sequential(
        layers.Dense(4, name="lora"), layers.Dense(4, name="int8"), layers.Dense(4, name="plain"), shape=(3,)
    )
    model.get_layer("lora").enable_lora(2)
    model.get_layer("lora").lora_kernel_b.assign(np.ones((2, 4)))
    model.get_layer("int8").quantize("int8")
    converted, report = convert(model, {layers.Dense: "ws_conv"})
    assert [reason for *_, reason in report.kept] == ["its kernel has a LoRA addition", "its kernel is quantized"]
    x = np.ones((2, 3), "float32")
    for old, new in zip(model.layers[:2], converted.layers[:2], strict=True):
        np.testing.assert_allclose(new(x), old(x), rtol=1e-6)
        x = np.array(old(x))


# The other tricks


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False, "axis": 1}], ids=str)
def test_extended_batch_normalization_is_equal_at_inference(options):
    model = sequential(layers.Conv2D(4, 3), layers.BatchNormalization(**options))
    converted, _ = convert(model, {layers.BatchNormalization: "extended_batch_normalization"})
    new = converted.layers[1]
    assert type(new) is ExtendedBatchNormalization
    assert new.moving_variance.shape == ()
    np.testing.assert_allclose(new.moving_variance, numpy_of(model.layers[1].moving_variance).mean(), rtol=1e-6)
    np.testing.assert_allclose(outputs(converted, images()), outputs(model, images()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options", [{}, {"use_bias": False, "activation": "relu"}, {"strides": 2, "groups": 3}], ids=str
)
def test_an_asymmetric_convolution_is_equal_at_inference_and_all_its_branches_learn(options):
    model = sequential(layers.Conv2D(6, 3, padding="same", **options))
    converted, _ = convert(model, {layers.Conv2D: "ac_conv"})
    new = converted.layers[0]
    assert type(new) is ACConv2D
    np.testing.assert_array_equal(new.kernel, model.layers[0].kernel)
    np.testing.assert_allclose(outputs(converted, images()), outputs(model, images()), rtol=1e-4, atol=1e-5)
    before = {v.path: numpy_of(v) for v in converted.trainable_weights}
    converted.compile(sgd(), "mse")
    converted.fit(images(), images(6, 4 if "strides" in options else 8), epochs=2, verbose=0)
    assert all((before[v.path] != numpy_of(v)).any() for v in converted.trainable_weights)


def test_kernels_without_a_middle_are_kept_with_the_reason():
    sizes = {"a": 1, "b": 3, "c": 4, "d": (1, 5), "e": (3, 5)}
    model = sequential(*[layers.Conv2D(2, size, name=name, padding="same") for name, size in sizes.items()])
    converted, report = convert(model, {layers.Conv2D: "ac_conv"})
    assert [path for path, *_ in report.changed] == ["b", "e"]
    assert "size (1, 5) has no middle row and column" in report.kept[2][2]
    np.testing.assert_allclose(outputs(converted, images()), outputs(model, images()), rtol=1e-4, atol=1e-5)


def test_weights_of_a_wrapper_and_of_what_is_in_it_both_go_over():
    model = sequential(ReZero(layers.BatchNormalization()), layers.TimeDistributed(layers.BatchNormalization()))
    converted, _ = convert(model, {layers.BatchNormalization: "extended_batch_normalization"})
    assert [type(layer.layer) for layer in converted.layers] == [ExtendedBatchNormalization] * 2
    assert numpy_of(converted.layers[0].alpha) == numpy_of(model.layers[0].alpha) != 0
    np.testing.assert_allclose(outputs(converted, images()), outputs(model, images()), rtol=1e-4, atol=1e-5)


def test_batch_renormalization_is_kept():
    model = sequential(layers.BatchNormalization(renorm=True), layers.BatchNormalization())
    _, report = convert(model, {layers.BatchNormalization: "extended_batch_normalization"})
    assert len(report.changed) == 1
    assert "renorm=True" in report.kept[0][2]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_rezero_multiplies_the_branch_and_not_the_skip_connection(order):
    model = residual(order)
    converted, _ = convert(model, {layers.Add: "rezero"})
    new = converted.get_layer("sum")
    assert type(new) is ReZeroAdd
    x = images()
    stem = keras.Model(model.input, model.get_layer("stem").output)
    skip = model.get_layer("head")(layers.GlobalAveragePooling2D()(stem(x)))
    np.testing.assert_allclose(outputs(converted, x), skip, rtol=1e-4, atol=1e-5)  # alpha is 0
    new.alpha.assign(1.0)
    np.testing.assert_allclose(outputs(converted, x), outputs(model, x), rtol=1e-4, atol=1e-5)


def test_a_sum_that_is_no_residual_connection_is_kept_with_the_reason():
    inputs = keras.Input((8, 8, 3))
    x = conv(inputs)
    add = layers.Add(name="shared")
    y = add([x, add([x, conv(x)])])
    y = layers.Add(name="projection")([conv(y, size=1), conv(y)])
    y = layers.Add(name="three")([x, y, conv(y)])
    y = layers.Add(name="broadcast")([y, layers.GlobalAveragePooling2D(keepdims=True)(y)])
    y = layers.Add(name="itself")([y, y])
    model = randomized(keras.Model(inputs, layers.Add(name="residual")([conv(y), y])))
    converted, report = convert(model, {layers.Add: "rezero"})
    assert [path for path, *_ in report.changed] == ["residual"]
    reasons = {path: reason for path, _, reason in report.kept}
    assert "called 2 times" in reasons["shared"]
    assert "neither of its inputs" in reasons["projection"]
    assert "adds 3 tensors" in reasons["three"]
    assert "different shapes" in reasons["broadcast"]
    assert "neither of its inputs" in reasons["itself"]
    converted.get_layer("residual").alpha.assign(1.0)
    np.testing.assert_allclose(outputs(converted, images()), outputs(model, images()), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"nothing to change(.|\n)*projection: Add, neither"):
        convert(model, {layers.Add: "rezero"}, exclude="residual")


# Whole models


def test_mobilenet_is_equal_at_inference_with_extended_normalization_and_residual_sums_of_weight_one():
    model = randomized(keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), alpha=0.35, classes=3))
    tricks = {
        layers.BatchNormalization: "extended_batch_normalization",
        layers.Add: lambda layer: ReZeroAdd(alpha_initializer="ones", name=layer.name),
    }
    converted, report = convert(model, tricks)
    assert len(report.changed) == 52 + 10
    assert not report.kept
    np.testing.assert_allclose(
        outputs(converted, images(size=32)), outputs(model, images(size=32)), rtol=1e-3, atol=1e-5
    )
    _, report = convert(model, {layers.Conv2D: "ws_conv", layers.DepthwiseConv2D: "ws_conv"})
    assert len(report.changed) == 35 + 17


def test_resnet_is_converted_but_for_its_projection_shortcuts():
    model = keras.applications.ResNet50(weights=None, input_shape=(32, 32, 3), classes=3)
    converted, report = convert(model, {layers.Conv2D: "ws_conv", layers.Add: "rezero"}, exclude=["conv1_conv"])
    changed = [new for _, _, new in report.changed]
    assert (changed.count("WSConv2D"), changed.count("ReZeroAdd")) == (52, 12)
    assert [path for path, *_ in report.kept] == ["conv1_conv", *[f"conv{i}_block1_add" for i in (2, 3, 4, 5)]]
    assert report.parameters_after == converted.count_params() == model.count_params() + 26496 + 12


def test_the_original_model_is_unchanged_and_shares_nothing_with_the_copy():
    model = residual()
    model.compile(kt.LAMB(0.01), "mse")
    before, config, x = model.get_weights(), model.to_json(), images()
    y = outputs(model, x)
    converted, _ = convert(model, {**WS, layers.Add: "rezero"})
    randomized(converted, seed=5)
    assert model.to_json() == config
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(outputs(model, x), y)
    assert not {id(v) for v in model.variables} & {id(v) for v in converted.variables}
    assert model.compiled
    assert not converted.compiled


def test_layers_that_are_not_changed_keep_everything():
    inputs = keras.Input((8, 8, 3), name="pictures", batch_size=2)
    x = keras.ops.multiply(inputs, 2.0)
    x = conv(x, name="changed", dtype="mixed_bfloat16", kernel_regularizer="l2")
    x = layers.BatchNormalization(name="frozen", trainable=False, dtype="float32")(x, training=True)
    x = layers.Dropout(0.5, name="dropout")(x) + 1
    x = layers.Flatten()(x)
    x = layers.Dense(
        5, name="kept", kernel_regularizer=keras.regularizers.L1(0.5), bias_constraint="non_neg", dtype="mixed_bfloat16"
    )(x)
    model = randomized(keras.Model(inputs, layers.Dense(2, name="out")(x), name="whole"))
    model.get_layer("kept").bias.trainable = False
    model(images(), training=True)  # moves the seed of the dropout
    converted, _ = convert(model, WS)
    assert (converted.name, converted.input.name, converted.input.shape) == ("whole", "pictures", (2, 8, 8, 3))
    assert [layer.name for layer in converted.layers if "mul" not in layer.name] == [
        layer.name for layer in model.layers if "mul" not in layer.name
    ]
    by_path = {v.path: v for v in converted.weights}
    for v in model.weights:
        np.testing.assert_array_equal(by_path[v.path], v)
        assert (by_path[v.path].trainable, by_path[v.path].dtype) == (v.trainable, v.dtype)
    seed = [numpy_of(m.get_layer("dropout").variables[0]) for m in (model, converted)]
    assert (seed[0] == seed[1]).all()
    for name in ("frozen", "dropout", "kept", "out"):
        assert converted.get_layer(name).get_config() == model.get_layer(name).get_config()
    new = converted.get_layer("changed")
    assert (new.dtype_policy.name, new.kernel_regularizer.l2) == ("mixed_bfloat16", 0.01)
    assert set(by_path) - {v.path for v in model.weights} == {"changed/gain"}


def test_flags_set_by_hand_are_kept_on_models_and_in_layers_that_are_not_opened():
    backbone = keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(4, 3, name="a"), layers.Conv2D(4, 3, name="b")])
    inputs = keras.Input((3, 8, 8, 3))
    x = layers.TimeDistributed(backbone, name="each")(inputs)
    x = layers.Bidirectional(layers.LSTM(2, name="rnn"), name="both")(layers.Reshape((3, -1))(x))
    model = keras.Model(inputs, x)
    backbone.trainable = False
    backbone.get_layer("b").trainable = True
    model.get_layer("both").backward_layer.trainable = False
    converted, _ = convert(model, WS)
    assert [v.path for v in converted.trainable_weights if "gain" not in v.path] == [
        v.path for v in model.trainable_weights
    ]
    inner = converted.get_layer("each").layer
    assert [inner.trainable, *[layer.trainable for layer in inner.layers]] == [False, False, True]


def test_what_preprocessing_layers_learned_from_data_goes_over():
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(5, 3, (50, 4)).astype("float32"))
    lookup = layers.StringLookup(output_mode="multi_hot")
    lookup.adapt(np.array(["a", "b", "c"]))
    numbers, words = keras.Input((4,)), keras.Input((2,), dtype="string")
    bias = 3.0
    x = layers.Concatenate()([layers.Lambda(lambda t: t + bias)(normalization(numbers)), lookup(words)])
    model = keras.Model([numbers, words], layers.Dense(2)(x))
    converted, _ = convert(model, {layers.Dense: lambda layer: layers.Dense(2, use_bias=True)})
    data = [tf.ones((2, 4)), tf.constant([["a", "c"], ["x", "b"]])]
    np.testing.assert_allclose(converted(data), model(data), rtol=1e-6)


# Layers in several places and inside each other


def test_what_is_shared_stays_shared():
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    a, b = keras.Input((8, 8, 3), name="a"), keras.Input((8, 8, 3), name="b")
    block = keras.Sequential([keras.Input((8, 8, 3)), shared, layers.ReLU()], name="block")
    other = keras.Model(a, shared(conv(a, 3, name="own")), name="other")
    inputs = {"left": keras.Input((8, 8, 3), name="left"), "right": keras.Input((8, 8, 3), name="right")}
    left, right = block(inputs["left"]), block(shared(inputs["right"]))
    model = keras.Model(inputs, {"sum": left + other(right), "list": [left, right]}, name="whole")
    randomized(model)
    converted, report = convert(model, WS)
    assert {path for path, *_ in report.changed} == {"shared", "other/own"}
    assert len(converted.weights) == len(model.weights) + 2
    assert converted.get_layer("block").layers[0] is converted.get_layer("shared")
    assert converted.get_layer("other").layers[-1] is converted.get_layer("shared")
    x = {"left": images(seed=1), "right": images(seed=2)}
    # The same graph: equal again once the standardised kernels are put into the old model.
    for holder, layer in (("block", "shared"), ("other", "own")):
        old, new = (m.get_layer(holder).get_layer(layer) for m in (model, converted))
        old.kernel.assign(new.standardize(new.kernel))
    new, old = outputs(converted, x), outputs(model, x)
    assert new.keys() == old.keys()
    for a, b in zip(keras.tree.flatten(new), keras.tree.flatten(old), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_wrappers_of_any_layer_are_converted_inside_and_others_are_kept_with_the_reason():
    @keras.saving.register_keras_serializable(package="test_convert")
    class Block(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.parts = [layers.Conv2D(4, 3, padding="same", name="hidden")]

        def build(self, input_shape):
            self.parts[0].build(input_shape)

        def call(self, x):
            return self.parts[0](x)

        def compute_output_shape(self, input_shape):
            return input_shape

    inputs = keras.Input((2, 8, 8, 3))
    x = layers.TimeDistributed(layers.Conv2D(4, 3, name="inner"), name="each")(inputs)
    x = layers.TimeDistributed(Block(name="block"))(x)
    x = layers.Reshape((12, 6, 4))(x)
    x = ReZero(layers.Conv2D(4, 3, padding="same", name="branch"), name="residual")(x)
    x = Recompute(layers.Conv2D(4, 3, name="again"), name="recomputed")(x)
    model = randomized(keras.Model(inputs, layers.SpectralNormalization(layers.Conv2D(2, 3), name="spectral")(x)))
    converted, report = convert(model, WS)
    assert [path for path, *_ in report.changed] == ["each/inner", "residual/branch", "recomputed/again"]
    reasons = {path.split("/")[-1]: reason for path, _, reason in report.kept}
    assert reasons["hidden"] == "inside Block 'block', which `convert` does not open"
    assert "SpectralNormalization 'spectral'" in reasons[model.get_layer("spectral").layer.name]
    by_path = {v.path: numpy_of(v) for v in converted.variables}
    for v in model.variables:
        np.testing.assert_array_equal(by_path[v.path], v)
    assert type(converted.get_layer("each").layer) is kt.layers.WSConv2D


def test_a_layer_shared_with_one_that_is_not_opened_is_refused():
    inner = layers.Conv2D(3, 3, padding="same", name="tied")
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, inner(layers.SpectralNormalization(inner, name="closed")(conv(inputs, 3))))
    with pytest.raises(ValueError, match="is also used outside of 'closed', which `convert` does not open"):
        convert(model, WS)


# Functions, classes and exclusions


def test_a_class_and_a_function_give_the_new_layer():
    @keras.saving.register_keras_serializable(package="test_convert")
    class Doubled(layers.Conv2D):
        def call(self, x):
            return 2 * super().call(x)

    model = residual()
    converted, report = convert(model, {layers.Conv2D: Doubled})
    assert [new for *_, new in report.changed] == ["Doubled"] * 3
    x = images()
    np.testing.assert_allclose(converted.layers[1](x), 2 * model.layers[1](x), rtol=1e-6)


def test_a_function_may_wrap_the_copy_that_it_is_given():
    model = residual()
    wrap = lambda layer: ReZero(layer, "ones", name=layer.name) if layer.name == "first" else None  # noqa: E731
    converted, report = convert(model, {layers.Conv2D: wrap})
    assert report.changed == (("first", "Conv2D", "ReZero"),)
    assert [reason for *_, reason in report.kept] == ["kept by the function given"] * 2
    x = np.ones((1, 8, 8, 4), "float32")
    np.testing.assert_allclose(converted.get_layer("first")(x), x + model.get_layer("first")(x), rtol=1e-5)


def test_a_function_may_freeze_what_it_returns():
    def frozen(layer):
        return kt.layers.WSConv2D.from_config({**layer.get_config(), "trainable": layer.name != "first"})

    model = residual()
    model.get_layer("second").trainable = False
    converted, _ = convert(model, {layers.Conv2D: frozen})
    assert {v.path.split("/")[0] for v in converted.trainable_weights} == {"stem", "second", "head"}
    converted, _ = convert(model, WS)
    assert {v.path.split("/")[0] for v in converted.trainable_weights} == {"stem", "first", "head"}


@pytest.mark.parametrize(
    ("exclude", "left"),
    [
        ("first", {"net/first"}),
        (["^net/s", "^net/first$"], {"net/stem", "net/first", "net/second"}),
        ("net/", {"net/stem", "net/first", "net/second"}),
        (lambda m: m.get_layer("net"), {"net/stem", "net/first", "net/second"}),
        (lambda m: [m.get_layer("net").get_layer("stem")], {"net/stem"}),
        (keras.Model, {"net/stem", "net/first", "net/second"}),
        (layers.Conv2D, {"net/stem", "net/first", "net/second", "last"}),
        ([], set()),
    ],
    ids=["name", "patterns", "path", "model", "layer in it", "class of model", "class of layer", "nothing"],
)
def test_what_is_excluded_is_left(exclude, left):
    inner = residual()
    net = keras.Model(inner.input, inner.get_layer("sum").output, name="net")
    model = keras.Sequential([keras.Input((8, 8, 3)), net, layers.Conv2D(2, 3, name="last"), layers.Dense(2, name="d")])
    exclude = exclude(model) if callable(exclude) and not isinstance(exclude, type) else exclude
    _, report = convert(model, {**WS, layers.Dense: "ws_conv"}, exclude=exclude)
    assert {path for path, *_ in report.kept} == left
    assert {path for path, *_ in report.changed} == {"net/stem", "net/first", "net/second", "last", "d"} - left
    assert all("excluded by" in reason for *_, reason in report.kept)


def test_an_exclusion_that_matches_nothing_is_an_error_that_lists_the_paths():
    model = residual()
    for exclude in ("frist", "sum", layers.Dense, model.get_layer("head")):
        with pytest.raises(ValueError, match=r"matches none of the layers(.|\n)*\n  stem\n  first\n  second"):
            convert(model, WS, exclude=exclude)
    with pytest.raises(ValueError, match="invalid regular expression"):
        convert(model, WS, exclude="(")
    with pytest.raises(TypeError, match="Received an entry of type int"):
        convert(model, WS, exclude=[3])


# What is refused


def test_a_class_that_no_layer_has_is_an_error_that_lists_those_there_are():
    with pytest.raises(ValueError, match=r"no layer of the model is of class Conv1D(.|\n)*3 Conv2D"):
        convert(residual(), {layers.Conv1D: "ws_conv", **WS})


def test_nothing_left_to_change_is_an_error_that_lists_the_reasons():
    with pytest.raises(ValueError, match=r"nothing to change.*\n  stem: Conv2D, excluded by '\.'\n  first"):
        convert(residual(), WS, exclude=".")


@pytest.mark.parametrize(
    ("tricks", "error", "words"),
    [
        ({}, TypeError, "expects a dict"),
        (["ws_conv"], TypeError, "expects a dict"),
        ({"Conv2D": "ws_conv"}, TypeError, "classes of Keras layers"),
        ({layers.Conv2D: "wsconv"}, ValueError, "no trick called 'wsconv'; there are 'ws_conv'"),
        ({layers.Conv2D: "rezero"}, ValueError, "for layers of class Add. Received: Conv2D"),
        ({layers.Conv2D: 3}, TypeError, "Received for Conv2D: 3"),
        ({layers.Conv2D: layers.ReLU()}, TypeError, "functions"),
        ({layers.Conv2D: layers.Dense}, ValueError, "Dense cannot be made from the config of Conv2D 'stem'"),
        ({layers.Conv2D: Recompute}, ValueError, "Recompute cannot be made from the config of Conv2D 'stem'"),
        ({layers.Conv2D: lambda layer: "no"}, TypeError, "has to return a Keras layer"),
    ],
    ids=["empty", "list", "name as key", "unknown", "other class", "number", "layer", "config", "wrapper", "no layer"],
)
def test_tricks_that_make_no_sense_are_refused(tricks, error, words):
    with pytest.raises(error, match=re.escape(words)):
        convert(residual(), tricks)


class OwnConstructor(keras.Model):
    def __init__(self, filters, **kwargs):
        inputs = keras.Input((8, 8, 3))
        super().__init__(inputs, conv(inputs, filters), **kwargs)


class OwnStep(keras.Model):
    """Functional, with a method of its own."""

    def train_step(self, data):
        return {"own": keras.ops.zeros(())}


@keras.saving.register_keras_serializable(package="test_convert")
class Backbone(keras.Model):
    """As model zoos have them: a constructor of its own, and its inputs at hand."""

    def __init__(self, filters=4, **kwargs):
        inputs = {"images": keras.Input((8, 8, 3), name="images"), "scale": keras.Input((4,), name="scale")}
        x = layers.GlobalAveragePooling2D()(conv(inputs["images"], filters, name="body"))
        super().__init__(inputs, layers.Dense(4, name="last")(x * inputs["scale"]), **kwargs)
        self.filters = filters

    def get_config(self):
        return {"filters": self.filters, "name": self.name}


HEADS = {
    "on a call": lambda b: layers.Dense(6, name="head")(b(b.input)),
    "on its output": lambda b: layers.Dense(6, name="head")(b.output),
    "on a model around it": lambda b: layers.Dense(6, name="head")(
        keras.Model(b.input, b(b.input), name="around")(b.input)
    ),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_head_on_the_own_inputs_of_a_backbone_with_a_constructor_of_its_own(head, tmp_path):
    backbone = Backbone()
    model = randomized(keras.Model(backbone.input, HEADS[head](backbone)))
    converted, report = convert(model, {layers.Dense: lambda dense: Recompute(dense, name=dense.name)})
    kept = {path: reason for path, _, reason in report.kept}
    opened = head == "on its output"
    assert [path for path, *_ in report.changed] == ["last", "head"][1 - opened :]
    assert len(kept) == 1 - opened
    assert all("build on its `output`" in reason for reason in kept.values())
    x = {"images": images(), "scale": np.full((2, 4), 2.0, "float32")}
    np.testing.assert_allclose(outputs(converted, x), outputs(model, x), rtol=1e-6)
    assert not {id(v) for v in converted.weights} & {id(v) for v in model.weights}
    converted.save(tmp_path / "m.keras")
    np.testing.assert_array_equal(outputs(keras.models.load_model(tmp_path / "m.keras"), x), outputs(converted, x))


def test_a_layer_that_has_no_config_is_refused_with_what_to_do():
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, conv(OwnConstructor(4, name="own")(inputs)))
    with pytest.raises(ValueError, match=r"OwnConstructor 'own' cannot be made from its config.*get_config"):
        convert(model, WS)


def test_a_functional_model_with_methods_of_its_own_keeps_its_class():
    inputs = keras.Input((8, 8, 3))
    converted, _ = convert(OwnStep(inputs, conv(inputs)), WS)
    assert isinstance(converted, OwnStep)
    assert converted.train_step(None).keys() == {"own"}


# Afterwards


def test_the_report_reads_well():
    _, report = convert(residual(), {**WS, layers.Add: "rezero"}, exclude="stem")
    assert str(report) == textwrap.dedent("""\
        3 layers changed, 1 kept; 423 parameters before, 432 after.
        changed:
          first: Conv2D -> WSConv2D
          second: Conv2D -> WSConv2D
          sum: Add -> ReZeroAdd
        kept:
          stem: Conv2D, excluded by 'stem'""")


EVERYTHING = {
    layers.Conv2D: "ws_conv",
    layers.Add: "rezero",
    layers.BatchNormalization: "extended_batch_normalization",
}


def network():
    block_input = keras.Input((6, 6, 4))
    branch = layers.BatchNormalization(momentum=0.5)(conv(block_input))
    block = keras.Model(block_input, layers.Add()([branch, block_input]), name="block")
    inputs = keras.Input((6, 6, 1))
    x = layers.Flatten()(block(block(conv(inputs))))
    return convert(keras.Model(inputs, layers.Dense(3, dtype="float32")(x)), EVERYTHING)[0]


def sgd():
    return keras.optimizers.SGD(0.1)


def test_training_under_xla_is_the_same():
    runs.assert_same_weights(runs.train(sgd, network=network), runs.train(sgd, "xla", network=network), 2e-5)


def test_a_model_made_under_a_strategy_is_copied_under_it():
    strategy = runs.strategy_of(2)
    with strategy.scope():
        model = residual()
    converted, _ = convert(model, WS)
    assert converted.distribute_strategy is strategy
    assert len(converted.weights[0].value.values) == 2


def test_replicas_train_as_one_device_does():
    def without_statistics():  # those of two half batches are others
        inputs = keras.Input((6, 6, 1))
        x = conv(inputs)
        x = layers.Flatten()(layers.Add()([x, conv(x)]))
        return convert(keras.Model(inputs, layers.Dense(3)(x)), {**WS, layers.Add: "rezero"})[0]

    one, two = (runs.train(sgd, "graph", n, network=without_statistics) for n in (1, 2))
    runs.assert_same_weights(one, two, 2e-5)


def test_trained_under_mixed_precision_saved_and_loaded_it_is_the_same(tmp_path):
    run = runs.train(lambda: kt.LAMB(0.01), precision="mixed_float16", network=network, epochs=1)
    assert run.model.layers[1].compute_dtype == "float16"
    assert np.isfinite(run.losses).all()
    run.model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert [v.path for v in loaded.weights] == [v.path for v in run.model.weights]
    np.testing.assert_array_equal(loaded(runs.images()[0]), run.model(runs.images()[0]))


def test_on_jax_without_tensorflow_it_gives_the_same_model():
    code = """
        import keras, numpy as np
        from keras import layers
        from keras_tricks.models.convert import convert
        inputs = keras.Input((4, 4, 1))
        x = layers.Conv2D(2, 3, padding="same")(inputs)
        x = layers.Add()([layers.BatchNormalization()(layers.Dropout(0.5)(x)), x])
        model = keras.Model(inputs, x)
        model.set_weights([np.linspace(0.5, 1, w.size).reshape(w.shape) ** 2 for w in model.get_weights()])
        tricks = {
            layers.Conv2D: "ws_conv", layers.BatchNormalization: "extended_batch_normalization", layers.Add: "rezero"
        }
        converted, report = convert(model, tricks)
        converted.layers[-1].alpha.assign(0.5)
        outputs = converted(np.arange(16.0).reshape(1, 4, 4, 1))
        values = [type(layer).__name__ for layer in converted.layers]
        values += [f"{v:.4f}" for v in keras.ops.convert_to_numpy(outputs).ravel()]
        """
    code = textwrap.dedent(code)
    there = runs.on_jax(f"import sys; sys.modules['tensorflow'] = None\n{code}\nprint(*values)").split()
    here = {}
    exec(code, here)
    assert here["values"][:5] == ["InputLayer", "WSConv2D", "Dropout", "ExtendedBatchNormalization", "ReZeroAdd"]
    assert there[:5] == here["values"][:5]
    np.testing.assert_allclose(*(np.array(v[5:], float) for v in (there, here["values"])), atol=1e-3)
