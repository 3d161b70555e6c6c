import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_tricks as kt
from keras_tricks.callbacks import _activations
from keras_tricks.callbacks import _tallies as module
from keras_tricks.callbacks import histograms as public
from tests import reference, runs, zoo


def counted(values):
    values = tf.constant(values, tf.float32)
    (counts,), (moments,) = module.tally([values], [0], 1)
    np.testing.assert_array_equal(counts, module.tally([values], [0], 1, module.count_for_xla)[0][0])
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


@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("xla", [False, True])
def test_tensors_together_are_counted_as_each_alone(static, xla, monkeypatch):
    """Of any shape and type, in several packs, with a position that comes twice, one that is empty and one left out."""
    monkeypatch.setattr(module, "AT_ONCE", 2000)
    rng = np.random.default_rng(0)
    arrays = [rng.normal(size=shape) for shape in [(3, 5), (1000,), (), (0, 4), (40, 100), (7,)]]
    arrays[0][0, 0], arrays[1][3] = np.inf, np.nan
    arrays[5][:] = np.nan
    positions = [4, 0, 1, 2, 0, 5]
    tensors = [tf.constant(a, "float64" if a.ndim == 1 else "float32") for a in arrays]
    shapes = [t.shape if static or not t.shape.rank else [None, *t.shape[1:]] for t in tensors]
    signature = [tf.TensorSpec(shape, t.dtype) for shape, t in zip(shapes, tensors, strict=True)]

    @tf.function(input_signature=signature, jit_compile=xla)
    def together(*values):
        return module.tally(values, positions, 7, module.count_for_xla if xla else module.count)

    counts, moments = (x.numpy() for x in together(*tensors))
    for position in range(7):
        mine = [a.ravel() for a, p in zip(arrays, positions, strict=True) if p == position]
        values = np.concatenate([*mine, []]).astype("float32")
        np.testing.assert_array_equal(counts[position], reference.log_histogram(values))
        finite = values[np.isfinite(values)].astype("float64")
        if finite.size:
            wanted = (finite.min(), finite.max(), finite.sum(), (finite**2).sum())
            np.testing.assert_allclose(moments[position], wanted, rtol=1e-6, atol=1e-5)
        else:
            np.testing.assert_array_equal(moments[position], module.NO_MOMENTS)


def run_with(
    mode="graph", replicas=1, optimizer=lambda: keras.optimizers.SGD(0.1), every=1, precision="float32", **kwargs
):
    histograms = kt.callbacks.Histograms(every=every, **kwargs.pop("options", {}))
    run = runs.train(optimizer, mode, replicas, precision, callbacks=[histograms], epochs=1, **kwargs)
    return histograms, run


def of(histograms, what):
    return [r for r in histograms.history if r["what"] == what]


def expected(batch=8):
    """The gradients and the layers' outputs of the first step, computed by hand."""
    keras.utils.set_random_seed(0)
    model = runs.small_network()
    x, y = runs.images()
    with tf.GradientTape() as tape:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(y[:batch], model(x[:batch], training=True))
    gradients = [g.numpy() for g in tape.gradient(loss, [v.value for v in model.trainable_variables])]
    outputs = keras.Model(model.inputs[0], [layer.output for layer in model.layers])(x[:batch])
    return gradients, [np.array(output) for output in outputs]


@pytest.mark.parametrize(("mode", "replicas"), runs.conditions(("eager", 1), ("graph", 2), ("xla", 2)))
def test_gradients_and_outputs_are_those_of_the_step(mode, replicas):
    histograms, _ = run_with(mode, replicas, options={"what": ("gradients", "activations")})
    records = [r for r in histograms.history if r["step"] == 1]
    gradients, outputs = expected()
    for record, values in zip(records, gradients + outputs, strict=True):
        assert record["counts"].sum() == values.size
        # Rounding may move a value across the border of a bin.
        assert np.abs(record["counts"] - reference.log_histogram(values)).sum() <= max(2, 0.05 * values.size)
        assert record["min"] == pytest.approx(values.min(), rel=1e-3, abs=1e-6)
        assert record["sum"] == pytest.approx(values.sum(), rel=1e-3, abs=1e-5)
        assert record["mean"] == pytest.approx(values.mean(), rel=1e-3, abs=1e-6)
        assert record["std"] == pytest.approx(values.std(), rel=1e-3)
        assert record["zeros"] == pytest.approx((values == 0).mean(), abs=2e-3)
    for record, gradient in zip(records, gradients, strict=False):
        assert record["norm"] == pytest.approx(np.linalg.norm(gradient), rel=1e-4)
    conv, _, tanh, logits = records[len(gradients) :]
    np.testing.assert_array_equal(conv["alive"], (outputs[0] != 0).any(axis=(0, 1, 2)))
    assert tanh["saturated"] == (np.abs(outputs[2]) > 0.97).mean()
    assert logits["saturated"] is None


