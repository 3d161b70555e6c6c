"""`retrain_classifier` and `learn_scale`, which train alike."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from keras.ops import convert_to_numpy as numpy_of

import keras_tricks as kt
from keras_tricks.models import learn_scale, retrain_classifier
from tests import runs
from tests.models.classifiers import QUIET, data, drawn, network, state


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
    from keras_tricks.models._second_stage import _Drawn

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
