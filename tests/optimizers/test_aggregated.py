import gc
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt
from keras_tricks import catalog
from keras_tricks.optimizers import _aggregated
from tests import runs

OPTIMIZERS = [t for t in catalog.TRICKS if t.kind == "optimizer" and t.make]


def test_every_private_hook_of_keras_is_where_it_was():
    optimizer = keras.optimizers.Nadam(use_ema=True, gradient_accumulation_steps=2)  # it has one hook of its own
    optimizer.build([keras.Variable([1.0])])
    missing = [name for name in _aggregated.PRIVATE_HOOKS if not hasattr(optimizer, name)]
    assert not missing, f"Keras {keras.__version__} has moved {missing}; optimizers/_aggregated.py needs them"


@pytest.mark.parametrize(
    "clip", [{"clipnorm": 0.05}, {"global_clipnorm": 0.05}, runs.slow({"clipvalue": 0.003})], ids=str
)
def test_clipping_on_two_replicas_is_clipping_on_one_device(clip):
    # Both clip; stock Keras differs here by up to 40 % of the update.
    one, two = (runs.train(lambda: kt.LAMB(0.05, epsilon=0.1, **clip), replicas=n) for n in (1, 2))
    unclipped = runs.train(lambda: kt.LAMB(0.05, epsilon=0.1))
    runs.assert_same_weights(one, two, 2e-5)
    assert max(np.abs(a - b).max() for a, b in zip(one.weights, unclipped.weights, strict=True)) > 1e-3


@pytest.mark.parametrize(("mode", "replicas"), runs.conditions(("eager", 1), ("graph", 2), ("xla", 2)))
def test_accumulating_small_batches_equals_the_large_batch(mode, replicas):
    large = runs.train(lambda: kt.LAMB(0.05, global_clipnorm=0.1), batch=16)
    small = runs.train(
        lambda: kt.LAMB(0.05, global_clipnorm=0.1, gradient_accumulation_steps=4), mode, replicas, batch=4
    )
    runs.assert_same_weights(large, small, 5e-5)
    assert int(keras.ops.convert_to_numpy(small.model.optimizer.iterations)) == 4


def test_schedules_count_optimizer_steps():
    seen = []

    class Spy(keras.optimizers.schedules.LearningRateSchedule):
        def __call__(self, step):
            seen.append(int(step))
            return 0.1

    optimizer = kt.LAMB(Spy(), gradient_accumulation_steps=4)
    variable = keras.Variable(np.ones((2, 2)))
    for _ in range(8):
        optimizer.apply([tf.ones((2, 2))], [variable])
    assert seen == [0, 1]  # Keras' own optimizers would say [3, 7]


def test_averages_move_once_an_optimizer_step_whatever_the_accumulation():
    large = runs.train(lambda: kt.LAMB(0.05, use_ema=True, ema_momentum=0.7), batch=16)
    small = runs.train(
        lambda: kt.LAMB(0.05, use_ema=True, ema_momentum=0.7, gradient_accumulation_steps=4), replicas=2, batch=4
    )
    runs.assert_same_weights(large, small, 5e-5)  # fit ends by putting the averages in place


@pytest.mark.parametrize("replicas", [runs.slow(1), 2])
def test_averages_overwrite_the_weights_on_their_beat(replicas):
    optimizer = lambda **kw: kt.LAMB(0.05, use_ema=True, ema_momentum=0.7, ema_overwrite_frequency=2, **kw)  # noqa: E731
    large = runs.train(optimizer, batch=16)
    small = runs.train(lambda: optimizer(gradient_accumulation_steps=2), replicas=replicas, batch=8)
    runs.assert_same_weights(large, small, 5e-5)


