import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from keras_tricks._keras.snapshot import copies
from keras_tricks.callbacks import lr_finder
from tests import runs

CROSSENTROPY = keras.losses.SparseCategoricalCrossentropy


def compiled(optimizer, replicas=1, with_state=True, **options):
    """A small classifier; `with_state`, its replicas have statistics and seeds of their own."""
    if replicas == 1 and not options:
        options = {"run_eagerly": True}  # spares tracing, of which other cases have enough
    keras.utils.set_random_seed(0)
    with runs.strategy_of(replicas).scope():
        layers = [keras.Input((4,)), keras.layers.Dense(5, kernel_constraint=keras.constraints.MaxNorm(1.0))]
        if with_state:
            layers += [keras.layers.BatchNormalization(), keras.layers.Dropout(0.3, seed=1)]
        model = keras.Sequential([*layers, keras.layers.Dense(3, dtype="float32")])
        model.compile(optimizer(), CROSSENTROPY(from_logits=True), metrics=["accuracy"], **options)
    return model


def examples(count=32):
    random = np.random.default_rng(0)
    return random.normal(size=(count, 4)).astype("float32"), random.integers(0, 3, count)


def batches(x, y, *weights, size=8):
    options = tf.data.Options()
    options.autotune.enabled = False  # dropping an iterator with it takes about as long as that has lived
    return tf.data.Dataset.from_tensor_slices((x, y, *weights)).batch(size).with_options(options)


def state(model):
    variables = [*model.variables, *model.optimizer.variables, *model.metrics_variables]
    return [value for v in variables for value in copies(model, v)]


def assert_same_state(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)


def longest_fall(losses):
    """Length and end of the longest sequence of ever smaller losses, by its definition."""
    best = [1] * len(losses)
    for i in range(len(losses)):
        for j in range(i):
            if losses[j] > losses[i]:
                best[i] = max(best[i], best[j] + 1)
    return max(best), best.index(max(best))


def sigmoid_fall(rates, centre):
    return 2 - 1 / (1 + (centre / rates) ** 3)


@pytest.mark.parametrize("spacing", [np.geomspace, np.linspace])
def test_the_steepest_rate_is_where_the_loss_falls_fastest_over_the_logarithm(spacing):
    rates = spacing(1e-3, 1.0, 400)
    found = lr_finder.steepest(rates, sigmoid_fall(rates, centre=0.1))
    assert found == pytest.approx(0.1, rel=0.02)
    after_the_minimum = np.r_[sigmoid_fall(rates, 0.1), 9.0, 1.9]  # falls fast, but from a peak
    assert lr_finder.steepest(np.r_[rates, 1.1, 1.2], after_the_minimum) == found


