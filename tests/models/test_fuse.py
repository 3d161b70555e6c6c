import subprocess
import sys
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
from keras_tricks.models import fuse
from tests import runs


def randomized(model, seed=0):
    """Gives all weights random values, as after training: no mean is 0, no variance 1, no alpha 0."""
    random = np.random.default_rng(seed)
    for v in model.variables:
        if "variance" in v.name:
            v.assign(random.uniform(0.3, 2, v.shape))
        elif "kernel" in v.name:
            v.assign(random.normal(size=v.shape) / np.sqrt(np.prod(v.shape[:-1])))
        elif "seed" not in v.name:
            v.assign(random.uniform(0.2, 1.5, v.shape) * random.choice([-1, 1], v.shape))
    return model


def sequential(shape, *stack):
    return randomized(keras.Sequential([keras.Input(shape), *stack]))


def kinds(model):
    return [type(layer).__name__ for layer in model.layers[1:]]


def inputs(model, batch=3, seed=5):
    return np.random.default_rng(seed).normal(size=(batch, *model.inputs[0].shape[1:])).astype("float32")


def assert_same(model, fused, *x, tolerance=1e-5):
    for a, b in zip(*(keras.tree.flatten(m(*(x or [inputs(model)]))) for m in (model, fused)), strict=True):
        a, b = np.array(a, "float64"), np.array(b, "float64")
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * np.abs(a).max())
        assert np.abs(a).max() > 0.01


CONVOLUTIONS = {
    "Conv1D": ((9, 4), lambda **k: layers.Conv1D(6, 3, padding="causal", **k)),
    "Conv2D": ((7, 8, 4), lambda **k: layers.Conv2D(6, 3, strides=2, padding="same", **k)),
    "Conv2D in groups": ((7, 8, 4), lambda **k: layers.Conv2D(6, 3, groups=2, **k)),
    "Conv2D dilated": ((7, 8, 4), lambda **k: layers.Conv2D(6, 2, dilation_rate=2, **k)),
    "Conv3D": ((4, 5, 5, 2), lambda **k: layers.Conv3D(3, 2, **k)),
    "Conv1DTranspose": ((5, 4), lambda **k: layers.Conv1DTranspose(6, 3, strides=2, **k)),
    "Conv2DTranspose": ((5, 5, 4), lambda **k: layers.Conv2DTranspose(6, 3, strides=2, padding="same", **k)),
    "Conv3DTranspose": ((3, 3, 3, 2), lambda **k: layers.Conv3DTranspose(4, 2, **k)),
    "DepthwiseConv1D": ((8, 4), lambda **k: layers.DepthwiseConv1D(3, depth_multiplier=2, **k)),
    "DepthwiseConv2D": ((7, 7, 4), lambda **k: layers.DepthwiseConv2D(3, depth_multiplier=2, **k)),
    "SeparableConv1D": ((8, 4), lambda **k: layers.SeparableConv1D(6, 3, depth_multiplier=2, **k)),
    "SeparableConv2D": ((7, 7, 4), lambda **k: layers.SeparableConv2D(6, 3, **k)),
    "Dense": ((5,), lambda **k: layers.Dense(6, **k)),
    "Dense on images": ((3, 4, 5), lambda **k: layers.Dense(6, **k)),
    "BatchNormalization": ((3, 4), lambda use_bias: layers.BatchNormalization(scale=use_bias, center=use_bias)),
}