def test_average_is_the_textbook_recursion():
    variable = keras.Variable([4.0])
    optimizer = kt.LAMB(0.5, use_ema=True, ema_momentum=0.75, beta_1=0.0, epsilon=0.0)
    average, values = None, []
    for _ in range(4):
        optimizer.apply([tf.ones(1)], [variable])
        value = float(variable[0])
        average = value if average is None else 0.75 * average + 0.25 * value
        values.append(average)
    assert values[-1] != values[0]
    average_variable = next(v for v in optimizer.variables if "average" in v.name)
    assert float(average_variable[0]) == pytest.approx(values[-1], rel=1e-6)


def test_an_incomplete_window_is_kept_and_completed_by_the_next_fit():
    x, y = runs.images(24)
    run = runs.train(lambda: kt.LAMB(0.05, gradient_accumulation_steps=2), data=(x, y), batch=8, epochs=1)
    optimizer = run.model.optimizer
    pending = [v for v in optimizer.variables if "accumulator" in v.name]
    assert int(optimizer.iterations) == 1  # three batches: one window of two, and a half
    assert all(np.abs(v.numpy()).max() > 0 for v in pending)
    run.model.fit(x[:8], y[:8], batch_size=8, verbose=0)
    assert int(optimizer.iterations) == 2
    assert all(np.abs(v.numpy()).max() == 0 for v in pending)


def test_constraints_hold_after_every_step_on_every_replica(replicas):
    run = runs.train(lambda: kt.LAMB(0.3), replicas=replicas)
    kernel = run.model.layers[2].kernel.value
    for copy in run.model.distribute_strategy.experimental_local_results(kernel):
        assert np.linalg.norm(copy.numpy(), axis=0).max() <= 1 + 1e-6


def test_applying_outside_of_a_replica_is_explained():
    strategy = runs.strategy_of(2)
    with strategy.scope():
        variable = keras.Variable([1.0])
        optimizer = kt.LAMB()
        with pytest.raises(RuntimeError, match=r"strategy\.run"):
            optimizer.apply([tf.ones(1)], [variable])


def test_apply_without_variables_needs_a_built_optimizer_and_all_gradients():
    optimizer = kt.LAMB()
    with pytest.raises(ValueError, match="needs a built optimizer"):
        optimizer.apply([tf.ones(1)])
    optimizer.build([keras.Variable([1.0]), keras.Variable([1.0])])
    with pytest.raises(ValueError, match="Expected 2 gradients, received 1"):
        optimizer.apply([tf.ones(1)])
    with pytest.raises(ValueError, match="Expected 1 gradients, received 2"):
        optimizer.apply([tf.ones(1)] * 2, [keras.Variable([1.0])])
    with pytest.raises(ValueError, match="Unknown variable"):
        optimizer.apply([tf.ones(1)], [keras.Variable([1.0])])


