import copy
import functools

import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import reference, runs

COUNTS = [20, 9, 3]
BETA = 0.9


def plain_crossentropy():
    return kt.losses.ClassBalanced(COUNTS, beta=0)


def deferred_run(start_epoch=2, epochs=4, mode="graph", replicas=1, precision="float32", **arguments):
    loss = plain_crossentropy()
    deferred = kt.callbacks.DeferredReweighting(loss, start_epoch, BETA)
    return runs.train(
        lambda: kt.LossScaleOptimizer(keras.optimizers.SGD(0.05), initial_scale=2**10),
        mode,
        replicas,
        precision,
        epochs=epochs,
        loss=lambda: loss,
        callbacks=[deferred],
        **arguments,
    )


def by_hand(start_epoch=2, epochs=4):
    """Plain cross-entropy, then compiled anew with class-balanced weights."""
    optimizer = keras.optimizers.SGD(0.05)
    run = runs.train(lambda: optimizer, epochs=start_epoch, loss=plain_crossentropy)
    run.model.compile(optimizer, kt.losses.ClassBalanced(COUNTS, BETA))
    x, y = runs.images()
    run.model.fit(x, y, batch_size=8, epochs=epochs - start_epoch, shuffle=False, verbose=0)
    return runs.Run(run.model, run.losses + run.model.history.history["loss"], run.model.get_weights())


@pytest.mark.parametrize(
    ("mode", "replicas", "precision", "arguments"),
    [
        runs.slow("eager", 1, "float32", {}),
        ("graph", 1, "float32", {"steps_per_execution": 4}),
        runs.slow("xla", 1, "float32", {}),
        runs.slow("graph", 2, "float32", {}),
        ("xla", 2, "mixed_float16", {}),
        runs.slow("xla", 2, "mixed_bfloat16", {}),
    ],
)
def test_a_compiled_fit_is_that_of_two_losses_after_each_other(mode, replicas, precision, arguments):
    run = deferred_run(mode=mode, replicas=replicas, precision=precision, **arguments)
    tolerance = runs.tolerance(precision)
    runs.assert_same_weights(by_hand(), run, tolerance)
    assert run.losses == pytest.approx(by_hand().losses, rel=10 * tolerance)


def test_the_weights_are_the_papers_from_the_epoch_on_and_the_first_ones_after_training():
    seen, loss = [], kt.losses.LDAM(COUNTS)

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(loss.class_weights.numpy())

    deferred = kt.callbacks.DeferredReweighting(loss, 1, BETA)
    runs.train(keras.optimizers.SGD, batch=32, epochs=3, loss=lambda: loss, callbacks=[deferred, Watch()])
    right = reference.class_balanced_weights(COUNTS, BETA)
    np.testing.assert_allclose(seen, [np.ones(3), right, right], rtol=1e-6)
    np.testing.assert_array_equal(loss.class_weights, np.ones(3))


def test_a_run_that_goes_on_has_the_weights_of_its_epoch():
    loss = plain_crossentropy()
    run = runs.train(lambda: keras.optimizers.SGD(0.05), epochs=3, loss=lambda: loss, callbacks=[
        kt.callbacks.DeferredReweighting(loss, 2, BETA)
    ])  # fmt: skip
    x, y = runs.images()
    again = kt.callbacks.DeferredReweighting(loss, 2, BETA)
    run.model.fit(x, y, batch_size=8, initial_epoch=3, epochs=4, shuffle=False, verbose=0, callbacks=[again])
    runs.assert_same_weights(by_hand(), runs.Run(run.model, [], run.model.get_weights()), 2e-5)