def test_gradients_are_unscaled_under_mixed_float16():
    what = {"what": ("gradients", "activations")}
    exact, _ = run_with(optimizer=lambda: kt.LAMB(0.01), options=what)
    scaled, _ = run_with(
        replicas=2, optimizer=lambda: kt.LossScaleOptimizer(kt.LAMB(0.01)), precision="mixed_float16", options=what
    )
    for a, b in zip(of(exact, "gradients"), of(scaled, "gradients"), strict=True):
        assert b["norm"] == pytest.approx(a["norm"], rel=0.02, abs=1e-4)
    for a, b in zip(of(exact, "activations"), of(scaled, "activations"), strict=True):
        assert b["counts"].sum() == a["counts"].sum()
        assert b["std"] == pytest.approx(a["std"], rel=0.02)


def test_a_step_that_loss_scaling_skips_is_not_counted():
    keras.config.set_dtype_policy("mixed_float16")
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype="float32")])
    model.compile(kt.LossScaleOptimizer(kt.LAMB(0.1)), "mse")
    histograms = kt.callbacks.Histograms(what="gradients")
    model.fit(np.full((4, 2), np.inf), np.ones(4), verbose=0, callbacks=[histograms])
    assert histograms.history == []


def test_accumulated_batches_are_counted_as_the_large_batch():
    what = {"what": ("gradients", "activations")}
    large, _ = run_with(optimizer=lambda: kt.LAMB(0.01), batch=16, options=what)
    small, _ = run_with(
        replicas=2, optimizer=lambda: kt.LAMB(0.01, gradient_accumulation_steps=4), batch=4, options=what
    )
    for a, b in zip(large.history, small.history, strict=True):
        assert (a["what"], a["step"]) == (b["what"], b["step"])
        assert b["std"] == pytest.approx(a["std"], rel=2e-3)
        assert b["counts"].sum() == a["counts"].sum()
        if a["what"] == "gradients":
            assert b["norm"] == pytest.approx(a["norm"], rel=1e-3)


def test_weights_are_those_at_the_time_and_updates_what_a_step_adds():
    histograms, run = run_with(optimizer=lambda: keras.optimizers.SGD(0.25))
    last = of(histograms, "weights")[-len(run.weights) :]
    for record, w in zip(last, run.weights, strict=True):
        assert record["norm"] == pytest.approx(np.linalg.norm(w), rel=1e-5)
    for gradient, update in zip(of(histograms, "gradients"), of(histograms, "updates"), strict=True):
        assert update["path"] == gradient["path"]
        if "kernel" not in gradient["path"] or "dense" not in gradient["path"]:  # one kernel has a constraint
            assert update["norm"] == pytest.approx(0.25 * gradient["norm"], rel=1e-2)


def test_every_n_steps_and_every_epoch():
    def steps(every, **compiled):
        histograms, _ = run_with(every=every, options={"what": "gradients"}, **compiled)
        return sorted({r["step"] for r in histograms.history})

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


def test_patterns_and_layers_choose():
    what = ("gradients", "activations")
    histograms, _ = run_with(options={"layers": ["conv2d.*/kernel", "flatten"], "what": what})
    assert {r["path"].split("/")[-1] for r in of(histograms, "gradients")} == {"kernel"}
    watched = [r["path"].split("/")[-1][:7] for r in of(histograms, "activations")][:2]
    assert watched == ["conv2d", "flatten"] or [w.rstrip("_0123456789") for w in watched] == ["conv2d", "flatten"]
    with pytest.raises(ValueError, match=r"'nothing', which is found in none[^$]*dense"):
        run_with(options={"layers": ["nothing"]})
    with pytest.raises(ValueError, match="found in none"):
        run_with(options={"layers": keras.layers.ReLU()})
    with pytest.raises(ValueError, match="found in none"):
        run_with(options={"layers": "flatten", "what": "gradients"})


@pytest.mark.parametrize("steps", [0, 1, 100])
def test_training_is_not_changed(steps, monkeypatch):
    """Whether or not steps that are not due run the function that counts."""
    monkeypatch.setattr(public, "STEPS_BEFORE_THE_SECOND_TRACE", steps)
    plain = runs.train(lambda: kt.LAMB(0.05), epochs=1)
    _, watched = run_with(optimizer=lambda: kt.LAMB(0.05), every=2)
    runs.assert_same_weights(plain, watched, 0)
    assert "update_step" not in vars(watched.model.optimizer)
    assert "train_step" not in vars(watched.model)
    assert not any("call" in vars(layer) for layer in watched.model.layers)