def test_the_valley_is_in_the_middle_of_the_longest_fall():
    random = np.random.default_rng(0)
    for _ in range(20):
        losses = random.normal(size=40) - np.r_[np.zeros(15), np.linspace(0, 5, 15), np.linspace(4, 0, 10)]
        rates = np.geomspace(1e-4, 1, 40)
        length, end = longest_fall(losses)
        assert lr_finder.valley(rates, losses) == rates[end - length + length // 3 + length // 6]
    rates = np.geomspace(1e-4, 1, 100)
    losses = np.r_[np.full(40, 2.0), np.linspace(2, 1, 40), np.linspace(1, 9, 20)]
    assert rates[55] < lr_finder.valley(rates, losses) < rates[65]
    assert lr_finder.valley([0.1, 0.2], [2.0, 1.0]) == 0.1


def test_the_minimum_is_the_rate_of_the_lowest_loss():
    assert lr_finder.minimum([0.1, 0.2, 0.4], [3, 1, 2]) == 0.2


@pytest.mark.parametrize("rule", [lr_finder.valley, lr_finder.steepest, lr_finder.minimum])
def test_a_loss_that_only_rises_has_no_rate(rule):
    assert rule([0.1, 0.2, 0.4], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="same length"):
        rule([0.1, 0.2], [1, 2, 3])
    with pytest.raises(ValueError, match="finite"):
        rule([0.1, 0.2, 0.3], [1, 2, np.nan])


def curve(raw, stopped="complete", smoothing=0.8):
    average, losses = 0.0, []
    for k, loss in enumerate(raw):
        average = smoothing * average + (1 - smoothing) * loss
        losses.append(average / (1 - smoothing ** (k + 1)))
    rates = np.geomspace(1e-5, 1, len(raw))
    return lr_finder.LRCurve(rates, np.array(raw), np.array(losses), stopped, smoothing, "exp")


def test_a_flat_curve_has_no_suggestion_and_says_what_to_change():
    random = np.random.default_rng(0)
    for _ in range(50):
        flat = curve(2 + 0.3 * random.normal(size=100))
        assert flat.suggestion is None
        assert flat.suggestions == {}
    assert "Raise `max_learning_rate`" in str(flat)
    assert "Lower `min_learning_rate`" in str(curve(np.linspace(1, 9, 50), "diverged"))
    assert "more epochs" in str(curve([2.0, 1.0, 0.5], "out of data"))
    assert "NaN in the data" in str(curve([], "not finite"))


def test_a_curve_that_falls_names_the_rate_to_start_with():
    random = np.random.default_rng(0)
    raw = np.r_[np.full(40, 2.0), np.linspace(2, 1, 40), np.linspace(1, 6, 20)] + 0.1 * random.normal(size=100)
    found = curve(raw, "diverged")
    assert list(found.suggestions) == ["valley", "steepest", "minimum / 10"]
    assert found.suggestion == found.suggestions["valley"]
    assert f"Start with learning_rate={found.suggestion:.2g}" in str(found)
    assert "still falling" in str(curve(np.linspace(2, 1, 50)))


def test_a_quadratic_diverges_where_it_must():
    """SGD on w² multiplies w by 1 - 2·rate: it diverges above a rate of 1."""
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False, kernel_initializer="ones")])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    data = np.ones((1, 1)), np.zeros((1, 1))
    found = kt.callbacks.find_lr(
        model, data, min_learning_rate=0.001, max_learning_rate=3, steps=60, smoothing=0, verbose=False
    )
    rates = np.geomspace(0.001, 3, 60)[: len(found.losses)]
    weights = np.r_[1, np.cumprod(1 - 2 * rates)][:-1]
    np.testing.assert_allclose(found.learning_rates, rates, rtol=1e-12)
    np.testing.assert_allclose(found.raw_losses, weights**2, rtol=2e-4)
    assert found.stopped == "diverged"
    assert found.losses[-1] > 4 * found.losses[:-1].min() >= found.losses[-2]
    assert found.learning_rates[-2] > 1  # the loss is that before the step
    assert found.learning_rates[-3] < 1.5
    assert 0.001 < found.suggestion < 1
    assert float(model.optimizer.learning_rate) == 0.5


def test_smoothing_is_an_average_without_bias():
    model = compiled(lambda: keras.optimizers.SGD(0.1))
    found = kt.callbacks.find_lr(model, examples(), steps=12, mode="linear", smoothing=0.6, verbose=False)
    weights = 0.6 ** np.arange(12)[::-1]
    expected = [np.average(found.raw_losses[: k + 1], weights=weights[-k - 1 :]) for k in range(len(found.losses))]
    np.testing.assert_allclose(found.losses, expected)
    np.testing.assert_allclose(found.learning_rates, np.linspace(1e-7, 10, 12)[: len(expected)])


@pytest.mark.parametrize(
    ("replicas", "at_once", "window", "weighted"), [(1, 3, 1, True), (2, 1, 2, False), (1, 1, 2, True)]
)
def test_losses_are_those_of_single_batches(replicas, at_once, window, weighted):
    """The batches of a pass have 8, 8 and 4 examples; a step takes `window` of them."""
    weights = (np.linspace(0.1, 2, 20).astype("float32"),) if weighted else ()
    x, y = examples(20)
    rates = np.geomspace(1e-3, 1, 7)

    def optimizer():
        return kt.GradientAccumulation(keras.optimizers.SGD(0.1, momentum=0.9), window)

    model = compiled(optimizer, with_state=False)
    by_hand = []
    for k, rate in enumerate(rates):
        model.optimizer.learning_rate = rate
        losses, counts = [], []
        for n in range(k * window, (k + 1) * window):
            part = slice(8 * (n % 3), 8 * (n % 3) + 8)
            losses.append(model.train_on_batch(x[part], y[part], *(w[part] for w in weights))[0])
            counts.append(len(x[part]))
        by_hand.append(np.average(losses, weights=counts))

    model = compiled(optimizer, replicas, with_state=False, steps_per_execution=at_once)
    found = kt.callbacks.find_lr(
        model, batches(x, y, *weights), min_learning_rate=1e-3, max_learning_rate=1.0, steps=7, verbose=False
    )
    assert found.stopped == "complete"
    np.testing.assert_allclose(found.raw_losses, by_hand, rtol=3e-6)
    assert model.steps_per_execution == at_once


