import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from tests import runs

K = keras.optimizers
RULES = {
    "SGD": lambda **o: K.SGD(0.1, **o),
    "SGD momentum": lambda **o: K.SGD(0.1, momentum=0.9, nesterov=True, **o),
    "Adam": lambda **o: K.Adam(0.01, **o),
    "AdamW": lambda **o: K.AdamW(0.01, **{"weight_decay": 0.1, **o}),
    "Adamax": lambda **o: K.Adamax(0.01, **o),
    "Nadam": lambda **o: K.Nadam(0.01, **o),
    "Adagrad": lambda **o: K.Adagrad(0.1, **o),
    "Adadelta": lambda **o: K.Adadelta(1.0, **o),
    "RMSprop": lambda **o: K.RMSprop(0.01, momentum=0.5, **o),
    "Ftrl": lambda **o: K.Ftrl(0.1, **o),
    "Lion": lambda **o: K.Lion(0.01, **o),
    "Lamb": lambda **o: K.Lamb(0.05, **o),
    "Adafactor": lambda **o: K.Adafactor(0.05, **o),
    "Muon": lambda **o: K.Muon(0.01, **o),
    "ScheduleFreeAdamW": lambda **o: K.ScheduleFreeAdamW(0.01, **o),
    "LAMB": lambda **o: kt.LAMB(0.05, **o),
}
WRAPPERS = {
    "GradientAccumulation": lambda optimizer: kt.GradientAccumulation(optimizer, 1),
    "Lookahead": lambda optimizer: kt.Lookahead(optimizer, 2, slow_step_size=1.0),
    "AdaptiveGradientClipping": lambda optimizer: kt.AdaptiveGradientClipping(optimizer, 1e9),
    "all": lambda o: kt.Lookahead(kt.GradientAccumulation(kt.AdaptiveGradientClipping(o, 1e9), 1), 3, 1.0),
}


# Each around one rule, all of them around those with a step or a state of their own kind; the slow tests try the rest.
OWN_KIND = ("SGD momentum", "Adam", "RMSprop", "Adafactor", "Muon", "ScheduleFreeAdamW", "LAMB")
EACH_AROUND_EACH = [
    (w, r) if r == "Adam" or (w == "all" and r in OWN_KIND) else runs.slow(w, r) for w in WRAPPERS for r in RULES
]


@pytest.mark.parametrize(("wrapper", "rule"), EACH_AROUND_EACH)
def test_a_wrapper_that_changes_nothing_changes_nothing_in_any_keras_optimizer(wrapper, rule):
    shapes = [(4, 5), (5,)]
    schedule = K.schedules.ExponentialDecay(0.05, 2, 0.5)
    averages = {"use_ema": True, "ema_overwrite_frequency": 3}

    def train(wrap, constraint, **options):
        variables = [keras.Variable(runs.numbers(shape, "float32")[0]) for shape in shapes]
        variables[0].constraint = constraint
        optimizer = RULES[rule](weight_decay=0.01, **options)
        optimizer.learning_rate = schedule
        optimizer = wrap(optimizer)
        for i in range(4):
            optimizer.apply([tf.constant(runs.numbers(s, "float32")[1][i]) for s in shapes], variables)
        optimizer.finalize_variable_values(variables)
        return [keras.ops.convert_to_numpy(v) for v in variables]

    # Keras averages the weights before they are constrained, this package after, so each is tried by itself.
    for constraint, options in ((keras.constraints.MaxNorm(2.0), {"global_clipnorm": 2.0}), (None, averages)):
        wrapped, plain = (train(wrap, constraint, **options) for wrap in (WRAPPERS[wrapper], lambda o: o))
        for got, expected in zip(wrapped, plain, strict=True):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rule", ["Adam", *(runs.slow(r) for r in ("Nadam", "Muon", "Lion"))])
def test_small_batches_on_two_replicas_under_xla_equal_the_large_batch(rule):
    # A bare Keras optimizer with gradient_accumulation_steps=4 raises here: merge_call in a condition.
    make = lambda **o: RULES[rule](clipnorm=0.05, use_ema=True, **o)  # noqa: E731
    large = runs.train(lambda: kt.GradientAccumulation(make(), 1), batch=16)
    small = runs.train(lambda: kt.GradientAccumulation(make(), 4), "xla", 2, batch=4)
    runs.assert_same_weights(large, small, 5e-5)
    assert int(small.model.optimizer.iterations) == 4


