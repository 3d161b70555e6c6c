"""What every metric of the catalogue keeps to; a new record is tested by being there."""

import json

import keras
import numpy as np
import pytest

import keras_tricks as kt
from keras_tricks import catalog
from tests import runs, zoo

METRICS = [t for t in catalog.TRICKS if t.kind == "metric" and t.make]
CLASSES = 3


@pytest.fixture(params=METRICS, ids=lambda t: t.name)
def trick(request):
    return request.param


def data(size=32):
    """Logits that any precision can hold, labels that they often have right, and weights."""
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, size)
    logits = np.round(16 * (random.normal(size=(size, CLASSES)) + np.eye(CLASSES)[labels])) / 16
    return logits.astype("float32"), labels, random.uniform(0.1, 2, size).astype("float32")


def sgd():
    return keras.optimizers.SGD(0.0)


def model_of(mode="graph", replicas=1, precision="float32", optimizer=sgd, metrics=None, **options):
    """A model whose outputs are its inputs, in the compute dtype, with all metrics."""
    keras.config.set_dtype_policy(precision)
    with runs.strategy_of(replicas).scope():
        outputs = keras.layers.Dense(CLASSES, use_bias=False, kernel_initializer="identity")
        model = keras.Sequential([keras.Input((CLASSES,)), outputs])
        model.compile(
            optimizer(),
            lambda y, z: keras.ops.mean(keras.ops.cast(z, "float32"), -1),
            weighted_metrics=metrics or [trick.make() for trick in METRICS],
            run_eagerly=mode == "eager",
            jit_compile=mode == "xla" and replicas == 1,
            **options,
        )
        if mode == "xla" and replicas > 1:
            kt.jit(model)
    return model


def expected():
    """The values in eager calls, all examples at once; the metrics' own tests compare them with scikit-learn's."""
    logits, labels, weights = data()
    values = {}
    for trick in METRICS:
        metric = trick.make()
        values[metric.name] = values[f"val_{metric.name}"] = float(metric(labels, logits, weights))
    return values


def history(model, data):
    """The values of two epochs, in training and validation."""
    x, y, weights = data
    fit = model.fit(x, y, sample_weight=weights, validation_data=data, batch_size=8, epochs=2, verbose=0)
    return {name: values for name, values in fit.history.items() if "loss" not in name}


def assert_all_are(values, wanted, rtol=1e-6):
    assert set(values) == set(wanted)
    for name, found in values.items():
        np.testing.assert_allclose(found, [wanted[name]] * 2, rtol, err_msg=name)


def test_config_round_trip(trick):
    metric = trick.make(name="some_accuracy", dtype="float64")
    config = json.loads(json.dumps(metric.get_config()))
    assert type(metric).from_config(config).get_config() == metric.get_config()
    assert (metric.name, metric.dtype) == ("some_accuracy", "float64")


@pytest.mark.parametrize(
    ("mode", "replicas"), [("eager", 1), ("graph", 1), ("xla", 1), ("graph", 2)], ids=lambda value: f"{value}"
)
def test_the_results_are_the_same_eager_compiled_under_xla_and_on_two_replicas(mode, replicas):
    outside = [trick.make() for trick in METRICS]  # of the strategy's scope; inside of it: the next test
    assert_all_are(history(model_of(mode, replicas, metrics=outside), data()), expected())


def test_everything_at_once():
    def optimizer():
        return kt.LossScaleOptimizer(kt.GradientAccumulation(sgd(), 2))

    model = model_of("xla", 2, "mixed_float16", optimizer, steps_per_execution=2)
    assert_all_are(history(model, data()), expected())


def test_outputs_of_any_precision_give_the_same(trick):
    logits, labels, weights = data()
    for dtype in ("float16", "bfloat16"):
        found = trick.make()(labels, keras.ops.cast(logits, dtype), weights)
        assert float(found) == expected()[trick.make().name]