def decay():
    return keras.optimizers.schedules.ExponentialDecay(0.05, 3, 0.5)


CASES = {
    "SGD, three steps at once": (lambda: keras.optimizers.SGD(0.1, momentum=0.9), 1, {"steps_per_execution": 3}),
    "XLA, moving average": (lambda: kt.LAMB(0.1, use_ema=True), 1, {"jit_compile": True}),
    "schedule, all wrappers, replicas": (
        lambda: kt.Lookahead(kt.GradientAccumulation(kt.AdaptiveGradientClipping(keras.optimizers.Adam(decay())), 2)),
        2,
        {},
    ),
    "schedule, Keras' own accumulation": (
        lambda: keras.optimizers.Adam(decay(), gradient_accumulation_steps=3),
        1,
        {},
    ),
    "relative steps": (lambda: kt.Adafactor(), 1, {"run_eagerly": True}),
    "float16, replicas": (lambda: kt.LossScaleOptimizer(kt.Yogi(0.1)), 2, {}),
}


LIKE_THE_WRAPPERS = ("schedule, Keras' own accumulation", "float16, replicas")


@pytest.mark.parametrize("case", [runs.slow(c) if c in LIKE_THE_WRAPPERS else c for c in CASES])
def test_the_model_is_put_back_bit_for_bit(case):
    optimizer, replicas, options = CASES[case]
    if "float16" in case:
        keras.config.set_dtype_policy("mixed_float16")
    model = compiled(optimizer, replicas, **options)
    x, y = examples()
    data = batches(x, y)
    model.fit(data, verbose=0)
    rate, before = float(model.optimizer.learning_rate), state(model)
    expected = {}
    for name in ("plain", "after"):
        if name == "after":
            history, model.stop_training = model.history, "untouched"
            found = kt.callbacks.find_lr(model, data, min_learning_rate=1e-3, steps=6, divergence=1e9, verbose=False)
            assert (model.history, model.stop_training) == (history, "untouched")
            assert found.stopped == "complete"
            assert np.ptp(found.raw_losses) > 0.1
            assert float(model.optimizer.learning_rate) == rate
            assert_same_state(before, state(model))
        model.fit(data, verbose=0)
        expected[name] = state(model)
        put_back(model, before)
    assert_same_state(expected["plain"], expected["after"])
    assert not np.array_equal(expected["plain"][0], before[0])
    assert "apply" not in vars(model.optimizer)


def put_back(model, values):
    values = iter(values)
    for v in [*model.variables, *model.optimizer.variables, *model.metrics_variables]:
        for copy in model.distribute_strategy.experimental_local_results(v.value):
            copy.assign(next(values))


def test_a_schedule_is_out_of_the_way_during_the_test_only():
    losses = {}
    for name, rate in {"number": 0.5, "schedule": decay()}.items():
        model = compiled(lambda rate=rate: keras.optimizers.SGD(rate, momentum=0.5, gradient_accumulation_steps=2))
        finder = kt.callbacks.LRFinder(1e-2, 1.0, steps=6, divergence=1e9)
        model.fit(batches(*examples()), epochs=9, callbacks=[finder], verbose=0)
        losses[name] = finder.result.raw_losses
    np.testing.assert_allclose(losses["number"], losses["schedule"], rtol=1e-5)
    assert isinstance(model.optimizer.get_config()["learning_rate"], dict)


class Breaks(keras.layers.Layer):
    """Raises in the sixth call."""

    error, calls = None, 0

    def call(self, x):
        tf.numpy_function(self.count, [], [])
        return x

    def count(self):
        self.calls += 1
        if self.calls == 6:
            raise self.error("stopped")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_after_an_error_or_ctrl_c_the_model_is_as_it_was(error):
    layer = Breaks()
    layer.error = error
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dropout(0.5), layer])
    model.compile(keras.optimizers.Adam(decay()), CROSSENTROPY(from_logits=True), run_eagerly=True)
    model.optimizer.build(model.trainable_variables)
    before = state(model)
    with pytest.raises((error, tf.errors.OpError)):
        kt.callbacks.find_lr(model, batches(*examples()), verbose=False)
    assert layer.calls == 6
    assert_same_state(before, state(model))
    assert float(model.optimizer.learning_rate) == pytest.approx(0.05)