class PlainSGD(_aggregated.AggregatedOptimizer):
    """A rule without decay of its own."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign(variable, variable - learning_rate * gradient)


def test_a_rule_without_decay_of_its_own_decays_beside_the_step(replicas):
    plain = runs.train(lambda: keras.optimizers.SGD(0.1, weight_decay=0.2), epochs=1)
    ours = runs.train(
        lambda: PlainSGD(0.1, weight_decay=0.2, exclude_from_weight_decay=[]), replicas=replicas, epochs=1
    )
    runs.assert_same_weights(plain, ours, 2e-5)


def test_a_constant_loss_scale_changes_nothing_also_for_sparse_gradients():
    def train(**options):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((3,), dtype="int32"), keras.layers.Embedding(5, 4)])
        model.compile(kt.LAMB(0.1, **options), "mse")
        model.fit(np.array([[1, 1, 2], [0, 1, 3]]), np.ones((2, 3, 4)), epochs=3, verbose=0)
        return model.get_weights()[0]

    np.testing.assert_allclose(train(loss_scale_factor=256.0), train(), rtol=1e-5)


RULES = [trick for trick in OPTIMIZERS if not hasattr(trick.make(), "inner_optimizer")]


@pytest.mark.parametrize("trick", RULES, ids=lambda t: t.name)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_update_step_can_be_called_by_hand_as_that_of_keras_optimizers(trick, dtype):
    start, gradients = runs.numbers((4, 3), "float32")
    variable = keras.Variable(start, dtype=dtype)
    gradients = [tf.cast(g, dtype) for g in gradients]
    applied, optimizer = keras.Variable(start, dtype=dtype), trick.make()
    for g in gradients:
        optimizer.apply([g], [applied])
    by_hand = trick.make()
    by_hand.build([variable])
    for g in gradients:
        by_hand.update_step(g, variable, by_hand.learning_rate)
        by_hand.iterations.assign_add(1)
    ends = [keras.ops.convert_to_numpy(keras.ops.cast(v, "float64")) for v in (variable, applied)]
    np.testing.assert_array_equal(*ends)
    assert np.abs(ends[0] - start).max() > 1e-4


def test_an_optimizer_that_was_lent_to_a_wrapper_keeps_no_trace_of_it():
    lent, kernel = kt.LAMB(0.1), keras.Variable(np.ones((2, 2), "float32"))

    def train():
        wrapper = kt.AdaptiveGradientClipping(lent)
        tf.function(lambda: wrapper.apply([tf.ones((2, 2))], [kernel]))()
        with pytest.warns(UserWarning, match="`beta_2` was set after a step of LAMB had been compiled"):
            lent.beta_2 = 0.9

    train()
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lent.beta_2 = 0.99
    assert not lent.traces


def test_the_second_step_is_not_traced_again():
    traces = []

    class Spy(kt.LAMB):
        def update_step(self, *arguments):
            traces.append(1)
            super().update_step(*arguments)

    run = runs.train(lambda: Spy(0.05), epochs=1)
    after_first = len(traces)
    run.model.fit(*runs.images(), batch_size=8, verbose=0)
    assert len(traces) == after_first


@pytest.mark.skipif(not hasattr(keras.optimizers, "MultiOptimizer"), reason="Keras has it since 3.15")
def test_it_works_inside_of_keras_multi_optimizer():
    optimizer = kt.LAMB(0.05)
    plain = runs.train(lambda: kt.LAMB(0.05), epochs=1)
    inside = runs.train(lambda: keras.optimizers.MultiOptimizer(lambda variable: optimizer), epochs=1)
    runs.assert_same_weights(plain, inside, 2e-5)


def _step(optimizer, variables):
    def step(*gradients):
        optimizer.apply(list(gradients), variables)

    return step


def parts_of(shape):
    """Static shapes that say less and less of `shape`."""
    return [tf.TensorShape([None, *shape[1:]]), tf.TensorShape([None] * len(shape)), tf.TensorShape(None)]


@pytest.mark.parametrize("trick", runs.of_each_kind(OPTIMIZERS), ids=lambda t: t.name)
def test_a_gradient_whose_shape_a_trace_does_not_know_has_its_variables(trick):
    make = trick.make
    for jit_compile in (False, True):
        ends = []
        for spec in parts_of((4, 3)):
            optimizer, kernel = make(global_clipnorm=1.0), keras.Variable(runs.numbers((4, 3), "float32")[0])
            inner = getattr(optimizer, "inner_optimizer", optimizer)
            (inner if isinstance(inner, _aggregated.AggregatedOptimizer) else optimizer).jit_compile = jit_compile
            gradients = runs.numbers((4, 3), "float32")[1][:2]
            step = tf.function(_step(optimizer, [kernel]), input_signature=[tf.TensorSpec(spec, "float32")])
            for g in gradients:
                step(tf.constant(g))
            ends.append(kernel.numpy())
        known = runs.steps(make(global_clipnorm=1.0), runs.numbers((4, 3), "float32")[0], gradients)
        for end in ends:
            np.testing.assert_allclose(end, known, rtol=2e-5, atol=1e-6)


def test_a_gradient_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"has shape \(2, 3\), its gradient \(3, 2\)"):
        kt.LAMB().apply([tf.ones((3, 2))], [keras.Variable(np.ones((2, 3)))])


@pytest.mark.parametrize("trick", runs.of_each_kind(OPTIMIZERS), ids=lambda t: t.name)
def test_variables_of_tensorflow_train_as_those_of_keras(trick):
    make = trick.make
    starts = [runs.numbers(shape, "float32")[0] for shape in ((4, 3), (3,), ())]
    gradients = [tf.constant(runs.numbers(shape, "float32")[1][0]) for shape in ((4, 3), (3,), ())]
    ends = []
    for kind in (keras.Variable, tf.Variable):
        optimizer = make(use_ema=True, gradient_accumulation_steps=2)
        variables = [kind(start) for start in starts]
        for _ in range(4):
            optimizer.apply(gradients, variables)
        optimizer.finalize_variable_values(variables)
        ends.append([keras.ops.convert_to_numpy(v) for v in variables])
    for a, b in zip(*ends, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
        assert np.isfinite(a).all()


@pytest.mark.parametrize("trick", runs.of_each_kind(OPTIMIZERS), ids=lambda t: t.name)
def test_variables_without_elements_and_with_one_do_no_harm(trick):
    make = trick.make
    shapes = [(0, 5), (0,), (1, 1), (), (2, 3)]
    for options in ({}, {"gradient_accumulation_steps": 2, "use_ema": True, "global_clipnorm": 1.0}):
        for decorate in (lambda f: f, tf.function):
            optimizer = make(**options)
            variables = [keras.Variable(np.ones(shape, "float32")) for shape in shapes]
            step = decorate(_step(optimizer, variables))
            for _ in range(2):
                step(*(tf.ones(v.shape) for v in variables))
            assert all(np.isfinite(v.numpy()).all() for v in variables)
            assert (variables[-1].numpy() != 1).all()


@pytest.mark.filterwarnings("ignore:Gradients do not exist")  # in the first batch, which others may follow or not
@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("make", [lambda: kt.SM3(0.1, gradient_accumulation_steps=2), lambda: _accumulated_sgd()])
def test_a_head_without_a_gradient_in_the_last_batch_of_a_window_takes_its_step(make, mode):
    """Two heads, batches of one task each: as if each batch had brought a gradient of 0 for the other head."""
    ends = []
    for absent in (None, tf.constant(0.0)):
        optimizer, heads = make(), [keras.Variable(1.0), keras.Variable(1.0)]
        optimizer.build(heads)
        step = _step(optimizer, heads)
        step = tf.function(step) if mode == "graph" else step
        one = tf.constant(1.0)
        for _ in range(4):
            step(one, absent)
            step(absent, one)
        ends.append([h.numpy() for h in heads])
    np.testing.assert_allclose(*ends, rtol=1e-6)
    assert max(ends[0]) < 1


def _accumulated_sgd():
    return kt.GradientAccumulation(keras.optimizers.SGD(0.01), 2)


def test_a_variable_without_a_gradient_stays_as_it_is():
    optimizer = kt.Lookahead(kt.LAMB(0.1, weight_decay=0.5, exclude_from_weight_decay=[]), sync_period=2)
    head, other = keras.Variable(np.ones((2, 2))), keras.Variable(np.ones((2, 2)))
    optimizer.build([head, other])
    for _ in range(4):
        with pytest.warns(UserWarning, match="Gradients do not exist"):
            optimizer.apply([tf.ones((2, 2)), None], [head, other])
    np.testing.assert_array_equal(other.numpy(), 1)
    assert (head.numpy() != 1).all()


def frozen_later(optimizer):
    """Two layers of one shape; the first is frozen after an epoch and the model compiled again."""
    layers = [keras.layers.Dense(4, name=name) for name in "ab"]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(optimizer, "mse")
    x = runs.numbers((12, 4), "float32")[0]
    model.fit(x, 2 * x, batch_size=4, verbose=0)
    layers[0].trainable = False
    model.compile(optimizer, "mse")
    before = [layer.get_weights() for layer in layers]
    model.fit(x, 2 * x, batch_size=4, verbose=0)
    return before, [layer.get_weights() for layer in layers], optimizer


@pytest.mark.parametrize(
    "make",
    [
        lambda: kt.Lookahead(keras.optimizers.SGD(0.05), 2),
        lambda: kt.LAMB(0.01, use_ema=True, weight_decay=0.1),
        lambda: kt.LAMB(0.01, use_ema=True, ema_overwrite_frequency=2),
        lambda: kt.GradientAccumulation(keras.optimizers.Adam(0.01, use_ema=True), 2),
        lambda: kt.LossScaleOptimizer(keras.optimizers.Adam(0.01, use_ema=True)),
    ],
)
def test_a_layer_that_is_frozen_later_stays_and_the_other_gets_its_own_average(make):
    before, after, optimizer = frozen_later(make())
    for a, b in zip(before[0], after[0], strict=True):
        np.testing.assert_array_equal(a, b)
    rule = optimizer
    while hasattr(rule, "inner_optimizer"):
        rule = rule.inner_optimizer
    if rule.use_ema:
        # The averages are of the variables in the order of the build: a's kernel and bias, then b's.
        averages = rule._model_variables_moving_average[2:]
        for average, weight in zip(averages, after[1], strict=True):
            np.testing.assert_allclose(weight, average.numpy(), rtol=1e-6)
    assert not np.allclose(before[1][0], after[1][0], atol=1e-4)


def test_an_overflow_on_one_replica_is_skipped_whatever_the_global_precision(capfd):
    with runs.strategy_of(2).scope():
        layer = keras.layers.Dense(1, dtype="mixed_float16", kernel_initializer="ones")
        model = keras.Sequential([keras.Input((2,), dtype="float32"), layer])
        model.compile(kt.LAMB(0.1), "mse")
    x = np.ones((4, 2), "float32")
    x[2] = np.inf  # of the second replica
    model.fit(x, np.ones((4, 1)), batch_size=4, verbose=0, shuffle=False)
    np.testing.assert_array_equal(model.get_weights()[0], 1)
    assert "LAMB skipped a step" in capfd.readouterr().err


def test_nothing_is_left_on_an_optimizer_that_was_wrapped_once():
    inner = kt.LAMB(0.1)
    before = dict(vars(inner))
    kt.LossScaleOptimizer(kt.Lookahead(inner))
    assert vars(inner).keys() == before.keys()


def test_integers_are_not_trained():
    with pytest.raises(TypeError, match="Only variables of a floating dtype"):
        kt.LAMB().apply([tf.ones(2)], [keras.Variable(np.ones(2, "int32"))])


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    "make",
    [
        lambda: kt.Yogi(0.1, weight_decay=0.5, exclude_from_weight_decay=[], use_ema=True),
        lambda: kt.GradientAccumulation(keras.optimizers.AdamW(0.1, weight_decay=0.5), 2),
    ],
)
@pytest.mark.parametrize("devices", [1, runs.slow(2)])
def test_the_end_of_a_dataset_of_unknown_size_is_no_step(make, devices):
    """Keras begins one step more than there are batches: its own optimizers count it, and decay the weights in it."""
    ends = []
    for is_known in (True, False):
        keras.utils.set_random_seed(0)
        with runs.strategy_of(devices).scope():
            model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
            model.compile(make(), "mse", jit_compile=False)
        data = tf.data.Dataset.from_tensor_slices((np.ones((6, 2)), np.ones((6, 1))))
        data = data if is_known else data.filter(lambda x, y: True)
        model.fit(data.batch(2), epochs=3, shuffle=False, verbose=0)
        ends.append([*model.get_weights(), *(keras.ops.convert_to_numpy(v) for v in model.optimizer.variables)])
    for known, unknown in zip(*ends, strict=True):
        np.testing.assert_allclose(known, unknown, rtol=1e-6)