def test_tensorboard_reads_the_histograms_and_scalars(tmp_path):
    from tensorboard.backend.event_processing import event_accumulator

    histograms, run = run_with(options={"log_dir": tmp_path})
    events = event_accumulator.EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    path = run.model.trainable_variables[0].path
    tags = events.Tags()["tensors"]
    assert {f"{kind}/{path}" for kind in ("weights", "gradients", "updates")} <= set(tags)
    layer = run.model.layers[0].path
    assert {f"activations{name}/{layer}" for name in ("", "_mean", "_std", "_zeros", "_dead")} <= set(tags)
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


def test_the_pictures_are_drawn(tmp_path):
    import matplotlib.image

    histograms, _ = run_with()
    for what in (*public.KINDS, "gradient_flow"):
        path = histograms.plot(tmp_path / f"{what}.png", what=what)
        assert matplotlib.image.imread(path).std() > 0.05
    with pytest.raises(ValueError, match="must be one of"):
        histograms.plot(tmp_path / "none.png", what="losses")
    with pytest.raises(ValueError, match="No updates have been logged"):
        kt.callbacks.Histograms().plot(tmp_path / "none.png", what="updates")


@pytest.mark.parametrize(
    "arguments",
    [{"every": 0}, {"every": "step"}, {"every": 1.5}, {"what": ["activation"]}, {"what": []}, {"layers": "["}],
    ids=str,
)
def test_arguments_of_the_wrong_kind_are_refused(arguments):
    with pytest.raises((TypeError, ValueError), match=r"Received|invalid regular expression"):
        kt.callbacks.Histograms(**arguments)


@pytest.mark.parametrize("what", ["weights", "gradients", "updates", "activations"])
def test_layers_with_equal_names_in_two_towers_are_told_apart(what):
    histograms = kt.callbacks.Histograms(every=1, what=what)
    zoo.train(zoo.NETWORKS["equal_inner_names"], lambda: keras.optimizers.SGD(0.1), callbacks=[histograms])
    of_step = [r["path"] for r in histograms.history if r["step"] == histograms.history[0]["step"]]
    assert len(of_step) == len(set(of_step)) >= 5


