import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import runs

CYCLE = kt.schedules.CyclicalLearningRate(0.001, 0.2, step_size=2)


def compiled(optimizer=None, replicas=1, **options):
    keras.utils.set_random_seed(0)
    with runs.strategy_of(replicas).scope():
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(4), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
        )
        model.compile(optimizer or keras.optimizers.SGD(CYCLE), "mse", **options)
    return model


def data(count=40):
    random = np.random.default_rng(0)
    return random.normal(size=(count, 3)).astype("float32"), random.normal(size=(count, 2)).astype("float32")


class WeightsAfter(keras.callbacks.Callback):
    """The weights after each batch."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append(self.model.get_weights())


def names(ensemble):
    return [file.name[9:12] for file in ensemble.files]


def test_snapshots_are_the_weights_at_the_ends_of_the_cycles(replicas, tmp_path):
    model, ensemble, watch = compiled(replicas=replicas), kt.callbacks.SnapshotEnsemble(tmp_path, CYCLE), WeightsAfter()
    model.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[ensemble, watch])
    assert names(ensemble) == ["001", "002"]  # 10 steps, cycles of 4
    for file, expected in zip(ensemble.files, (watch.weights[3], watch.weights[7]), strict=True):
        model.load_weights(file)
        for a, b in zip(model.get_weights(), expected, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_prediction_is_the_mean_and_the_model_stays_as_it_was(tmp_path):
    model, ensemble = compiled(), kt.callbacks.SnapshotEnsemble(tmp_path, 2)
    x, y = data()
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[ensemble])
    assert len(ensemble.files) == 5
    before = model.get_weights()
    mean, of_two = ensemble.predict(x, verbose=0), ensemble.predict(x, last=2, verbose=0)
    likely = ensemble.predict(x, activation=keras.activations.softmax, verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    each = []
    for file in ensemble.files:
        model.load_weights(file)
        each.append(model.predict(x, verbose=0))
    np.testing.assert_allclose(mean, np.mean(each, axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(of_two, np.mean(each[-2:], axis=0), rtol=1e-6, atol=1e-7)
    exponentials = np.exp(np.array(each, "float64"))
    softmax = exponentials / exponentials.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(likely, softmax.mean(axis=0), rtol=1e-5)


def test_another_process_predicts_from_the_files(tmp_path):
    model = compiled()
    trained = kt.callbacks.SnapshotEnsemble(tmp_path, CYCLE)
    model.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[trained])
    fresh = kt.callbacks.SnapshotEnsemble(tmp_path, CYCLE)
    with pytest.raises(ValueError, match="no model yet"):
        fresh.predict(data()[0])
    np.testing.assert_array_equal(
        fresh.predict(data()[0], model=compiled(), verbose=0), trained.predict(data()[0], verbose=0)
    )


def test_a_prediction_that_fails_leaves_the_model_as_it_was(tmp_path):
    model, ensemble = compiled(), kt.callbacks.SnapshotEnsemble(tmp_path, CYCLE)
    model.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[ensemble])
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"incompatible|Invalid|expected"):
        ensemble.predict(np.ones((4, 7)), verbose=0)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_resumed_run_goes_on_in_the_middle_of_a_cycle(tmp_path):
    model = compiled()
    for _ in range(3):  # 5 steps each
        ensemble = kt.callbacks.SnapshotEnsemble(tmp_path, CYCLE)
        model.fit(*data(), batch_size=8, shuffle=False, verbose=0, callbacks=[ensemble])
    assert names(ensemble) == ["001", "002", "003"]


def test_only_the_newest_are_kept(tmp_path):
    model, ensemble = compiled(), kt.callbacks.SnapshotEnsemble(tmp_path, 2, keep=2)
    model.fit(*data(), batch_size=8, epochs=2, verbose=0, callbacks=[ensemble])
    assert names(ensemble) == ["004", "005"]


@pytest.mark.parametrize(
    ("optimizer", "options", "expected"),
    [
        (lambda: kt.LAMB(0.01, gradient_accumulation_steps=2), {}, ["001"]),  # 5 optimizer steps
        (lambda: kt.GradientAccumulation(keras.optimizers.SGD(0.01), 2), {}, ["001"]),
        (lambda: kt.LossScaleOptimizer(kt.AdaptiveGradientClipping(keras.optimizers.SGD(0.01))), {}, ["001", "002"]),
        (lambda: keras.optimizers.SGD(0.01), {"steps_per_execution": 5}, ["001", "002"]),
    ],
    ids=["accumulation", "wrapped-accumulation", "loss-scale", "several-steps-an-execution"],
)
def test_cycles_are_counted_in_optimizer_steps(optimizer, options, expected, tmp_path):
    model, ensemble = compiled(optimizer(), **options), kt.callbacks.SnapshotEnsemble(tmp_path, CYCLE)
    model.fit(*data(), batch_size=8, epochs=2, verbose=0, callbacks=[ensemble])
    assert names(ensemble) == expected


def test_in_mixed_float16_under_xla_it_saves_and_averages(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = compiled(kt.LossScaleOptimizer(kt.LAMB(0.01)), jit_compile=True)
    ensemble = kt.callbacks.SnapshotEnsemble(tmp_path, CYCLE)
    model.fit(*data(), batch_size=8, epochs=2, verbose=0, callbacks=[ensemble])
    assert names(ensemble) == ["001", "002"]
    mean = ensemble.predict(data()[0], verbose=0)
    each = []
    for file in ensemble.files:
        model.load_weights(file)
        each.append(model.predict(data()[0], verbose=0).astype("float32"))
    np.testing.assert_allclose(mean, np.mean(each, axis=0), rtol=1e-3, atol=1e-3)


def test_restarts_that_grow_are_followed(tmp_path):
    restarts = keras.optimizers.schedules.CosineDecayRestarts(0.1, first_decay_steps=2, t_mul=2.0)
    model, watch = compiled(keras.optimizers.SGD(restarts)), WeightsAfter()
    ensemble = kt.callbacks.SnapshotEnsemble(tmp_path, restarts)
    model.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[ensemble, watch])
    assert names(ensemble) == ["001", "002"]  # after 2 and after 2 + 4 of 10 steps; the third ends after 14
    model.load_weights(ensemble.files[1])
    np.testing.assert_array_equal(model.get_weights()[0], watch.weights[5][0])


def test_a_run_without_a_snapshot_is_not_silent(tmp_path):
    with pytest.raises(ValueError, match="ends after 5 optimizer steps, before the first cycle"):
        compiled().fit(*data(), batch_size=8, verbose=0, callbacks=[kt.callbacks.SnapshotEnsemble(tmp_path, 6)])
    with pytest.raises(ValueError, match="There are 0 snapshots"):
        kt.callbacks.SnapshotEnsemble(tmp_path, 6).predict(data()[0], model=compiled())


def test_snapshots_of_another_run_are_not_mixed_in(tmp_path):
    compiled().fit(*data(), batch_size=8, verbose=0, callbacks=[kt.callbacks.SnapshotEnsemble(tmp_path, CYCLE)])
    with pytest.raises(ValueError, match="holds 1 snapshots of another run"):
        compiled().fit(*data(), batch_size=8, verbose=0, callbacks=[kt.callbacks.SnapshotEnsemble(tmp_path, CYCLE)])


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"schedule": 0}, TypeError),
        ({"schedule": keras.optimizers.schedules.CosineDecay(0.1, 10)}, TypeError),
        ({"schedule": 4, "keep": 0}, ValueError),
    ],
    ids=["no-steps", "no-cycles", "keep-none"],
)
def test_wrong_arguments_are_refused(arguments, error, tmp_path):
    with pytest.raises(error, match="Received"):
        kt.callbacks.SnapshotEnsemble(tmp_path, **arguments)


def test_the_newest_are_kept_beyond_999_cycles_and_nothing_half_written(tmp_path):
    ensemble = kt.callbacks.SnapshotEnsemble(tmp_path, 1, keep=3)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    ensemble.set_model(model)
    for cycle in (997, 998, 999, 1000, 1001):
        ensemble._cycle = cycle
        ensemble._save()
    assert [file.name for file in ensemble.files] == [f"snapshot_{n}.weights.h5" for n in (999, 1000, 1001)]

    def full_disk(path, **options):
        path.write_bytes(b"")
        raise OSError("No space left on device")

    model.save_weights = full_disk
    ensemble._cycle = 1002
    with pytest.raises(OSError, match="No space left"):
        ensemble._save()
    assert {file.name for file in tmp_path.iterdir()} == {file.name for file in ensemble.files}
    (tmp_path / "snapshot_1003.weights.h5").write_bytes(b"")
    with pytest.raises(ValueError, match=r"snapshot_1003.weights.h5 cannot be read"):
        ensemble.predict(np.ones((1, 2)), model=model)