def test_keras_own_accumulation_still_fails_there():
    # If this fails, Keras has mended it, and the card can say so.
    with pytest.raises(RuntimeError, match="merge_call"):
        runs.train(lambda: K.Adam(gradient_accumulation_steps=2), replicas=2, epochs=1)


def test_schedules_see_optimizer_steps_of_wrapped_optimizers():
    seen = []

    class Spy(K.schedules.LearningRateSchedule):
        def __call__(self, step):
            seen.append(int(step))
            return 0.1

    for optimizer in (
        kt.GradientAccumulation(K.SGD(Spy()), 4),
        kt.Lookahead(K.SGD(Spy(), gradient_accumulation_steps=4)),
    ):
        seen.clear()
        variable = keras.Variable(np.ones((2, 2)))
        for _ in range(8):
            optimizer.apply([tf.ones((2, 2))], [variable])
        assert seen == [0, 1]


def test_an_incomplete_window_is_kept_saved_and_completed(tmp_path):
    x, y = runs.images(24)
    run = runs.train(lambda: kt.GradientAccumulation(K.SGD(0.1), 2), data=(x, y), batch=8, epochs=1)
    assert int(run.model.optimizer.iterations) == 1  # three batches: a window of two, and a half
    pending = [v for v in run.model.optimizer.variables if "accumulator" in v.name]
    assert all(np.abs(v.numpy()).max() > 0 for v in pending)
    run.model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    for model in (run.model, loaded):
        model.fit(x[:8], y[:8], batch_size=8, verbose=0)
        assert int(model.optimizer.iterations) == 2
    for a, b in zip(run.model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_saved_file_holds_each_state_once(tmp_path):
    sizes = {}
    for name, wrap in {"plain": lambda o: o, "wrapped": lambda o: kt.GradientAccumulation(kt.Lookahead(o), 1)}.items():
        model = keras.Sequential([keras.Input((200,)), keras.layers.Dense(200)])
        model.compile(wrap(K.Adam()), "mse")
        model.fit(np.ones((2, 200)), np.ones((2, 200)), verbose=0)
        model.save(tmp_path / f"{name}.keras")
        sizes[name] = (tmp_path / f"{name}.keras").stat().st_size
    assert sizes["wrapped"] < sizes["plain"] + 1.2 * 4 * 200 * 200  # the slow weights


@pytest.mark.parametrize("clip", [{}, {"clipnorm": 0.01}], ids=str)
@pytest.mark.parametrize(("accumulated", "devices"), [runs.slow(1, 1), runs.slow(1, 2), (2, 2)])
def test_repeated_rows_of_sparse_gradients_are_merged_first(clip, accumulated, devices):
    def train(optimizer, sparse, **how):
        class Lookup(keras.layers.Layer):
            def build(self, shape):
                self.table = self.add_weight((5, 4), "ones", name="table")

            def call(self, ids):
                if sparse:
                    return keras.ops.take(self.table, ids, axis=0)
                return keras.ops.matmul(keras.ops.one_hot(ids, 5), self.table)

        network = lambda: keras.Sequential(  # noqa: E731
            [keras.Input((3,), dtype="int32"), Lookup(), keras.layers.Flatten(), keras.layers.Dense(3)]
        )
        ids = np.array([[1, 1, 2], [0, 1, 1], [3, 3, 3], [4, 1, 2]] * 2)
        return runs.train(optimizer, network=network, data=(ids, np.arange(8) % 3), epochs=3, **how)

    plain = train(lambda: kt.GradientAccumulation(K.Adam(0.05, **clip), 1), sparse=False, batch=8)
    sparse = train(
        lambda: kt.GradientAccumulation(K.Adam(0.05, **clip), accumulated),
        sparse=True,
        batch=8 // accumulated,
        replicas=devices,
    )
    runs.assert_same_weights(plain, sparse, 2e-5)
    if not clip and devices == 1:  # Keras takes the squares of each part
        stock = train(lambda: K.Adam(0.05), sparse=True, batch=8)
        assert np.abs(stock.weights[0] - plain.weights[0]).max() > 1e-3


def test_hyper_parameters_are_those_of_the_wrapped_optimizer(replicas):
    with runs.strategy_of(replicas).scope():
        inner = K.Adam(0.01, loss_scale_factor=8.0)
        optimizer = kt.GradientAccumulation(kt.Lookahead(inner), 2)
        optimizer.learning_rate = 0.5
        assert float(optimizer.learning_rate) == float(inner.learning_rate) == 0.5
        assert int(optimizer.iterations) == 0
        assert optimizer.loss_scale_factor == 8.0
        assert kt.LossScaleOptimizer(optimizer).inner_optimizer is optimizer
        assert inner.loss_scale_factor is None  # or gradients would be unscaled twice


def test_layer_names_exclude_from_decay_as_in_keras_itself():
    def train(wrap):
        optimizer = K.SGD(0.1, weight_decay=0.5)
        optimizer = wrap(optimizer)
        optimizer.exclude_from_weight_decay(var_names=["dense"])
        return runs.train(lambda: optimizer, epochs=1)

    plain, wrapped = train(lambda o: o), train(lambda o: kt.GradientAccumulation(o, 1))
    runs.assert_same_weights(plain, wrapped, 2e-5)


def test_momentum_and_beta_1_are_those_of_the_wrapped_optimizer():
    optimizer = kt.Lookahead(kt.GradientAccumulation(kt.LAMB(beta_1=0.8), 2))
    optimizer.beta_1 = 0.5
    assert float(optimizer.inner_optimizer.inner_optimizer.beta_1) == 0.5
    assert not hasattr(optimizer, "momentum")
    with pytest.raises(AttributeError, match="has no `momentum` to set"):
        optimizer.momentum = 0.5


def test_loss_scaling_around_nested_wrappers_raises_no_false_alarm():
    run = runs.train(
        lambda: kt.LossScaleOptimizer(kt.Lookahead(kt.GradientAccumulation(kt.LAMB(0.01), 2))),
        replicas=2,
        precision="mixed_float16",
    )
    assert all(np.isfinite(w).all() for w in run.weights)


def test_callbacks_see_through_the_wrappers():
    schedule = kt.schedules.CyclicalLearningRate(0.001, 0.05, step_size=2)
    make = lambda: kt.GradientAccumulation(kt.AdaptiveGradientClipping(K.SGD(0.1, momentum=0.9), 0.1), 2)  # noqa: E731
    histograms = kt.callbacks.Histograms(every=1)
    cycle = kt.callbacks.CyclicLR(schedule, momentum=(0.9, 0.3))
    run = runs.train(make, replicas=2, callbacks=[cycle, histograms])
    eager = runs.train(make, "eager", callbacks=[kt.callbacks.CyclicLR(schedule, momentum=(0.9, 0.3))])
    fixed = runs.train(make, replicas=2)
    runs.assert_same_weights(run, eager, 2e-5)
    assert np.abs(run.weights[0] - fixed.weights[0]).max() > 1e-3
    of_kernel = [r for r in histograms.history if r["path"] == run.model.layers[0].kernel.path]
    assert [r["step"] for r in of_kernel if r["what"] == "gradients"] == [1, 2, 3, 4]


@pytest.mark.parametrize("attribute", [runs.slow("momentum"), "beta_1"])
def test_a_callback_can_move_momentum_in_a_compiled_fit(attribute):
    make = {"momentum": lambda m: kt.LARS(0.5, momentum=m), "beta_1": lambda m: kt.LAMB(0.05, beta_1=m)}[attribute]

    class Move(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            setattr(self.model.optimizer.inner_optimizer, attribute, 0.9 if epoch == 0 else 0.3)

    wrap = lambda m: kt.GradientAccumulation(make(m), 1)  # noqa: E731
    moved = runs.train(lambda: wrap(0.9), replicas=2, callbacks=[Move()])
    fixed = runs.train(lambda: wrap(0.9), replicas=2)
    assert np.abs(moved.weights[0] - fixed.weights[0]).max() > 1e-4
    eager = runs.train(lambda: wrap(0.9), "eager", callbacks=[Move()])
    runs.assert_same_weights(moved, eager, 2e-5)
    assert float(getattr(moved.model.optimizer.inner_optimizer, attribute)) == pytest.approx(0.3)


class TestRefusals:
    def test_accumulating_twice(self):
        for inside in (
            K.SGD(gradient_accumulation_steps=2),
            kt.LAMB(gradient_accumulation_steps=2),
            kt.Lookahead(kt.GradientAccumulation(K.SGD(), 2)),
        ):
            with pytest.raises(ValueError, match="accumulates already, over 2 batches"):
                kt.GradientAccumulation(inside, 4)

    @pytest.mark.parametrize("steps", [0, -1])
    def test_windows_of_no_batches(self, steps):
        with pytest.raises(ValueError, match="`steps` must be at least 1"):
            kt.GradientAccumulation(K.SGD(), steps)

    @pytest.mark.parametrize("steps", [1.5, "2", None, True])
    def test_windows_that_are_no_number(self, steps):
        with pytest.raises(TypeError, match="`steps` must be an integer"):
            kt.GradientAccumulation(K.SGD(), steps)

    @pytest.mark.parametrize("keyword", ["clipnorm", "global_clipnorm", "clipvalue", "weight_decay", "learning_rate"])
    def test_keywords_of_the_wrapped_optimizer(self, keyword):
        with pytest.raises(
            ValueError, match=rf"`{keyword}` belongs to the wrapped optimizer: .*SGD\(\.\.\., {keyword}=1"
        ):
            kt.GradientAccumulation(K.SGD(), 2, **{keyword: 1.0})

    def test_loss_scaling_inside(self):
        for scaling in (K.LossScaleOptimizer(K.SGD()), kt.LossScaleOptimizer(K.SGD())):
            with pytest.raises(ValueError, match=r"LossScaleOptimizer\(GradientAccumulation\(\.\.\.\)\)"):
                kt.GradientAccumulation(scaling, 2)

    def test_optimizers_without_one_update_rule(self):
        with pytest.raises(ValueError, match="cannot take the steps of MultiOptimizer"):
            kt.GradientAccumulation(K.MultiOptimizer(lambda variable: K.SGD()), 2)

    def test_keras_accumulation_with_its_own_decay(self):
        with pytest.raises(ValueError, match=r"use keras_tricks.GradientAccumulation\(Muon\(\.\.\.\), steps=2\)"):
            kt.Lookahead(K.Muon(gradient_accumulation_steps=2))

    def test_something_that_is_no_optimizer(self):
        with pytest.raises(TypeError, match="wraps a Keras optimizer"):
            kt.GradientAccumulation("adam", 2)

    def test_keras_accumulation_on_replicas_under_loss_scaling(self):
        keras.config.set_dtype_policy("mixed_float16")
        with runs.strategy_of(2).scope():
            optimizer = kt.LossScaleOptimizer(K.Adam(gradient_accumulation_steps=2))
            with pytest.raises(ValueError, match=r"keras_tricks.GradientAccumulation\(Adam\(\.\.\.\), steps=2\)"):
                optimizer.build([keras.Variable([1.0])])
            with pytest.warns(UserWarning, match=r"GradientAccumulation\(Adam\(\.\.\., clipnorm=1.0\), steps=1\)"):
                kt.LossScaleOptimizer(K.Adam(clipnorm=1.0)).build([keras.Variable([1.0])])


@pytest.mark.skipif(not hasattr(K, "MultiOptimizer"), reason="Keras has it since 3.15")
def test_it_works_inside_of_keras_multi_optimizer():
    optimizer = kt.GradientAccumulation(K.Adam(0.01), 2)
    plain = runs.train(lambda: kt.GradientAccumulation(K.Adam(0.01), 2), epochs=1)
    inside = runs.train(lambda: K.MultiOptimizer(lambda variable: optimizer), epochs=1)
    runs.assert_same_weights(plain, inside, 2e-5)