class Stop(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if batch == 1:
            raise KeyboardInterrupt


def state_of(model):
    return [keras.ops.convert_to_numpy(v) for v in [*model.weights, *model.optimizer.variables]]


def operations_of_a_step(depth, callback=None):
    """The number of operations of a network's training step, with those of the functions that it calls."""
    model = keras.Sequential([keras.Input((4,)), *(keras.layers.Dense(4, "relu") for _ in range(depth))])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    step = tf.function(lambda x: model.train_step((x, x)), [tf.TensorSpec([None, 4])])
    if callback is None:
        graph = step.get_concrete_function().graph
    else:
        callback.set_model(model)
        callback.on_train_begin()
        with callback._attached():
            graph = step.get_concrete_function().graph
        callback.on_train_end()
    graph = graph.as_graph_def()
    return len(graph.node) + sum(len(function.node_def) for function in graph.library.function)


def test_the_graph_of_the_step_that_counts_grows_little_with_the_depth():
    """A layer with its two variables, in all four kinds, adds less than 45 operations to the 19 that it has."""
    plain = operations_of_a_step(20) - operations_of_a_step(10)
    watched = operations_of_a_step(20, kt.callbacks.Histograms()) - operations_of_a_step(10, kt.callbacks.Histograms())
    assert watched - plain < 10 * 45


def test_the_next_fit_of_the_same_model_traces_nothing(monkeypatch):
    traces = []
    monkeypatch.setattr(module, "tally", lambda *args, plain=module.tally: traces.append(args) or plain(*args))
    model = runs.small_network()
    x, y = runs.images()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    histograms = kt.callbacks.Histograms(every=1, what=("gradients", "updates", "activations"))

    def fit(*others):
        traces.clear()
        known = len(histograms.history)
        model.fit(x[:16], y[:16], batch_size=8, verbose=0, callbacks=[histograms, *others])
        return len(traces), histograms.history[known:]

    first, second = fit(), fit()
    assert first[0] > 0
    assert second[0] == 0
    assert [r["counts"].sum() for r in first[1]] == [r["counts"].sum() for r in second[1]]
    with pytest.raises(KeyboardInterrupt):
        fit(Stop())  # leaves a step that nobody has written
    assert [r["counts"].sum() for r in fit()[1]] == [r["counts"].sum() for r in first[1]]
    model.layers[0].trainable = False
    model.compile(keras.optimizers.SGD(0.1), loss)
    assert fit()[0] > 0
    assert {r["path"] for r in histograms.history[-8:]} < {r["path"] for r in first[1]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "make",
    [
        lambda: kt.callbacks.Histograms(every=1),
        lambda: kt.callbacks.CyclicLR(kt.schedules.CyclicalLearningRate(0.01, 0.1, 4), momentum=(0.9, 0.5)),
        lambda: kt.callbacks.WeightAveraging("swa", start=0, recompute_statistics_on=False),
        lambda: kt.callbacks.EarlyStopping(monitor="loss", restore_best_weights=True),
    ],
)
def test_after_an_interruption_a_model_is_as_one_that_never_had_the_callback(make, tmp_path):
    """And a new instance of the callback works."""
    network = zoo.NETWORKS["equal_inner_names"]
    ends = []
    for callbacks in ([], [make()]):
        model = network.compiled(lambda: keras.optimizers.SGD(0.05, momentum=0.9))
        with pytest.raises(KeyboardInterrupt):
            zoo.fit(model, network, callbacks=[*callbacks, Stop()])
        if isinstance(callbacks[0] if callbacks else None, kt.callbacks.CyclicLR):
            for v, value in zip([*model.weights, *model.optimizer.variables], ends[0], strict=False):
                v.assign(value)  # its first step had another rate
        start = state_of(model)
        zoo.fit(model, network)
        model.save(tmp_path / "m.keras")
        ends.append([*start, *state_of(model), model.evaluate(verbose=0, **zoo.arrays(network))])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_array_equal(a, b)
    zoo.fit(model, network, callbacks=[make()])


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
    assert of(run_with(optimizer=several, options={"what": ("weights", "activations")})[0], "activations")


def fit(model, histograms, x, y, optimizer="sgd", loss="mse", eager=False, **kwargs):
    model.compile(optimizer, loss, run_eagerly=eager)
    model.fit(x, y, verbose=0, callbacks=[histograms], **kwargs)
    return histograms


class Nested(keras.Model):
    """A subclassed model: a block that is called twice and recomputed, and a ReZero."""

    def __init__(self):
        super().__init__()
        self.block = keras.Sequential([keras.layers.Dense(4, "relu", name="inner"), keras.layers.Dropout(0.5)])
        self.again = kt.layers.Recompute(self.block)
        self.rezero = kt.layers.ReZero(keras.layers.Dense(4, name="branch"))
        self.head = keras.layers.Dense(1, name="head")

    def call(self, x, training=False):
        return self.head(self.rezero(self.again(self.again(x, training=training), training=training)))


class OwnStep(Nested):
    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((self(x, training=True) - y) ** 2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_weights), self.trainable_weights)
        return {"loss": loss}


@pytest.mark.parametrize(("model", "jit"), [(Nested, False), (OwnStep, True)])
def test_a_layer_counts_as_often_as_it_is_called_going_forward(model, jit):
    model = model()
    model(np.ones((1, 4), "float32"))
    if jit:
        kt.jit(model)
    histograms = kt.callbacks.Histograms(every=1, what="activations")
    x = np.ones((8, 4), "float32")
    # What validation calls is not counted.
    fit(model, histograms, x, np.ones((8, 1)), epochs=2, validation_data=(x, np.ones((8, 1))))
    sizes = {(r["path"].split("/")[-1], r["step"]): int(r["counts"].sum()) for r in histograms.history}
    for step in (1, 2):
        assert sizes["inner", step] == 2 * 8 * 4
        assert sizes["branch", step] == 8 * 4
        assert sizes["head", step] == 8


def test_outputs_that_are_never_seen_are_an_error():
    class Elsewhere(keras.Sequential):
        def train_step(self, data):
            return {"loss": keras.ops.mean(data[0])}

    model = Elsewhere([keras.Input((4,)), keras.layers.Dense(1)])
    with pytest.raises(RuntimeError, match="ran in the training step"):
        fit(model, kt.callbacks.Histograms(what="activations"), np.ones((8, 4)), np.ones((8, 1)))


def test_two_of_them_in_one_fit_are_refused():
    with pytest.raises(ValueError, match="two of these callbacks"):
        runs.train(lambda: keras.optimizers.SGD(0.1), callbacks=[kt.callbacks.Histograms() for _ in range(2)])


