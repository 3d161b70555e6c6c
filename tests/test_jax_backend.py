import numpy as np
import pytest

from tests import backends, runs


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_training_ends_where_it_does_on_tensorflow(whole, tmp_path):
    code = f"import sys, numpy; from tests import backends; numpy.savez(sys.argv[1], **backends.results({whole}))"
    runs.on_jax(code, tmp_path / "jax.npz")
    jax, tensorflow = np.load(tmp_path / "jax.npz"), backends.results(whole)
    assert set(jax) == set(tensorflow)
    assert len(tensorflow) >= 10
    for name, weights in tensorflow.items():
        np.testing.assert_allclose(jax[name], weights, rtol=2e-4, atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_callbacks_that_keep_weights_keep_the_right_ones(tmp_path):
    code = """
        import sys, keras, numpy as np, keras_tricks as kt

        x, y = np.random.default_rng(0).normal(size=(2, 32, 4)).astype("float32")

        def train(*callbacks, epochs=4):
            keras.utils.set_random_seed(0)
            layers = [keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dropout(0.3)]
            model = keras.Sequential([keras.Input((4,)), *layers, keras.layers.Dense(4)])
            model.compile(keras.optimizers.SGD(0.3), "mse")
            model.fit(x, y, batch_size=8, epochs=epochs, shuffle=False, verbose=0, validation_data=(x, y),
                      callbacks=list(callbacks))
            return model

        def same(a, b, **tolerance):
            return all(np.allclose(v, w, **tolerance) for v, w in zip(a, b, strict=True))

        class Each(keras.callbacks.Callback):
            def on_epoch_end(self, epoch, logs=None):
                weights.append(self.model.get_weights()), losses.append(logs.get("val_loss"))

        weights, losses = [], []
        plain = train(Each())
        exact = {"rtol": 0, "atol": 0}

        averaging = kt.callbacks.WeightAveraging(start=1, recompute_statistics_on=False, leave_averaged=False)
        print(same(plain.get_weights(), train(averaging).get_weights(), **exact))
        averaging = kt.callbacks.WeightAveraging(start=1, recompute_statistics_on=False)
        print(same(np.mean([w[0] for w in weights[1:]], axis=0), train(averaging).get_weights()[0], rtol=1e-5))

        best = int(np.argmin(losses))
        stopping = kt.callbacks.EarlyStopping(patience=9, restore_best_weights=True)
        print(same(weights[best], train(stopping).get_weights(), **exact))

        ensemble = kt.callbacks.SnapshotEnsemble(sys.argv[1], 8)
        model = train(ensemble)
        before, mean, each = model.get_weights(), ensemble.predict(x, verbose=0), []
        print(same(before, model.get_weights(), **exact), same(before, weights[-1], **exact))
        for file, end in zip(ensemble.files, weights[1::2], strict=True):
            model.load_weights(file)
            each.append(model.predict(x, verbose=0))
            print(same(end, model.get_weights(), **exact))
        print(same(mean, np.mean(each, axis=0), rtol=1e-5, atol=1e-6))
        """
    assert runs.on_jax(code, tmp_path).splitlines() == ["True"] * 3 + ["True True"] + ["True"] * 3


def test_what_is_for_tensorflow_only_imports_and_says_so_when_used():
    code = """
        import keras, keras_tricks as kt
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        for use in (
            lambda: kt.jit(model),
            lambda: kt.data.echo(2),
            lambda: kt.data.measure_echo_factor([], print),
            lambda: kt.data.drop_corrupt(),
            lambda: kt.data.checks.finite(),
            lambda: kt.data.class_counts([]),
            lambda: kt.data.class_balanced([1, 2]),
            lambda: kt.data.make_long_tailed(2),
            lambda: kt.data.remix([1, 2]),
            lambda: kt.distribute.setup(),
            lambda: kt.callbacks.Histograms(),
        ):
            try:
                use()
            except RuntimeError as error:
                print("TensorFlow" in str(error) or "tf." in str(error), "jax" in str(error))
        """
    assert runs.on_jax(code).splitlines() == ["True True"] * 11


def test_the_package_does_not_need_tensorflow_there():
    code = "import sys; sys.modules['tensorflow'] = None; import keras_tricks as kt; print(kt.LAMB(0.1).name)"
    assert runs.on_jax(code).strip() == "lamb"
