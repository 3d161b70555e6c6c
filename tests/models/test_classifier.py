import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.ops import convert_to_numpy as numpy_of

import keras_tricks as kt
from keras_tricks.models import adjust_logits, learn_scale, retrain_classifier, tau_normalize
from tests import runs

COUNTS = [60, 20, 6, 0]


def data(count=24, classes=3, seed=0):
    """Class-balanced, so that no warning is due."""
    random = np.random.default_rng(seed)
    return random.normal(size=(count, 6)).astype("float32"), np.arange(count) % classes


def drawn(sizes):
    """As many examples of each class."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(0).normal(size=(len(labels), 6)).astype("float32"), labels


def network(head=None, activation=None, **options):
    """Features with statistics and seeds, then the classifier, then a cast."""
    inputs = keras.Input((6,))
    x = layers.BatchNormalization()(layers.Dense(5, activation="tanh")(inputs))
    x = layers.Dropout(0.5)(layers.GaussianNoise(0.3)(x))
    head = head or layers.Dense(3, bias_initializer="glorot_normal", name="head", **options)
    model = keras.Model(inputs, layers.Activation(activation or "linear", dtype="float32")(head(x)), name="network")
    random = np.random.default_rng(0)
    for v in model.weights:
        v.assign(random.normal(size=v.shape) if "variance" not in v.name else random.uniform(0.5, 2, v.shape))
    return model


def features(model, x):
    """What reaches the classifier at inference, in float64."""
    part = keras.Model(model.input, model.get_layer("head").input)
    return numpy_of(part(x, training=False)).astype("float64")


def state(model):
    flags = [layer.trainable for layer in model._flatten_layers()]
    return [numpy_of(v).tobytes() for v in model.variables], flags, [v.trainable for v in model.variables]


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


QUIET = {"verbose": 0, "shuffle": False}
REFUSALS = {  # what is no classifier of logits, and what the message says about it
    "softmax": (lambda x: layers.Dense(3, activation="softmax")(x), "makes probabilities"),
    "softmax-layer": (lambda x: layers.Softmax()(layers.Dense(3)(x)), "makes probabilities"),
    "softmax-cast": (lambda x: layers.Activation("softmax", dtype="float32")(layers.Dense(3)(x)), "probabilities"),
    "softmax-function": (lambda x: keras.ops.softmax(layers.Dense(3)(x)), "makes probabilities"),
    "sigmoid": (lambda x: layers.Identity()(layers.Dense(3, activation="sigmoid")(x)), "makes probabilities"),
    "nested": (lambda x: keras.Sequential([keras.Input((6,)), layers.Dense(3, "softmax")])(x), "probabilities"),
    "two-outputs": (lambda x: [layers.Dense(3)(x), layers.Dense(2)(x)], "has 2 outputs"),
    "one-logit": (lambda x: layers.Dense(1)(x), r"at least 2 classes.*\(None, 1\)"),
    "no-layer": (lambda x: x, "is one of its inputs"),
}


# Logit adjustment


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


def test_counts_of_other_classes_and_a_tau_that_is_no_number_are_refused():
    with pytest.raises(ValueError, match="has 3 classes, and `class_counts` has 2"):
        adjust_logits(network(), [3, 2])
    with pytest.raises(ValueError, match="`class_counts` must be whole numbers"):
        adjust_logits(network(), [0.5, 0.2, 0.3])
    for function in (lambda tau: adjust_logits(network(), [3, 2, 1], tau), lambda tau: tau_normalize(network(), tau)):
        with pytest.raises(ValueError, match="`tau` must be at least 0"):
            function(-1)
        with pytest.raises(ValueError, match="`tau` must be"):
            function(float("nan"))
        with pytest.raises(TypeError, match="`tau` must be a number"):
            function("1")


# What no function here takes


OPERATIONS = {
    "adjust_logits": lambda model: adjust_logits(model, [3, 2, 1]),
    "tau_normalize": tau_normalize,
    "retrain_classifier": lambda model: retrain_classifier(model, *data()[:1], y=data()[1]),
    "learn_scale": lambda model: learn_scale(model, *data()[:1], y=data()[1]),
}


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("refused", REFUSALS)
def test_what_has_no_single_output_of_logits_is_refused(name, refused):
    make, message = REFUSALS[refused]
    inputs = keras.Input((6,))
    with pytest.raises(ValueError, match=f"(?s)`{name}`: .*{message}"):
        OPERATIONS[name](keras.Model(inputs, make(inputs)))


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_no_built_graph_is_refused(name):
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__()
            self.head = layers.Dense(3)

        def call(self, x):
            return self.head(x)

    subclassed = Subclassed()
    subclassed(data()[0])
    with pytest.raises(ValueError, match=f"`{name}`: Subclassed .* is a subclassed model"):
        OPERATIONS[name](subclassed)
    with pytest.raises(ValueError, match=f"`{name}`: model .* is not built"):
        OPERATIONS[name](keras.Sequential([layers.Dense(3)]))
    with pytest.raises(TypeError, match=f"`{name}` expects a .*keras.Model. Received: 'model'"):
        OPERATIONS[name]("model")


def test_a_classifier_that_is_not_found_or_not_alone_is_an_error_that_says_what_to_give():
    x, y = data()
    inputs = keras.Input((6,))
    logits = layers.Dense(3, name="a")(inputs)
    scaled = keras.Model(inputs, layers.Rescaling(2.0, name="hot")(logits))
    with pytest.raises(ValueError, match=r"comes from hot \(Rescaling\).*name it: `layer=`"):
        retrain_classifier(scaled, x, y=y)
    with pytest.raises(ValueError, match=r"no layers 'b'\. Give the layer, or one of these paths: a"):
        retrain_classifier(scaled, x, y=y, layer="b")
    with pytest.raises(ValueError, match="has nothing to train"):
        retrain_classifier(scaled, x, y=y, layer="hot")
    shared = layers.Dense(3, name="shared")
    twice = keras.Model(inputs, shared(shared(shared.__class__(3)(inputs))))
    with pytest.raises(ValueError, match=r"shared \(Dense\) is called more than once"):
        tau_normalize(twice)
    inside = keras.Model(inputs, layers.TimeDistributed(layers.Dense(3))(layers.Reshape((2, 3))(inputs)))
    with pytest.raises(ValueError, match=r"comes from .*TimeDistributed"):
        learn_scale(inside, x, y=y)


# tau-normalisation


def dense(kernel, **options):
    layer = layers.Dense(kernel.shape[1], **options)
    layer.build((None, kernel.shape[0]))
    layer.set_weights([kernel, np.ones(kernel.shape[1])])
    return layer


@pytest.mark.parametrize("tau", [0, 0.5, 1.0, 2.5])
def test_columns_are_divided_by_their_norm_to_the_power_of_tau(tau):
    kernel = np.random.default_rng(0).normal(size=(7, 4)).astype("float32") * [1, 10, 0.1, 0]
    layer = dense(kernel)
    assert tau_normalize(layer, tau) is layer
    norms = np.linalg.norm(kernel[:, :3], axis=0)
    np.testing.assert_allclose(layer.kernel[:, :3], kernel[:, :3] / norms**tau, rtol=1e-6)
    np.testing.assert_array_equal(layer.kernel[:, 3], np.zeros(7))
    np.testing.assert_array_equal(layer.bias, np.zeros(4))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_norms_do_not_overflow_in_half_precision(dtype):
    layer = dense(np.full((400, 2), 30.0), dtype=dtype)  # the sum of squares is 360,000
    np.testing.assert_allclose(tau_normalize(layer).kernel.numpy().astype("float64"), 0.05, rtol=4e-3)


def test_a_convolution_has_one_column_for_each_class():
    layer = layers.Conv2D(3, 2, use_bias=False)
    layer.build((None, 4, 4, 2))
    kernel = numpy_of(layer.kernel)
    tau_normalize(layer)
    np.testing.assert_allclose(layer.kernel, kernel / np.linalg.norm(kernel.reshape(8, 3), axis=0), rtol=1e-5)


def test_of_a_model_a_copy_is_changed_so_that_a_search_does_not_compound(replicas):
    with runs.strategy_of(replicas).scope():
        model = network()
        model.compile("sgd", "mse")
    before, optimizer = state(model), model.optimizer
    first, again = tau_normalize(model, 0.7), tau_normalize(model, 0.7)
    tau_normalize(first, 0.7)
    assert state(first) == state(again) != before
    assert state(model) == before
    assert model.optimizer is optimizer
    assert not first.compiled
    for path, (a, b) in {v.path: (v, w) for v, w in zip(model.variables, first.variables, strict=True)}.items():
        assert ("head" in path) != np.array_equal(a, b), path
    kernel = numpy_of(model.get_layer("head").kernel)
    np.testing.assert_allclose(
        first.get_layer("head").kernel, kernel / np.linalg.norm(kernel, axis=0) ** 0.7, rtol=1e-5
    )


@pytest.mark.parametrize(
    "layer", [kt.layers.NormalizedDense(3), kt.layers.WSDense(3), layers.EinsumDense("ab,bc->ac", 3)]
)
def test_layers_whose_kernel_means_something_else_are_refused(layer):
    layer.build((None, 6))
    with pytest.raises(ValueError, match=f"(?s)kernel and bias of a Dense layer.*{type(layer).__name__}"):
        tau_normalize(layer)
    with pytest.raises(ValueError, match="is not built"):
        tau_normalize(layers.Dense(3))


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n != "adjust_logits"])
def test_a_kernel_with_lora_is_refused(name):
    model = network()
    model.get_layer("head").enable_lora(1)
    with pytest.raises(ValueError, match="LoRA is merged by saving"):
        OPERATIONS[name](model)


# Re-training


def crt_reference(x, y, kernel, bias, steps):
    """SGD with momentum and decay on the whole batch, with the cosine by epochs: the default."""
    kernel, bias = kernel.astype("float64"), bias.astype("float64")
    momenta, rate = [0.0, 0.0], 0.2 * len(x) / 512
    for step in range(steps):
        lr = rate * (1 + np.cos(np.pi * step / steps)) / 2
        error = (softmax(x @ kernel + bias) - np.eye(3)[y]) / len(x)
        gradients = x.T @ error, error.sum(0)
        kernel = kernel * (1 - lr * 5e-3)
        momenta = [0.9 * m - lr * g for m, g in zip(momenta, gradients, strict=True)]
        kernel, bias = kernel + momenta[0], bias + momenta[1]
    return kernel, bias


@pytest.mark.parametrize("labels", ["column", "one-hot"])
def test_the_default_is_the_authors_recipe(labels):
    x, y = data(192)
    model = network(kernel_initializer="orthogonal")
    given = {"column": y[:, None], "one-hot": np.eye(3)[y]}[labels]
    options = {"batch_size": 192, "layer": "head", "seed": 3, **QUIET}
    trained = retrain_classifier(model, x, y=given, epochs=3, **options).get_layer("head")
    start = [keras.initializers.Orthogonal(seed=3)((5, 3)), keras.initializers.GlorotNormal(seed=3)((3,))]
    expected = crt_reference(features(model, x), y, *map(numpy_of, start), steps=3)
    for value, reference in zip(trained.get_weights(), expected, strict=True):
        np.testing.assert_allclose(value, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("operation", [retrain_classifier, learn_scale])
def test_all_but_the_classifier_stays_bit_for_bit_and_so_does_the_model(operation):
    model = network()
    model.compile(keras.optimizers.Adam(), "mse")
    model.get_layer("head").trainable = False  # it is trained all the same, and the flag kept
    model.layers[2].moving_mean.trainable = False
    model.layers[1].kernel.trainable = False
    before, optimizer, history = state(model), model.optimizer, getattr(model, "history", None)
    x, y = data()
    new = operation(model, x, y=y, epochs=2, validation_data=(x[:5], y[:5]), metrics=["accuracy"], **QUIET)
    assert state(model) == before
    assert model.optimizer is optimizer
    assert not optimizer.built
    assert getattr(model, "history", None) is history
    assert (type(new), new.name, new.compiled) == (type(model), model.name, False)
    assert state(new)[1:] == before[1:]
    changed = {v.path for v, w in zip(new.variables, model.variables, strict=True) if not np.array_equal(v, w)}
    assert changed == {"head/kernel", "head/bias"}
    assert set(new.history.history) == {
        "loss", "accuracy", "val_loss", "val_accuracy", "learning_rate",
    }  # fmt: skip


def test_the_new_classifier_is_another_draw_of_its_own_initializers():
    head = layers.Dense(
        3,
        kernel_initializer=keras.initializers.RandomNormal(5.0, 0.1, seed=1),
        bias_initializer=keras.initializers.Constant(-2.0),
        name="head",
    )
    model = network(head)
    head.set_weights([head.kernel_initializer((5, 3)), np.zeros(3)])
    x, y = data()

    def draw(**more):
        standing_still = keras.optimizers.SGD(1e-9)
        new = retrain_classifier(model, x, y=y, optimizer=standing_still, epochs=1, **more, **QUIET)
        weights = new.get_layer("head")
        np.testing.assert_allclose(weights.bias, -2.0, atol=1e-5)
        return numpy_of(weights.kernel)

    first, second, seeded = draw(), draw(seed=7), draw(seed=7)
    np.testing.assert_allclose([k.mean() for k in (first, second)], 5.0, atol=0.2)
    np.testing.assert_array_equal(second, seeded)
    assert np.abs(first - numpy_of(head.kernel)).min() > 1e-6
    assert np.abs(first - second).min() > 1e-6


@pytest.mark.parametrize(
    ("operation", "compiled"),
    [(retrain_classifier, False), runs.slow(learn_scale, True)],
    ids=["retrain", "scale-jit"],
)
def test_replicas_end_where_one_device_does(operation, compiled):
    x, y = drawn((96, 16, 0))

    def run(replicas):
        keras.utils.set_random_seed(1)
        with runs.strategy_of(replicas).scope():
            model = network()
        if compiled:
            kt.jit(model)
        options = {"batch_size": 56, "epochs": 3, "validation_data": (x[:56], y[:56]), **QUIET}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            new = operation(model, x, y=y, **options)
        said = [str(w.message) for w in caught if "class-balanced" in str(w.message)]
        assert ["drew class 0 6 times as often as class 1 (288 to 48)" in message for message in said] == [True]
        assert new.distribute_strategy.num_replicas_in_sync == replicas
        return [*new.get_weights(), new.history.history["val_loss"]]

    for a, b in zip(run(1), run(2), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_an_optimizer_from_outside_of_the_models_strategy_is_refused():
    with runs.strategy_of(2).scope():
        model = network()
    x, y = data()
    with pytest.raises(ValueError, match=r"made under a MirroredStrategy, and this LAMB was not\. Make it in the same"):
        retrain_classifier(model, x, y=y, optimizer=kt.LAMB(0.1))


@pytest.mark.parametrize(
    ("operation", "precision"),
    [(retrain_classifier, "mixed_float16"), (learn_scale, "float16"), (learn_scale, "mixed_bfloat16")],
)
def test_the_loss_is_scaled_where_the_classifier_computes_in_float16(operation, precision):
    keras.config.set_dtype_policy(precision)
    model = network()
    keras.config.set_dtype_policy("float32")  # as after loading such a model
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            seen.append(self.model.optimizer)

    x, y = data()
    new = operation(model, x, y=y, epochs=2, callbacks=[Look()], **QUIET)
    assert isinstance(seen[0], kt.LossScaleOptimizer) == ("float16" in precision and "bfloat16" not in precision)
    assert all(np.isfinite(numpy_of(v).astype("float32")).all() for v in new.weights)
    assert not np.array_equal(new.get_layer("head").kernel, model.get_layer("head").kernel)
    assert new.get_layer("head").dtype_policy.name == precision


# Learning a scale


def test_one_step_of_the_scale_is_the_gradients_and_is_folded_into_kernel_and_bias():
    model = network()
    x, y = data(30)
    z = features(model, x) @ numpy_of(model.get_layer("head").kernel) + numpy_of(model.get_layer("head").bias)
    new = learn_scale(model, x, y=y, epochs=1, optimizer=keras.optimizers.SGD(0.5), batch_size=30, **QUIET)
    scale = 1 - 0.5 * ((softmax(z) - np.eye(3)[y]) * z).mean(0)
    for value, old in zip(new.get_layer("head").get_weights(), model.get_layer("head").get_weights(), strict=True):
        np.testing.assert_allclose(value, old * scale, rtol=1e-4)
    np.testing.assert_allclose(new(x), scale * z, rtol=1e-4, atol=1e-5)


def test_the_scale_of_a_convolution_is_that_of_a_dense_layer_on_each_pixel():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(6, 4, 4, 2)).astype("float32"), np.arange(96).reshape(6, 4, 4) % 3
    models = [keras.Sequential([keras.Input((4, 4, 2)), head]) for head in (layers.Dense(3), layers.Conv2D(3, 1))]
    models[1].set_weights([models[0].get_weights()[0][None, None], models[0].get_weights()[1]])
    a, b = (learn_scale(m, x, y=y, epochs=2, **QUIET) for m in models)
    np.testing.assert_allclose(a.get_weights()[0], b.get_weights()[0][0, 0], rtol=1e-4)
    assert not np.allclose(a.get_weights()[0], models[0].get_weights()[0], rtol=1e-3)


def test_a_scale_that_cannot_be_folded_is_refused():
    x, y = data()
    with pytest.raises(ValueError, match=r"Received: head \(NormalizedDense"):
        learn_scale(network(kt.layers.NormalizedDense(3, name="head")), x, y=y)
    with pytest.raises(ValueError, match="has an activation"):
        learn_scale(network(layers.Dense(3, "tanh", name="head")), x, y=y)


# Where the classifier is, and the ways of training


def test_the_classifier_is_found_in_nested_models_and_other_layers_can_be_named():
    x, y = data()
    backbone = keras.Sequential(
        [keras.Input((6,)), layers.Dense(4, name="inner"), layers.Dropout(0.2)], name="backbone"
    )
    head = keras.Sequential([keras.Input((4,)), kt.layers.NormalizedDense(3, name="cosine")], name="head")
    model = keras.Sequential([keras.Input((6,)), kt.layers.Recompute(backbone), head])
    new = retrain_classifier(model, x, y=y, epochs=1, **QUIET)
    same = [np.array_equal(v, w) for v, w in zip(new.weights, model.weights, strict=True)]
    assert same == [True, True, False]
    with pytest.raises(ValueError, match=r"inner \(Dense\) is inside .*\(Recompute\)"):
        retrain_classifier(model, x, y=y, layer="inner")
    inputs = keras.Input((6,))
    bottom = layers.Dense(3, name="a")(inputs)
    scaled = keras.Model(inputs, layers.Rescaling(2.0)(bottom))
    named = learn_scale(scaled, x, y=y, epochs=1, layer=scaled.get_layer("a"), **QUIET)
    assert not np.array_equal(named.get_weights()[0], scaled.get_weights()[0])


def test_data_of_every_form_show_their_batch_size_or_the_error_says_to_give_an_optimizer():
    x, y = data()

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return x[index * 8 : index * 8 + 8], y[index * 8 : index * 8 + 8]

    batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model, kernels = network(), []
    for given in (Batches(), batches):
        new = retrain_classifier(model, given, epochs=1, seed=0, **QUIET)
        np.testing.assert_allclose(new.history.history["learning_rate"], 0.2 * 8 / 512, rtol=1e-6)
        kernels.append(new.get_layer("head").get_weights()[0])
    np.testing.assert_allclose(kernels[0], kernels[1], rtol=1e-5)
    with pytest.raises(ValueError, match=r"which a generator does not show before it is read\. Give `optimizer=`"):
        retrain_classifier(model, (pair for pair in [(x, y)]))
    given = (pair for pair in [(x, y)])
    assert learn_scale(model, given, epochs=1, optimizer="sgd", steps_per_epoch=1, **QUIET).built


def test_arguments_of_fit_and_compile_go_through_and_others_are_an_error(tmp_path):
    x, y = data()
    model = network()
    file = str(tmp_path / "stage.keras")
    new = retrain_classifier(
        model,
        x,
        y=y,
        epochs=2,
        optimizer=kt.GradientAccumulation(kt.LAMB(0.1), 2),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True,
        steps_per_execution=2,
        batch_size=6,
        class_weight={0: 1.0, 1: 1.0, 2: 1.0},
        callbacks=keras.callbacks.ModelCheckpoint(file),
        **QUIET,
    )
    stage = keras.models.load_model(file)
    np.testing.assert_allclose(stage(x, training=True), new(x, training=False), rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match=r"neither `fit` nor `compile` has an argument 'epoch'\..*batch_size"):
        retrain_classifier(model, x, y=y, epoch=2)
    with pytest.raises(ValueError, match="`epochs` must be at least 1"):
        retrain_classifier(model, x, y=y, epochs=0)
    used = keras.optimizers.SGD()
    used.build(model.trainable_variables)
    with pytest.raises(ValueError, match="has state for the weights of another model"):
        learn_scale(model, x, y=y, optimizer=used)


# The tally of labels


@pytest.mark.parametrize(
    ("sizes", "options", "warns"),
    [
        ((600, 200, 0), {}, "drew class 0 3 times as often as class 1 .600 to 200"),
        ((190, 100, 110), {}, None),
        ((8, 2, 4), {}, None),  # no more than chance
        ((600, 200, 100), {"class_weight": {0: 1 / 6, 1: 0.5, 2: 1.0}}, None),
        ((200, 200, 200), {"validation_data": drawn((600, 1, 1))}, None),
    ],
    ids=["tail", "nearly", "few", "class-weights", "validation"],
)
def test_data_that_are_clearly_not_balanced_are_warned_about(sizes, options, warns):
    x, y = drawn(sizes)
    model = keras.Sequential([keras.Input((6,)), layers.Dense(3)])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        learn_scale(model, x, y=y, epochs=1, batch_size=100, **options, **QUIET)
    said = [w for w in caught if "class-balanced" in str(w.message)]
    assert len(said) == (warns is not None)
    if warns:
        assert warns.replace(".", "(") in str(said[0].message)
        assert "data.class_balanced(class_counts)" in str(said[0].message)
        assert said[0].filename == __file__


def test_the_tally_leaves_out_what_is_masked_or_has_no_weight_and_takes_parts_of_labels():
    from keras_tricks.models.classifier import _Drawn

    def tally(y, z, weights=None):
        metric = _Drawn(3)
        metric.update_state(y, z, weights)
        metric.reset_state()
        return numpy_of(metric.sums).tolist()

    z = np.zeros((2, 3, 3), "float32")
    y = np.array([[0, 1, 0], [2, 2, 0]])
    assert tally(y, keras.ops.convert_to_tensor(z)) == [3, 1, 2]
    assert tally(y[..., None], keras.ops.convert_to_tensor(z), np.array([1.0, 0.5])) == [2.5, 1, 1]
    assert tally(np.eye(3)[y], keras.ops.convert_to_tensor(z), np.array([[1, 1, 0], [1, 1, 0]])) == [1, 1, 2]
    embedded = layers.Embedding(4, 3, mask_zero=True)(np.array([[1, 2, 0], [3, 1, 0]]))
    assert tally(y, embedded) == [1, 1, 2]


# What it is for


def test_rare_digits_are_classified_better():
    from sklearn.datasets import load_digits
    from sklearn.metrics import balanced_accuracy_score

    x, y = load_digits(return_X_y=True)
    x = (x / 16).astype("float32")
    places = [np.flatnonzero(y == j) for j in range(10)]
    counts = (100 * 0.02 ** (np.arange(10) / 9)).astype(int)  # 100 to 2
    train = np.concatenate([p[:n] for p, n in zip(places, counts, strict=True)])
    test = np.concatenate([p[100:] for p in places])
    model = keras.Sequential([keras.Input((64,)), layers.Dense(32, activation="relu"), layers.Dense(10)])
    model.compile(keras.optimizers.Adam(0.01), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(x[train], y[train], epochs=4, verbose=0)
    balanced = np.concatenate([np.resize(p[:n], 40) for p, n in zip(places, counts, strict=True)])
    inputs, labels = x[balanced], y[balanced]

    def score(m):
        return balanced_accuracy_score(y[test], numpy_of(m(x[test])).argmax(-1))

    def loss(m):
        p = softmax(numpy_of(m(x[test])).astype("float64"))
        return np.mean([-np.log(p[y[test] == j, j]).mean() for j in range(10)])

    plain = score(model)
    assert score(adjust_logits(model, counts)) > plain + 0.05
    assert score(retrain_classifier(model, inputs, y=labels, epochs=8, verbose=0)) > plain + 0.05
    assert score(tau_normalize(model)) > plain
    # A factor makes few a winner whose logit was negative, but the mean loss of the classes falls.
    scaled = learn_scale(model, inputs, y=labels, optimizer=keras.optimizers.Adam(0.1), verbose=0)
    assert loss(scaled) < loss(model)


def test_on_jax_a_step_is_the_same():
    code = """
        import warnings, keras, numpy as np
        from keras_tricks.models import adjust_logits, learn_scale, retrain_classifier, tau_normalize

        inner = [keras.layers.BatchNormalization(), keras.layers.Dropout(0.5)]
        model = keras.Sequential([keras.Input((6,)), *inner, keras.layers.Dense(3, kernel_initializer="zeros")])
        random = np.random.default_rng(0)
        model.set_weights([random.uniform(0.5, 2, w.shape) for w in model.get_weights()])
        before = [np.asarray(v) for v in model.variables]
        x, y = random.normal(size=(300, 6)).astype("float32"), np.repeat([0, 1, 2], [250, 25, 25])
        h = np.asarray(model.layers[0](x))
        options = {"y": y, "batch_size": 300, "epochs": 1, "verbose": 0}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            new = retrain_classifier(model, x, optimizer=keras.optimizers.SGD(1.0), **options)
            said = [str(w.message) for w in caught if "class-balanced" in str(w.message)]
            print(["drew class 0 10 times" in message for message in said])
            scaled = learn_scale(model, x, **options)
        error = (1 / 3 - np.eye(3)[y]) / 300
        kernel, bias = new.get_weights()[-2:]
        print(np.allclose(kernel, -h.T @ error, atol=1e-5), np.allclose(bias, -error.sum(0), atol=1e-6))
        print(all(np.array_equal(a, v) for a, v in zip(before, model.variables)))
        print(all(np.array_equal(a, v) for a, v in zip(before[:-2], new.variables[:-2])))
        f = scaled.get_weights()[-2] / model.get_weights()[-2]
        print(np.allclose(f, f[0]), not np.allclose(f, 1))
        logits = np.asarray(adjust_logits(model, [6, 3, 1])(x))
        print(np.allclose(logits - np.asarray(model(x)), -np.log([0.6, 0.3, 0.1]), atol=1e-5))
        print(np.allclose(np.linalg.norm(tau_normalize(model).get_weights()[-2], axis=0), 1))
        """
    expected = ["[True]", "True True", "True", "True", "True True", "True", "True"]
    assert runs.on_jax(code).splitlines() == expected
