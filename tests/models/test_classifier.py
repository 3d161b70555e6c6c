"""What the four corrections of a classifier have in common."""

import keras
import numpy as np
import pytest
from keras import layers
from keras.ops import convert_to_numpy as numpy_of

import keras_tricks as kt
from keras_tricks.models import adjust_logits, learn_scale, retrain_classifier, tau_normalize
from tests import runs
from tests.models.classifiers import QUIET, data, network, softmax

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


def test_a_tau_that_is_no_number_is_refused():
    for function in (lambda tau: adjust_logits(network(), [3, 2, 1], tau), lambda tau: tau_normalize(network(), tau)):
        with pytest.raises(ValueError, match="`tau` must be at least 0"):
            function(-1)
        with pytest.raises(ValueError, match="`tau` must be"):
            function(float("nan"))
        with pytest.raises(TypeError, match="`tau` must be a number"):
            function("1")


@pytest.mark.parametrize("name", [n for n in OPERATIONS if n != "adjust_logits"])
def test_a_kernel_with_lora_is_refused(name):
    model = network()
    model.get_layer("head").enable_lora(1)
    with pytest.raises(ValueError, match="LoRA is merged by saving"):
        OPERATIONS[name](model)


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


@pytest.mark.slow
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