def test_an_interrupted_fit_is_put_back_by_on_train_end():
    class Interrupt(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 2:
                raise KeyboardInterrupt

    model, finder = compiled(lambda: kt.LAMB(0.1)), kt.callbacks.LRFinder(0.01, 1.0)
    model.optimizer.build(model.trainable_variables)
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        model.fit(batches(*examples()), callbacks=[finder, Interrupt()], verbose=0)
    finder.on_train_end()
    assert_same_state(before, state(model)[: len(before)])  # then metrics that the first step made
    assert (len(finder.result.losses), finder.result.stopped) == (3, "out of data")


def test_a_loss_that_is_not_finite_ends_the_test():
    model = compiled(lambda: keras.optimizers.SGD(0.1))
    x, y = examples()
    x[20] = np.nan
    before = state(model)[:2]
    found = kt.callbacks.find_lr(model, batches(x, y), verbose=False)
    assert (found.stopped, len(found.losses)) == ("not finite", 2)
    assert np.isfinite(found.raw_losses).all()
    assert_same_state(before, state(model)[:2])
    found = kt.callbacks.find_lr(model, batches(x[20:], y[20:]), verbose=False)
    assert (found.stopped, len(found.losses), found.suggestion) == ("not finite", 0, None)
    with pytest.raises(ValueError, match="nothing to draw"):
        found.plot("never.png")


def test_steps_that_loss_scaling_skips_do_not_move_the_rate():
    keras.config.set_dtype_policy("mixed_float16")
    model = compiled(lambda: kt.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2.0**30), with_state=False)
    finder = kt.callbacks.LRFinder(0.01, 0.1, steps=5)
    rates = []
    record = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: rates.append(float(model.optimizer.learning_rate))
    )
    model.fit(batches(*examples()), epochs=20, callbacks=[finder, record], verbose=0)
    assert finder.result.stopped == "complete"
    assert len(rates) > 5 + 3
    assert len(set(rates)) == 5
    assert float(model.optimizer.dynamic_scale) == 2.0**30


class Sequence(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, i):
        return tuple(part[8 * i : 8 * i + 8] for part in examples())


@pytest.mark.parametrize(
    "data",
    [
        lambda: (examples(),),
        lambda: examples(),
        lambda: (Sequence(),),
        lambda: (batches(*examples()).repeat(),),
        lambda: (batches(*examples()).filter(lambda x, y: True),),
    ],
    ids=["a tuple", "x and y", "PyDataset", "without end", "of unknown size"],
)
def test_every_kind_of_data_is_repeated_and_builds_the_model(data):
    def trained(find):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.layers.Dense(3), keras.layers.Dropout(0.5)])
        model.compile("adam", CROSSENTROPY(from_logits=True), metrics=["accuracy"], run_eagerly=True)
        if find:
            found = kt.callbacks.find_lr(model, *data(), batch_size=None, steps=6, verbose=False)
            assert len(found.losses) == 6
        model.fit(*examples(), shuffle=False, verbose=0)
        return state(model)

    assert_same_state(trained(False), trained(True))


def test_a_train_step_that_keeps_its_loss_elsewhere_is_read_from_its_logs():
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.mean = keras.layers.Dense(1, kernel_initializer="ones"), keras.metrics.Mean("mine")

        def call(self, x):
            return self.dense(x)

        def train_step(self, data):
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(self(data) ** 2)
            weights = self.trainable_weights
            self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
            self.mean.update_state(loss)
            return {self.name_of_loss: self.mean.result()}  # the mean of the epoch so far

    x = np.array([[1.0], [2.0], [3.0]], "float32")
    model = Own()
    model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
    model(x)
    options = {"min_learning_rate": 1e-9, "max_learning_rate": 2e-9, "steps": 6, "divergence": 1e9, "verbose": False}
    data = tf.data.Dataset.from_tensor_slices(x).batch(1)
    model.name_of_loss = "loss"
    found = kt.callbacks.find_lr(model, data, **options)
    np.testing.assert_allclose(found.raw_losses, [1, 4, 9, 1, 4, 9], rtol=1e-5)
    model.name_of_loss = "other"
    with pytest.raises(RuntimeError, match="Received: \\['other'\\]"):
        kt.callbacks.find_lr(model, data, **options)