def test_saved_and_loaded_they_measure_the_same(tmp_path):
    logits, labels, _ = data()
    model = keras.Sequential([keras.Input((CLASSES,)), keras.layers.Dense(CLASSES)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[trick.make() for trick in METRICS])
    before = model.evaluate(logits, labels, verbose=0, return_dict=True)
    assert set(before) == {"loss", *(trick.make().name for trick in METRICS)}
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.evaluate(logits, labels, verbose=0, return_dict=True) == pytest.approx(before, rel=1e-6)


def test_one_hot_labels_give_the_same(trick):
    logits, labels, weights = data()
    assert float(trick.make()(np.eye(CLASSES)[labels], logits, weights)) == expected()[trick.make().name]


@pytest.mark.parametrize("label", [CLASSES, -1])
def test_a_label_that_is_no_class_is_an_error_where_it_can_be_seen(trick, label):
    logits, labels, weights = data()
    labels[9] = label
    with pytest.raises(ValueError, match=r"whole numbers in 0\.\.2\. Received: 1 others"):
        trick.make()(labels, logits, weights)


def test_a_label_that_is_no_class_makes_a_compiled_result_nan_unless_it_weighs_nothing():
    logits, labels, weights = data()
    labels[[9, 10]] = CLASSES, -1
    model = model_of()
    for values in history(model, (logits, labels, weights)).values():
        assert np.isnan(values).all()
    weights[[9, 10]] = 0
    for values in history(model, (logits, labels, weights)).values():
        assert np.isfinite(values).all()


@pytest.mark.slow
def test_on_jax_they_are_the_same_compiled_or_not():
    code = """
        import json, numpy as np
        from tests import test_contract_metrics as contract

        logits, labels, weights = contract.data()
        wrong = np.where(np.arange(len(labels)) == 9, 7, labels)
        model = contract.model_of("xla")
        found = [contract.expected()]
        found += [contract.history(model, (logits, y, weights)) for y in (labels, wrong)]
        for trick in contract.METRICS:
            try:
                trick.make()(wrong, logits)
            except ValueError as error:
                found.append(str(error))
        print(json.dumps(found))
        """
    eager, compiled, wrong, *errors = json.loads(runs.on_jax(code))
    assert eager == pytest.approx(expected(), rel=1e-6)
    assert_all_are(compiled, expected())
    assert_all_are(wrong, dict.fromkeys(wrong, np.nan))
    assert len(errors) == len(METRICS)
    assert all("whole numbers in 0..2" in error for error in errors)


TOKENS = [zoo.NETWORKS[name] for name in ("token_classifier", "gru_tagger")]
CLASSIFIERS = zoo.select(zoo.CLASSIFIER, without=[zoo.LARGE, zoo.OWN_STEP, zoo.RANDOM]) + TOKENS


@pytest.mark.parametrize("network", [n if n is TOKENS[1] else runs.slow(n) for n in CLASSIFIERS], ids=str)
def test_on_real_networks_it_is_the_mean_recall_of_what_they_predict(network):
    x, y, *w = network.data()
    with runs.strategy_of(2).scope():
        model = network.compiled(keras.optimizers.SGD)
        outputs = model.predict(x, batch_size=zoo.BATCH, verbose=0)
        metric = kt.metrics.BalancedAccuracy(outputs.shape[-1])
        model.compile(loss=kt.losses.SparseFocal(), weighted_metrics=[metric], jit_compile=False)
    weights = w[0] if w else np.ones(y.shape)
    labels = np.where(weights > 0, y, -1)
    # 9 examples: in the last batch there is none for the second replica, which TensorFlow's convolutions with
    # BatchNormalization do not take on a CPU.
    count = 10 if network.is_(zoo.STATISTICS) else 9
    x, labels, weights, outputs = keras.tree.map_structure(lambda a: a[:count], [x, labels, weights, outputs])
    found = model.evaluate(x, labels, sample_weight=weights, batch_size=4, verbose=0, return_dict=True)
    right = outputs.argmax(-1) == labels
    recalls = [right[labels == j].mean() for j in np.unique(labels[labels >= 0])]
    np.testing.assert_allclose(found["balanced_accuracy"], np.mean(recalls), rtol=1e-6)