@pytest.mark.parametrize("use_bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_normalisation_folds_into_the_linear_layer_before_it(name, use_bias):
    shape, make = CONVOLUTIONS[name]
    model = sequential(shape, make(use_bias=use_bias), layers.BatchNormalization(scale=not use_bias), layers.ReLU())
    fused, report = fuse(model, return_report=True)
    assert kinds(fused) == [type(model.layers[0]).__name__, "ReLU"]
    assert fused.layers[1].name == model.layers[0].name
    assert report.relative_difference < 1e-5
    assert_same(model, fused)


TRICKS = {
    "ACConv2D": lambda: ACConv2D(4, 3, strides=2, padding="same", activation="relu"),
    "WSConv2D": lambda: kt.layers.WSConv2D(4, 3, activation="relu"),
    "WSDepthwiseConv2D": lambda: kt.layers.WSDepthwiseConv2D(3, padding="same", strides=2),
    "WSDense": lambda: kt.layers.WSDense(4),
    "ExtendedBatchNormalization": lambda: ExtendedBatchNormalization(),
    "ScaledActivation": lambda: kt.layers.ScaledActivation("silu"),
    "NormalizedDense": lambda: kt.layers.NormalizedDense(4, scale=16.0),
    "ReZero": lambda: kt.layers.ReZero(layers.Dense(4)),
    "ReZero of a nonlinear layer": lambda: kt.layers.ReZero(layers.Dense(4, activation="tanh")),
    "Recompute": lambda: Recompute(keras.Sequential([layers.Dense(4), layers.BatchNormalization()])),
    "nested": lambda: Recompute(kt.layers.ReZero(keras.Sequential([layers.Dropout(0.5), kt.layers.WSDense(4)]))),
}


@pytest.mark.parametrize("name", TRICKS)
def test_tricks_become_plain_keras_layers(name):
    model = sequential((6, 6, 4), TRICKS[name]())
    before = [numpy_of(v) for v in model.variables]
    fused, report = fuse(model, return_report=True)
    assert all(type(layer).__module__.startswith("keras.") for layer in fused.layers)
    assert any(model.layers[0].name in what for what, _ in report.folded)
    assert_same(model, fused)
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(numpy_of(v), value)


@pytest.mark.parametrize("conv2d", [kt.layers.WSConv2D, ACConv2D])
def test_convolution_that_came_from_a_trick_takes_the_normalisation_too(conv2d):
    model = sequential((6, 6, 3), conv2d(4, 3, use_bias=False), ExtendedBatchNormalization(), layers.ReLU())
    fused = fuse(model)
    assert kinds(fused) == ["Conv2D", "ReLU"]
    assert_same(model, fused)


def test_alpha_goes_into_the_last_linear_layer_of_the_branch_else_stays_as_a_scale():
    def branch(*last):
        return keras.Sequential([layers.Dense(8, "relu"), layers.Dense(4, use_bias=False), *last])

    linear = sequential((4,), kt.layers.ReZero(branch(layers.Dropout(0.5))))
    fused = fuse(linear)
    assert kinds(fused) == ["Dense", "Dense", "Dropout", "Add"]
    assert not fused.layers[2].use_bias  # none is made where there is nothing to add
    assert_same(linear, fused)
    nonlinear = sequential((4,), kt.layers.ReZero(branch(layers.ReLU())))
    fused, report = fuse(nonlinear, return_report=True)
    assert kinds(fused) == ["Dense", "Dense", "ReLU", "Rescaling", "Add"]
    assert "follows re_lu" in report.kept[0][1].replace("re_lu_1", "re_lu")
    assert_same(nonlinear, fused)


def test_rezero_add_and_attention_inside_rezero():
    x = start = keras.Input((5, 4))
    x = kt.layers.ReZero(layers.MultiHeadAttention(2, 2), name="attention")(x, x)
    y = layers.Dense(4, name="branch")(x)
    model = randomized(keras.Model(start, kt.layers.ReZeroAdd(name="sum")([x, y])))
    fused = fuse(model)
    assert kinds(fused) == ["MultiHeadAttention", "Rescaling", "Add", "Dense", "Add"]
    assert fused.get_layer("sum").output is fused.output
    assert_same(model, fused)


def test_blocks_called_by_keyword():
    x, mask = keras.Input((5, 4)), keras.Input((5, 5), dtype="bool")
    y = kt.layers.ReZero(layers.MultiHeadAttention(2, 2))(x, x, attention_mask=mask)
    y = Recompute(keras.Sequential([keras.Input((5, 4)), kt.layers.WSDense(4)]))(inputs=y)
    model = randomized(keras.Model([x, mask], y))
    fused = fuse(model)
    assert sorted(kinds(fused)) == ["Add", "Dense", "InputLayer", "MultiHeadAttention", "Rescaling"]
    assert_same(model, fused, [inputs(model), np.random.default_rng(0).integers(0, 2, (3, 5, 5)).astype(bool)])


def test_fused_again_or_after_loading_it_is_the_same(tmp_path):
    model = sequential(
        (6, 6, 3), kt.layers.WSConv2D(4, 3), ExtendedBatchNormalization(), kt.layers.ReZero(layers.ReLU())
    )
    fused = fuse(model)
    again, report = fuse(fused, return_report=True)
    assert (report.folded, report.absolute_difference) == ((), 0.0)
    model.save(tmp_path / "m.keras")
    loaded = fuse(keras.models.load_model(tmp_path / "m.keras"))
    x = inputs(model)
    np.testing.assert_array_equal(again(x), fused(x))
    np.testing.assert_array_equal(loaded(x), fused(x))


def functional(body, shape=(6, 6, 3)):
    x = keras.Input(shape)
    return randomized(keras.Model(x, body(x)))


def conv(**kwargs):
    return layers.Conv2D(3, 3, padding="same", **kwargs)


def shared(x):
    c, n = conv(name="c"), layers.BatchNormalization()
    return n(c(n(c(x))))


REFUSED = {
    "has an activation": lambda x: layers.BatchNormalization()(conv(activation="relu")(x)),
    "is used elsewhere too": lambda x: [layers.BatchNormalization()(y := conv()(x)), layers.ReLU()(y)],
    "output is used elsewhere too": lambda x: [y := conv()(x), layers.BatchNormalization()(y)],
    "called several times": shared,
    "its axis is not that of": lambda x: layers.BatchNormalization(axis=1)(conv()(x)),
    "not a convolution": lambda x: conv()(layers.BatchNormalization()(layers.ReLU()(x))),
    "at an input": lambda x: conv()(layers.BatchNormalization()(x)),
    "training=True": lambda x: layers.BatchNormalization()(conv()(x), training=True),
    "computes in float32": lambda x: layers.BatchNormalization()(conv(dtype="mixed_float16")(x)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_normalisation_that_cannot_be_folded_exactly_stays_and_the_report_says_why(why):
    model = functional(REFUSED[why])
    fused, report = fuse(model, return_report=True)
    assert report.folded == ()
    assert why.removeprefix("output ") in report.kept[0][1]
    assert "BatchNormalization" in kinds(fused)
    assert_same(model, fused, tolerance=1e-2 if why.endswith("float32") else 1e-5)
    assert "nothing to fold" in str(report)


def test_convolution_on_channels_first_folds_by_its_own_axis():
    model = functional(
        lambda x: layers.BatchNormalization(axis=1)(layers.Conv2D(5, 1, data_format="channels_first")(x)), (6, 5, 4)
    )
    assert kinds(fuse(model)) == ["Conv2D"]


def test_nested_and_shared_models_stay_and_are_fused_inside():
    block = keras.Sequential([keras.Input((6, 6, 3)), kt.layers.WSConv2D(3, 3, padding="same"),
                              layers.BatchNormalization(), layers.ReLU()], name="block")  # fmt: skip
    shared = layers.Conv2D(3, 1, name="shared")
    a, b = keras.Input((6, 6, 3), name="a"), keras.Input((6, 6, 3), name="b")
    outputs = {"sum": shared(block(a)) + shared(block(b)), "mean": layers.GlobalAveragePooling2D()(block(b)[:, 1:])}
    model = randomized(keras.Model({"a": a, "b": b}, outputs, name="two"))
    model.compile("sgd", "mse")
    fused, report = fuse(model, return_report=True)
    assert fused.name == "two"
    assert not fused.compiled
    assert kinds(fused.get_layer("block")) == ["Conv2D", "ReLU"]
    assert len([layer for layer in fused.layers if layer.name in ("block", "shared")]) == 2
    assert report.layers[1] == report.layers[0] - 1
    x = {"a": inputs(model), "b": inputs(model, seed=6)}
    assert set(fused(x)) == {"sum", "mean"}
    assert_same(model, fused, x)


def test_names_of_layers_inside_of_blocks_may_be_the_same():
    block = lambda: kt.layers.ReZero(keras.Sequential([layers.Dense(4, name="d"), layers.ReLU(name="r")]))  # noqa: E731
    model = sequential((4,), layers.Dense(4, name="r"), block(), block())
    fused = fuse(model)
    assert len({layer.name for layer in fused.layers}) == len(fused.layers)
    np.testing.assert_array_equal(*(numpy_of(m.get_layer("r").kernel) for m in (fused, model)))
    assert_same(model, fused)


def test_masks_integer_inputs_and_keyword_arguments():
    x = keras.Input((6,), dtype="int32")
    y = layers.Embedding(9, 4, mask_zero=True)(x)
    y = layers.BatchNormalization()(layers.Dense(4)(y))
    y = layers.LSTM(3, return_sequences=True, use_cudnn=False)(y)
    model = randomized(keras.Model(x, layers.Attention(use_scale=True)([y, y], use_causal_mask=True)))
    fused = fuse(model)
    assert kinds(fused).count("BatchNormalization") == 0
    assert_same(model, fused, np.array([[1, 2, 3, 0, 0, 0], [8, 7, 6, 5, 4, 0]]))


def test_lora_and_what_only_training_needs_are_left_behind(tmp_path):
    @keras.saving.register_keras_serializable("test_fuse")
    class Spread(keras.regularizers.Regularizer):
        def __call__(self, x):
            return keras.ops.sum(x)

        def get_config(self):
            return {}

    dense = layers.Dense(4, kernel_regularizer=Spread())
    model = sequential((5,), layers.Dense(4, kernel_regularizer=Spread()), dense, layers.BatchNormalization())
    dense.enable_lora(2)
    dense.lora_kernel_b.assign(np.ones(dense.lora_kernel_b.shape))
    fused, report = fuse(model, return_report=True)
    assert [len(layer.weights) for layer in fused.layers[1:]] == [2, 2]
    assert fused.losses == []
    assert report.kept == ()
    assert_same(model, fused)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"])
def test_precision_is_kept_and_rounding_in_it_is_no_error(policy):
    keras.config.set_dtype_policy(policy)
    stack = [layer for _ in range(3) for layer in (conv(), layers.BatchNormalization(), layers.ReLU())]
    model = sequential(
        (6, 6, 3), *stack, kt.layers.WSConv2D(3, 3), kt.layers.ReZero(conv()), layers.Flatten(dtype="float64")
    )
    fused, report = fuse(model, return_report=True)
    assert [layer.dtype_policy.name for layer in fused.layers[1:-1]] == [policy] * (len(fused.layers) - 2)
    assert fused.layers[-1].dtype_policy.name == "float64"
    assert "BatchNormalization" not in kinds(fused)
    assert 0 < report.relative_difference < (1e-13 if policy == "float64" else 0.05)


def test_after_training_it_computes_the_same():
    model = keras.Sequential([keras.Input((6, 6, 1)), conv(), ExtendedBatchNormalization(), layers.ReLU(),
                              kt.layers.ReZero(conv()), layers.BatchNormalization(), layers.Flatten(),
                              kt.layers.NormalizedDense(3, scale=8.0)])  # fmt: skip
    x = np.random.default_rng(0).normal(2, 3, size=(64, 6, 6, 1)).astype("float32")
    model.compile(kt.LAMB(0.05), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x, (x.mean(axis=(1, 2, 3)) > 2).astype(int), epochs=3, verbose=0)
    fused = fuse(model, probe=x[:16])
    assert kinds(fused) == ["Conv2D", "ReLU", "Conv2D", "Add", "BatchNormalization", "Flatten",
                            "UnitNormalization", "Dense"]  # fmt: skip
    assert fused.fuse_report.relative_difference < 1e-5
    assert_same(model, fused, x)
    np.testing.assert_allclose(fused.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-4)


def test_file_of_the_fused_model_loads_where_the_package_is_not_imported(tmp_path):
    model = sequential((12, 12, 4), *(make() for make in TRICKS.values()))
    fused = fuse(model)
    fused.save(tmp_path / "m.keras")
    x = inputs(model)
    np.save(tmp_path / "x.npy", x)
    code = """
        import sys, keras, numpy as np
        folder = sys.argv[1]
        model = keras.models.load_model(folder + "/m.keras")
        np.save(folder + "/y.npy", model(np.load(folder + "/x.npy")))
        assert not any(name.startswith("keras_tricks") for name in sys.modules)
        """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), fused(x), rtol=1e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
def test_exported_as_a_saved_model_and_converted_for_tflite_it_computes_the_same(tmp_path):
    model = sequential((6, 6, 3), kt.layers.WSConv2D(3, 3), layers.BatchNormalization(), kt.layers.ReZero(conv()))
    fused = fuse(model)
    fused.export(tmp_path / "saved", verbose=False)
    x = inputs(fused, batch=1)
    exported = tf.saved_model.load(tmp_path / "saved")
    np.testing.assert_allclose(exported.serve(x), fused(x), rtol=1e-5, atol=1e-5)
    lite = tf.lite.Interpreter(
        model_content=tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved")).convert()
    )
    lite.allocate_tensors()
    lite.set_tensor(lite.get_input_details()[0]["index"], x)
    lite.invoke()
    np.testing.assert_allclose(lite.get_tensor(lite.get_output_details()[0]["index"]), fused(x), rtol=1e-5, atol=1e-5)


def test_every_normalisation_of_mobilenet_is_folded_and_layers_can_be_tapped():
    model = randomized(keras.applications.MobileNetV2(weights=None, input_shape=(32, 32, 3), alpha=0.35, classes=10))
    fused, report = fuse(model, return_report=True)
    assert len(report.folded) == 52
    assert report.kept == ()
    assert report.layers[1] == report.layers[0] - 52
    assert "BatchNormalization" not in kinds(fused)
    assert report.relative_difference < 1e-5
    name = "block_3_expand_relu"
    x = inputs(model)
    assert_same(*(keras.Model(m.input, m.get_layer(name).output) for m in (model, fused)), x)


def test_seeds_and_moving_statistics_are_not_touched_by_the_comparison():
    x = keras.Input((4,))
    y = layers.BatchNormalization()(layers.Dropout(0.5, seed=3)(layers.Dense(4)(x), training=True), training=True)
    model = randomized(keras.Model(x, y))
    before = [numpy_of(v) for v in model.variables]
    fused = fuse(model)
    assert fused.fuse_report.relative_difference == 0  # the copy has the seed's state too
    for v, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(numpy_of(v), value)


@keras.saving.register_keras_serializable("test_fuse")
class Own(layers.Layer):
    """A user's layer that folds by itself, if it is told to."""

    def __init__(self, wrong=0.0, **kwargs):
        super().__init__(**kwargs)
        self.wrong = wrong

    def build(self, shape):
        self.w = self.add_weight(shape=(shape[-1],), name="w", initializer="ones")

    def call(self, x):
        return x * self.w

    def get_config(self):
        return {**super().get_config(), "wrong": self.wrong}


class Folding(Own):
    def fused(self):
        dense = layers.Dense(self.w.shape[0], use_bias=False, name=self.name)
        dense.build((None, self.w.shape[0]))
        dense.set_weights([np.diag(numpy_of(self.w) + self.wrong)])
        return [dense]


def test_layer_of_ones_own_stays_with_a_note_and_folds_if_it_has_the_method():
    fused, report = fuse(sequential((4,), Own(name="mine")), return_report=True)
    assert kinds(fused) == ["Own"]
    assert report.kept == (("mine (Own)", "test_fuse>Own is not Keras' own: the file loads where it is registered"),)
    model = sequential((4,), Folding(name="mine"), layers.BatchNormalization())
    fused = fuse(model)
    assert kinds(fused) == ["Dense"]
    assert_same(model, fused)


def test_wrong_fold_is_an_error_and_no_model(precision):
    keras.config.set_dtype_policy(precision)
    stack = [layers.Dense(8), layers.BatchNormalization(), Folding(wrong=0.5), layers.Dense(3)]
    with pytest.raises(ValueError, match="output 0 differs by"):
        fuse(sequential((4,), *stack))


def test_models_of_two_replicas_and_of_jit_are_fused_to_plain_models():
    with runs.strategy_of(2).scope():
        model = sequential((6, 6, 1), kt.layers.WSConv2D(3, 3), layers.BatchNormalization(), layers.Flatten())
        model.compile(kt.LAMB(0.01), "mse", jit_compile=False)
        kt.jit(model)
    fused = fuse(model)
    assert kinds(fused) == ["Conv2D", "Flatten"]
    assert type(fused.call).__name__ == "method"
    assert_same(model, fused)


def test_what_preprocessing_layers_have_adapted_to_is_kept_and_so_are_lambdas():
    words, numbers = layers.StringLookup(output_mode="multi_hot"), layers.Normalization()
    words.adapt(np.array(["a", "b", "b"]))
    numbers.adapt(np.array([[1.0], [4.0]]))
    a, b = keras.Input((2,), dtype="string"), keras.Input((1,))
    x = layers.Concatenate()([words(a), layers.Lambda(lambda x: np.float32(2) * x)(numbers(b))])
    model = randomized(keras.Model([a, b], layers.BatchNormalization()(layers.Dense(3)(x))))
    numbers.finalize_state()
    probe = [np.array([["b", "c"], ["a", "b"]], dtype=object), np.array([[3.0], [7.0]])]
    fused, report = fuse(model, return_report=True, probe=[tf.constant(x) for x in probe])
    assert "safe_mode=False" in report.kept[0][1]
    assert_same(model, fused, [tf.constant(x) for x in probe])


def test_inputs_are_optional_still_and_models_called_in_training_mode_stay():
    class Plus(layers.Layer):
        def call(self, a, b=None):
            return a if b is None else a + b

        def compute_output_shape(self, a_shape, b_shape=None):
            return a_shape

    a, b = keras.Input((4,)), keras.Input((4,), optional=True)
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4), layers.BatchNormalization()], name="inner")
    model = randomized(keras.Model([a, b], inner(Plus()(a, b), training=True)))
    fused, report = fuse(model, return_report=True)
    assert kinds(fused.get_layer("inner")) == ["BatchNormalization"]  # a Sequential: its first layer is the Dense
    assert "training=True" in dict(report.kept)["inner (Sequential)"]
    x = inputs(model)
    assert_same(model, fused, [x, x])
    assert_same(model, fused, [x, None])