def test_progress_and_result_are_shown_and_drawn(tmp_path, capsys):
    model = compiled(lambda: keras.optimizers.SGD(0.1))
    found = kt.callbacks.find_lr(model, examples(), min_learning_rate=1e-3, steps=20)
    print(found)
    assert capsys.readouterr().out.count(str(found)) == 1  # it does not print itself
    assert found.plot(tmp_path / "curve.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"min_learning_rate": 0}, ValueError),
        ({"max_learning_rate": 1e-8}, ValueError),
        ({"max_learning_rate": float("inf")}, ValueError),
        ({"min_learning_rate": "small"}, TypeError),
        ({"steps": 4}, ValueError),
        ({"steps": 10.0}, TypeError),
        ({"mode": "log"}, ValueError),
        ({"smoothing": 1}, ValueError),
        ({"divergence": 1}, ValueError),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, error):
    with pytest.raises(error, match=next(iter(arguments))):
        kt.callbacks.LRFinder(**arguments)


def several():
    maps = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.1))
    return keras.optimizers.MultiOptimizer(maps)


@pytest.mark.parametrize(
    ("use", "error", "message"),
    [
        (lambda: kt.callbacks.find_lr(3, examples()), TypeError, "keras.Model"),
        (lambda: kt.callbacks.find_lr(keras.Sequential(), examples()), ValueError, "not compiled"),
        (lambda: find(data=iter([examples()])), TypeError, "several times"),
        (lambda: find(data=batches(*examples()).take(0)), ValueError, "no batches"),
        (lambda: find(lambda: keras.optimizers.SGD(lambda: 0.1)), ValueError, "function as its learning rate"),
        (lambda: find(several), ValueError, "has several"),
        (lambda: fit_with_finder(steps_per_execution=2), ValueError, "runs single steps"),
        (lambda: fit_with_finder(built=False), ValueError, "not built"),
        (lambda: fit_with_finder(cycle()), RuntimeError, "something else set the learning rate"),
    ],
)
def test_what_cannot_work_is_refused_with_a_way_out(use, error, message):
    with pytest.raises(error, match=message):
        use()


def cycle():
    return kt.callbacks.CyclicLR(kt.schedules.CyclicalLearningRate(0.1, 0.2, 3))


def find(optimizer=lambda: keras.optimizers.SGD(0.1), data=None):
    model = compiled(optimizer)
    before = state(model)
    try:
        kt.callbacks.find_lr(model, data or batches(*examples()), verbose=False)
    finally:
        assert_same_state(before, state(model)[: len(before)])


def fit_with_finder(*callbacks, built=True, **options):
    model = compiled(lambda: keras.optimizers.SGD(0.1), **options)
    if not built:
        model = keras.Sequential([keras.layers.Dense(3)])
        model.compile("sgd", CROSSENTROPY(from_logits=True))
    model.fit(batches(*examples()), callbacks=[kt.callbacks.LRFinder(1e-3), *callbacks], verbose=0)


@pytest.mark.slow
def test_on_jax_it_finds_the_same_losses_and_puts_the_model_back():
    code = """
        import keras, numpy as np, keras_tricks as kt
        x = np.linspace(-1, 2, 16, dtype="float32").reshape(16, 1)
        class Data(keras.utils.PyDataset):
            def __len__(self): return 2
            def __getitem__(self, i): return x[8 * i : 8 * i + 8], -2 * x[8 * i : 8 * i + 8]
        for rate in (0.5, keras.optimizers.schedules.ExponentialDecay(0.5, 3, 0.5)):
            model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, kernel_initializer="ones")])
            optimizer = kt.GradientAccumulation(keras.optimizers.SGD(rate, momentum=0.5), 2)
            model.compile(kt.LossScaleOptimizer(optimizer), "mse", steps_per_execution=2)
            model.optimizer.build(model.trainable_variables)
            before = [keras.ops.convert_to_numpy(v) for v in (*model.variables, *model.optimizer.variables)]
            found = kt.callbacks.find_lr(
                model, Data(), min_learning_rate=0.01, max_learning_rate=0.3, steps=6, verbose=False
            )
            after = [keras.ops.convert_to_numpy(v) for v in (*model.variables, *model.optimizer.variables)]
            same = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
            print(keras.backend.backend() if same else "moved", *found.raw_losses)
        """
    lines = [line.split() for line in runs.on_jax(code).splitlines()]
    assert [line[0] for line in lines] == ["jax", "jax"]

    x, weights, velocity, expected = np.linspace(-1, 2, 16), np.array([1.0, 0.0]), 0, []
    for rate in np.geomspace(0.01, 0.3, 6):  # two batches a step are all examples
        error = (weights[0] + 2) * x + weights[1]
        expected.append((error**2).mean())
        velocity = 0.5 * velocity - rate * 2 * np.array([(error * x).mean(), error.mean()])
        weights = weights + velocity
    for line in lines:
        np.testing.assert_allclose([float(loss) for loss in line[1:]], expected, rtol=1e-4)
