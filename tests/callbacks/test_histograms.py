import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_tricks as kt
from keras_tricks.callbacks import histograms as module
from tests import reference, runs


def counted(values):
    counts, moments = module.tally(tf.constant(values, tf.float32))
    np.testing.assert_array_equal(counts, module.tally(tf.constant(values, tf.float32), module._count_for_xla)[0])
    return counts.numpy(), moments.numpy()


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=False),
            st.floats(-14, 6).map(lambda e: float(np.float32(10**e))),
            st.just(0.0),
        ),
        min_size=1,
        max_size=50,
    )
)
def test_every_value_is_counted_once_in_its_bin(values):
    values = np.array(values, "float32")
    got, want = counted(values)[0], reference.log_histogram(values)
    assert got.sum() == len(values)
    # A value within rounding of a border may fall on either side of it.
    border = np.log10(np.abs(values[np.isfinite(values) & (values != 0)]).astype("float64")) * 5
    if not (np.abs(border - np.round(border)) < 1e-4).any():
        np.testing.assert_array_equal(got, want)
    finite = values[np.isfinite(values)].astype("float64")
    assert got[module.NAN] == np.isnan(values).sum()
    assert got[module.INFINITE] == np.isinf(values).sum()
    assert got[module.ZERO] == (finite == 0).sum()


def test_moments_are_those_of_the_finite_values():
    _, (low, high, total, squares) = counted([1.0, -2.0, np.nan, np.inf, 0.5])
    assert (low, high, total, squares) == (-2.0, 1.0, -0.5, 5.25)


def test_the_edges_enclose_what_the_bins_count():
    edges = module.bin_edges()
    assert len(edges) == module.NAN + 1
    assert (np.diff(edges) > 0).all()
    for value in (3e-5, -0.2, 70.0, -4e-9):
        slot = int(np.flatnonzero(counted([value])[0])[0])
        assert edges[slot] <= value <= edges[slot + 1]


def run_with(
    mode="graph", replicas=1, optimizer=lambda: keras.optimizers.SGD(0.1), every=1, precision="float32", **kwargs
):
    histograms = kt.callbacks.Histograms(every=every, **kwargs.pop("options", {}))
    run = runs.train(optimizer, mode, replicas, precision, callbacks=[histograms], epochs=1, **kwargs)
    return histograms, run


def of(histograms, what):
    return [r for r in histograms.history if r["what"] == what]


def expected_gradients(batch=8):
    """The gradients of the first step, computed by hand."""
    keras.utils.set_random_seed(0)
    model = runs.small_network()
    x, y = runs.images()
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y[:batch], model(x[:batch], training=True))
    return [g.numpy() for g in tape.gradient(loss, [v.value for v in model.trainable_variables])]


def test_the_gradients_are_those_that_the_optimizer_uses(mode, replicas):
    histograms, run = run_with(mode, replicas)
    records = of(histograms, "gradients")[: len(run.model.trainable_variables)]
    for record, gradient in zip(records, expected_gradients(), strict=True):
        assert record["step"] == 1
        assert record["counts"].sum() == gradient.size
        # Rounding may move a value across the border of a bin.
        assert np.abs(record["counts"] - reference.log_histogram(gradient)).sum() <= max(2, 0.05 * gradient.size)
        assert record["norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
        assert record["min"] == pytest.approx(gradient.min(), rel=1e-3, abs=1e-6)
        assert record["sum"] == pytest.approx(gradient.sum(), rel=1e-3, abs=1e-5)


def test_counts_are_equal_on_one_device_on_two_replicas_and_under_xla():
    counts = [
        np.stack([r["counts"] for r in of(run_with(mode, replicas)[0], "gradients")])
        for mode, replicas in (("graph", 1), ("graph", 2), ("xla", 2))
    ]
    for other in counts[1:]:
        assert np.abs(other - counts[0]).sum() <= 0.02 * counts[0].sum()  # values on the border of a bin


def test_gradients_are_unscaled_under_mixed_float16():
    exact = of(run_with(optimizer=lambda: kt.LAMB(0.01))[0], "gradients")
    scaled = of(
        run_with(replicas=2, optimizer=lambda: kt.LossScaleOptimizer(kt.LAMB(0.01)), precision="mixed_float16")[0],
        "gradients",
    )
    for a, b in zip(exact, scaled, strict=True):
        assert b["norm"] == pytest.approx(a["norm"], rel=0.02, abs=1e-4)


def test_a_step_that_loss_scaling_skips_is_not_counted():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype="float32")])
    model.compile(kt.LossScaleOptimizer(kt.LAMB(0.1)), "mse")
    histograms = kt.callbacks.Histograms(what="gradients")
    model.fit(np.full((4, 2), np.inf), np.ones(4), verbose=0, callbacks=[histograms])
    assert histograms.history == []


def test_accumulated_gradients_are_counted_once_a_window():
    large = of(run_with(optimizer=lambda: kt.LAMB(0.01), batch=16)[0], "gradients")
    small = of(
        run_with(replicas=2, optimizer=lambda: kt.LAMB(0.01, gradient_accumulation_steps=4), batch=4)[0], "gradients"
    )
    for a, b in zip(large, small, strict=True):
        assert (a["step"], a["path"].split("/")[-1]) == (b["step"], b["path"].split("/")[-1])
        assert b["norm"] == pytest.approx(a["norm"], rel=1e-3)