def test_large_outputs_are_sampled_from_all_channels_alike():
    x = np.broadcast_to(np.arange(1, 9, dtype="float32"), (2, 30, 30, 8))
    sample = _activations._sample(tf.constant(x)).numpy()
    values, counts = np.unique(sample, return_counts=True)
    assert len(values) == 8
    assert counts.max() - counts.min() <= 2
    assert 128 < sample.shape[1] <= 256


def kinds(histograms):
    return {finding.kind for finding in histograms.diagnosis()}


def deep(block, depth=20):
    inputs = x = keras.Input((8,))
    for _ in range(depth):
        x = block(keras.layers.Dense(8, "sigmoid"))(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def data():
    x = np.random.default_rng(0).normal(size=(32, 8)).astype("float32")
    return x, x[:, :1]


def test_a_deep_sigmoid_network_is_called_vanishing_and_one_with_rezero_is_not():
    plain = kt.callbacks.Histograms(what="gradients")
    (finding,) = fit(deep(lambda layer: layer), plain, *data(), eager=True).diagnosis()
    assert finding.kind == "vanishing gradients"
    assert "ReZero" in finding.text
    assert len(finding.layers) > 5
    assert all("kernel" in path for path in finding.layers)
    rezero = kt.callbacks.Histograms(what="gradients")
    assert fit(deep(kt.layers.ReZero), rezero, *data(), epochs=2, eager=True).diagnosis()[0].kind == "healthy"


def test_exploding_gradients_are_called_so():
    large = [keras.initializers.RandomNormal(stddev=3.0, seed=seed) for seed in range(8)]
    model = keras.Sequential(
        [keras.Input((8,)), *(keras.layers.Dense(8, keras.ops.sin, kernel_initializer=start) for start in large)]
    )
    histograms = kt.callbacks.Histograms(what="gradients")
    x, _ = data()
    (finding,) = fit(model, histograms, x, np.zeros((32, 8)), keras.optimizers.SGD(1e-12), eager=True).diagnosis()
    assert finding.kind == "exploding gradients"
    assert finding.layers[0] == model.trainable_variables[0].path


def test_a_relu_far_below_zero_is_called_dead():
    far = keras.initializers.Constant(-100.0)
    off = keras.layers.Dense(6, "relu", bias_initializer=far, name="off")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(6, "relu"), off, keras.layers.Dense(1)])
    histograms = fit(model, kt.callbacks.Histograms(), *data(), epochs=2)
    (dead,) = (f for f in histograms.diagnosis() if f.kind == "dead channels")
    assert dead.layers == (off.path,)
    assert "100%" in dead.text
    assert "no gradient" in kinds(histograms)


def test_saturated_units_and_updates_of_the_wrong_size_are_named():
    wide = keras.initializers.RandomNormal(stddev=50.0, seed=0)
    tanh = keras.layers.Dense(8, "tanh", kernel_initializer=wide)
    model = keras.Sequential([keras.Input((8,)), tanh, keras.layers.Dense(1)])
    slow = fit(model, kt.callbacks.Histograms(), *data(), keras.optimizers.SGD(1e-9), eager=True)
    assert {"saturated units", "updates too small"} <= kinds(slow)
    fast = fit(model, kt.callbacks.Histograms(), *data(), keras.optimizers.Adam(9.0), eager=True)
    assert "updates too large" in kinds(fast)


def test_the_first_layer_that_is_not_finite_is_named():
    root = keras.layers.Activation(keras.ops.log, name="root")
    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(8), root, keras.layers.Dense(1)])
    finding, *_ = fit(model, kt.callbacks.Histograms(), *data(), eager=True).diagnosis()
    assert (finding.kind, finding.layers) == ("not finite", (root.name,))


def test_healthy_networks_get_no_finding():
    keras.utils.set_random_seed(0)
    images, labels = runs.images(count=64)
    histograms = kt.callbacks.Histograms()
    layers = keras.layers
    normalized = [layers.Conv2D(8, 3), layers.BatchNormalization(), layers.ReLU(), layers.Flatten()]
    model = keras.Sequential([keras.Input((6, 6, 1)), *normalized, layers.Dense(16, "tanh"), layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    fit(model, histograms, images, labels, keras.optimizers.Adam(1e-3), loss, epochs=4)
    assert [finding.kind for finding in histograms.diagnosis()] == ["healthy"]


def test_before_training_there_is_nothing_to_judge():
    assert kinds(kt.callbacks.Histograms()) == {"nothing yet"}