def test_tricks_inside_of_time_distributed():
    inner = keras.Sequential([layers.Dense(4, use_bias=False), layers.BatchNormalization(), layers.ReLU()])
    tricks = (kt.layers.WSDense(6), inner, kt.layers.ReZero(layers.Dense(4)), kt.layers.NormalizedDense(3))
    distributed = [layers.TimeDistributed(x) for x in tricks]
    model = randomized(sequential((5, 4), *distributed))
    fused, report = fuse(model, return_report=True)
    assert report.kept == ()
    assert kinds(fused) == ["TimeDistributed"] * 5
    assert kinds(fused.layers[2].layer) == ["Dense", "ReLU"]
    assert fused.layers[1].name == distributed[0].name
    assert_same(model, fused)


@pytest.mark.parametrize("size", [6, 9])
def test_a_bias_that_keras_would_add_elsewhere_is_not_made(size):
    # On TensorFlow, Keras adds a bias along the last axis wherever that is as long.
    first = {"data_format": "channels_first"}
    model = sequential((3, size, size), layers.Conv2D(4, 3, use_bias=False, **first), layers.BatchNormalization(axis=1))
    fused, report = fuse(randomized(model), return_report=True)
    assert len(report.folded) == (size != 6)
    assert_same(model, fused)


def network(policy):
    keras.config.set_dtype_policy(policy)
    block = keras.Sequential([layers.Conv2D(4, 3, padding="same"), layers.BatchNormalization()], name="block")
    x = images = keras.Input((8, 8, 3))
    x = layers.ReLU()(layers.BatchNormalization()(kt.layers.WSConv2D(4, 3)(x)))
    x = kt.layers.ReZero(block, "ones")(x)
    x = layers.TimeDistributed(keras.Sequential([layers.Dense(4), layers.ReLU()]))(x)
    x = layers.Reshape((36, 4))(x)
    x = layers.LayerNormalization()(layers.MultiHeadAttention(2, 3)(x, x))
    x = kt.layers.NormalizedDense(3, scale=4.0)(layers.GlobalAveragePooling1D()(x))
    model = keras.Model(images, layers.Activation("linear", dtype="float32")(x))
    keras.config.set_dtype_policy("float32")
    return model


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated:UserWarning")
@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_a_model_of_mixed_precision_goes_into_litert_in_float32(policy, tmp_path):
    model, in_float32 = randomized(network(policy)), network("float32")
    in_float32.set_weights(model.get_weights())
    fused, report = fuse(model, return_report=True, dtype="float32")
    assert {layer.compute_dtype for layer in fused._flatten_layers()} == {"float32"}
    assert len(report.folded) == 6
    assert report.absolute_difference > 1e-4  # that of the model's own precision
    assert_same(in_float32, fused)
    fused.export(tmp_path / "saved", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(tmp_path / "saved"))
    lite = tf.lite.Interpreter(model_content=converter.convert())
    lite.allocate_tensors()
    x = inputs(fused, batch=1)
    lite.set_tensor(lite.get_input_details()[0]["index"], x)
    lite.invoke()
    np.testing.assert_allclose(lite.get_tensor(lite.get_output_details()[0]["index"]), fused(x), rtol=1e-4, atol=1e-5)


def test_bad_arguments_say_what_is_expected():
    x = keras.Input((4,))
    with pytest.raises(ValueError, match="called with training=True"):
        fuse(keras.Model(x, ExtendedBatchNormalization()(x, training=True)))
    with pytest.raises(ValueError, match="holds keras_tricks>WSDense, which `fuse` cannot"):
        fuse(sequential((4,), layers.SpectralNormalization(kt.layers.WSDense(3))))
    with pytest.raises(ValueError, match="must be a dtype policy"):
        fuse(sequential((4,), layers.Dense(1)), dtype="half")
    with pytest.raises(ValueError, match="computes in floating point"):
        fuse(sequential((4,), layers.Dense(1)), dtype="int32")
    with pytest.raises(ValueError, match="Give `probe=`"):
        fuse(sequential((4,), layers.Dense(1)), probe=np.ones((2, 5), "float32"))
    words = keras.Input((1,), dtype="string")
    text = keras.Model(words, layers.StringLookup(vocabulary=["a"], output_mode="one_hot")(words))
    with pytest.raises(ValueError, match="Give `probe=`"):
        fuse(text)