def test_updates_are_what_a_step_adds_to_the_weights():
    histograms, _ = run_with(optimizer=lambda: keras.optimizers.SGD(0.25))
    for gradient, update in zip(of(histograms, "gradients"), of(histograms, "updates"), strict=True):
        assert update["path"] == gradient["path"]
        if "kernel" not in gradient["path"] or "dense" not in gradient["path"]:  # one kernel has a constraint
            assert update["norm"] == pytest.approx(0.25 * gradient["norm"], rel=1e-2)


def test_weights_are_those_at_the_time():
    histograms, run = run_with()
    last = of(histograms, "weights")[-len(run.weights) :]
    for record, w in zip(last, run.weights, strict=True):
        assert record["norm"] == pytest.approx(np.linalg.norm(w), rel=1e-5)


def test_every_n_steps_and_every_epoch(replicas):
    steps = lambda every, **kw: sorted({r["step"] for r in run_with(replicas=replicas, every=every, **kw)[0].history})  # noqa: E731
    assert steps(1) == [1, 2, 3, 4]
    assert steps(2) == [2, 4]
    assert steps(2, steps_per_execution=2) == [2, 4]
    assert steps("epoch") == [4]


def test_each_epoch_has_its_own_counts():
    histograms = kt.callbacks.Histograms(what=["gradients"])
    run = runs.train(lambda: keras.optimizers.SGD(0.1), callbacks=[histograms], epochs=3)
    sizes = [w.size for w in run.weights]
    assert [int(r["counts"].sum()) for r in histograms.history] == sizes * 3  # the first of four steps


def test_infinite_gradients_show():
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    histograms = kt.callbacks.Histograms(every=1, what="gradients")
    model.fit(np.array([[np.inf, 1.0]]), np.ones(1), verbose=0, callbacks=[histograms])
    kernel, bias = histograms.history
    assert (kernel["infinite"], bias["infinite"]) == (2, 1)


def test_patterns_choose_the_variables():
    histograms, _ = run_with(options={"layers": ["conv2d.*/kernel"]})
    assert {r["path"].split("/")[-1] for r in histograms.history} == {"kernel"}
    assert len({r["path"] for r in histograms.history}) == 1
    with pytest.raises(ValueError, match="'nothing', which is found in none"):
        run_with(options={"layers": ["nothing"]})


def test_training_is_not_changed():
    plain = runs.train(lambda: kt.LAMB(0.05), epochs=1)
    _, watched = run_with(optimizer=lambda: kt.LAMB(0.05))
    runs.assert_same_weights(plain, watched, 0)
    assert "update_step" not in vars(watched.model.optimizer)


def test_tensorboard_reads_the_histograms_and_scalars(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    histograms, run = run_with(options={"log_dir": tmp_path})
    events = event_accumulator.EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    path = run.model.trainable_variables[0].path
    tags = events.Tags()["tensors"]
    assert {f"{kind}/{path}" for kind in module.KINDS} <= set(tags)
    assert f"gradients_norm/{path}" in tags
    plugin = events.summary_metadata[f"gradients/{path}"].plugin_data.plugin_name
    assert plugin == "histograms"
    first = events.Tensors(f"gradients/{path}")[0]
    rows = tf.make_ndarray(first.tensor_proto)
    record = of(histograms, "gradients")[0]
    assert first.step == 1
    assert rows[:, 2].sum() == record["counts"].sum()
    assert rows[0, 0] <= record["min"]
    assert rows[-1, 1] >= record["max"]
    assert (rows[:, 0] < rows[:, 1]).all()


def test_the_picture_is_drawn(tmp_path):
    histograms, _ = run_with()
    path = histograms.plot(tmp_path / "gradients.png")
    import matplotlib.image

    assert matplotlib.image.imread(path).std() > 0.05
    with pytest.raises(ValueError, match="No updates have been logged"):
        run_with(options={"what": "weights"})[0].plot(tmp_path / "none.png", what="updates")


@pytest.mark.parametrize(
    "arguments", [{"every": 0}, {"every": "step"}, {"every": 1.5}, {"what": ["activation"]}, {"what": []}], ids=str
)
def test_arguments_of_the_wrong_kind_are_refused(arguments):
    with pytest.raises(ValueError, match="Received"):
        kt.callbacks.Histograms(**arguments)


def test_a_model_saved_while_it_is_watched_continues_as_any_other(tmp_path):
    checkpoint = keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.keras")
    whole = runs.train(lambda: kt.LAMB(0.01), callbacks=[kt.callbacks.Histograms(), checkpoint])
    loaded = keras.models.load_model(tmp_path / "1.keras")
    loaded.fit(*runs.images(), batch_size=8, shuffle=False, verbose=0, callbacks=[kt.callbacks.Histograms()])
    for a, b in zip(loaded.get_weights(), whole.weights, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras has it since 3.15")
def test_an_optimizer_that_only_hands_on_is_reported():
    several = lambda: keras.optimizers.MultiOptimizer(lambda variable: keras.optimizers.SGD(0.1))  # noqa: E731
    with pytest.raises(ValueError, match="no `update_step` of its own"):
        run_with(optimizer=several)
    assert of(run_with(optimizer=several, options={"what": "weights"})[0], "weights")