def test_a_run_after_one_that_was_interrupted_starts_with_the_first_weights():
    class CtrlC(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    loss = plain_crossentropy()
    with pytest.raises(KeyboardInterrupt):
        runs.train(
            keras.optimizers.SGD,
            epochs=4,
            loss=lambda: loss,
            callbacks=[kt.callbacks.DeferredReweighting(loss, 1, BETA), CtrlC()],
        )
    assert loss.class_weights.numpy().max() > 1
    runs.train(
        keras.optimizers.SGD,
        epochs=1,
        loss=lambda: loss,
        callbacks=[
            kt.callbacks.DeferredReweighting(loss, 1, BETA),
            keras.callbacks.LambdaCallback(
                on_epoch_end=lambda epoch, logs: np.testing.assert_array_equal(loss.class_weights, np.ones(3))
            ),
        ],
    )


def test_it_reweighs_one_output_of_several():
    inputs = keras.Input((4,))
    model = keras.Model(inputs, {"a": keras.layers.Dense(3)(inputs), "b": keras.layers.Dense(1)(inputs)})
    loss = kt.losses.BalancedSoftmax(COUNTS)
    model.compile("sgd", {"a": loss, "b": "mse"})
    x, y = np.ones((8, 4), "float32"), {"a": np.arange(8) % 3, "b": np.zeros(8)}
    deferred = kt.callbacks.DeferredReweighting(loss, 1, beta=1.0)
    model.optimizer.learning_rate = 0.0
    losses = model.fit(x, y, epochs=2, batch_size=8, verbose=0, callbacks=[deferred]).history["a_loss"]
    weights = reference.class_balanced_weights(COUNTS, 1 - 1e-9)[y["a"]]
    each = reference.balanced_softmax(model.predict(x, verbose=0)["a"], np.eye(3)[y["a"]], COUNTS)
    assert losses == pytest.approx([each.mean(), (weights * each).mean()], rel=1e-5)


@pytest.mark.slow
def test_on_jax_the_compiled_steps_of_training_and_validation_change():
    code = """
        import keras, numpy as np, keras_tricks as kt
        keras.utils.set_random_seed(0)
        loss = kt.losses.ClassBalanced([20, 9, 3], beta=0)
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        model.compile(keras.optimizers.SGD(0.0), loss)
        x, y = np.random.default_rng(0).normal(size=(9, 4)).astype("float32"), np.arange(9) % 2 + 1
        log = model.fit(x, y, epochs=3, validation_data=(x, y), verbose=0, batch_size=9,
                        callbacks=[kt.callbacks.DeferredReweighting(loss, 1, 0.9)]).history
        print(np.allclose(log["loss"], log["val_loss"], rtol=1e-5))
        other = kt.losses.ClassBalanced([20, 9, 3], beta=0.9)
        expected = [float(f(y, model.predict(x, verbose=0))) for f in (loss, other, other)]
        print(np.allclose(log["loss"], expected, rtol=1e-5), abs(expected[0] - expected[1]) > 0.05)
        model.compile(keras.optimizers.SGD(0.0), loss)
        print(np.allclose(model.evaluate(x, y, verbose=0), expected[0], rtol=1e-5))
        """
    assert runs.on_jax(code).split() == ["True"] * 4


def test_a_loss_that_the_model_does_not_train_with_is_refused():
    deferred = kt.callbacks.DeferredReweighting(plain_crossentropy(), 1)
    other = functools.partial(kt.losses.BalancedSoftmax, [3, 2, 1])
    with pytest.raises(ValueError, match=r"not compiled with this ClassBalanced.*same object"):
        runs.train(keras.optimizers.SGD, epochs=1, loss=other, callbacks=[deferred])


def test_a_copy_finds_the_loss_that_is_like_its_own():
    """KerasTuner copies callbacks."""
    loss = kt.losses.BalancedSoftmax([20, 9, 3])
    deferred = kt.callbacks.DeferredReweighting(loss, 1)
    ends = [
        runs.train(lambda: keras.optimizers.SGD(0.1), loss=lambda: loss, callbacks=[callback])
        for callback in (deferred, copy.deepcopy(deferred))
    ]
    runs.assert_same_weights(*ends, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("mse", 1), TypeError, "ClassBalanced.*for plain cross-entropy.*'mse'"),
        ((kt.losses.SparseFocal(), 1), TypeError, "with class counts"),
        ((kt.losses.BalancedSoftmax([1, 2]), -1), ValueError, "`start_epoch` must be at least 0"),
        ((kt.losses.BalancedSoftmax([1, 2]), 1, 2.0), ValueError, "`beta` must be at least 0 and at most 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        kt.callbacks.DeferredReweighting(*arguments)


def test_accumulated_small_batches_equal_the_large_batch():
    def train(batch, steps):
        loss = plain_crossentropy()
        return runs.train(
            lambda: kt.GradientAccumulation(keras.optimizers.SGD(0.05), steps),
            batch=batch,
            epochs=2,
            loss=lambda: loss,
            callbacks=[kt.callbacks.DeferredReweighting(loss, 1, BETA)],
        )

    runs.assert_same_weights(train(16, 1), train(8, 2), 5e-5)


def test_a_model_that_is_saved_loaded_and_continued_equals_an_uninterrupted_run(tmp_path):
    run = deferred_run(epochs=3)
    run.model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    deferred = kt.callbacks.DeferredReweighting(loaded.loss, 2, BETA)
    x, y = runs.images()
    loaded.fit(x, y, batch_size=8, initial_epoch=3, epochs=4, shuffle=False, verbose=0, callbacks=[deferred])
    for a, b in zip(deferred_run().weights, loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
