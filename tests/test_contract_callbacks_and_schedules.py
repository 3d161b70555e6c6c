"""What every callback and schedule of the catalogue keeps to; a new record is tested by being there."""

import functools
import json

import keras
import pytest
import tensorflow as tf

import keras_tricks as kt
from keras_tricks import catalog
from tests import runs

pytestmark = pytest.mark.filterwarnings("ignore:WeightAveraging. after")  # of two epochs only

TRICKS = [t for t in catalog.TRICKS if t.kind in ("callback", "schedule") and t.make]
SCHEDULES = {t.name: t.make() for t in TRICKS if t.kind == "schedule"}
STEPS = range(11)  # beyond the end of those that have one
# Schedules differ in their formula only: one of them is trained with, the others are compared as functions.
TRAINED = [t for t in TRICKS if t.kind == "callback" or t.object is kt.schedules.CyclicalLearningRate]


# Histograms compile for long, and have such tests of their own; the others do nothing within a step.
SLOW = (kt.callbacks.Histograms, kt.callbacks.EarlyStopping, kt.callbacks.SnapshotEnsemble)


@pytest.fixture(params=runs.slow_where(SLOW.__contains__, TRAINED), ids=lambda t: t.name)
def trick(request):
    return request.param


def train_with(trick, *conditions, batch=8, **options):
    if trick.kind == "schedule":
        return runs.train(
            lambda: kt.LossScaleOptimizer(kt.LAMB(trick.make(), **options)), *conditions, batch=batch, epochs=1
        )
    return runs.train(
        lambda: kt.LossScaleOptimizer(kt.LAMB(0.01, **options)),
        *conditions,
        batch=batch,
        epochs=1,
        callbacks=[trick.make()],
    )


def test_mixed_precision_on_two_replicas_under_xla(trick, mixed_precision):
    other = train_with(trick, "xla", 2, mixed_precision)
    runs.assert_same_weights(train_with(trick), other, runs.tolerance(mixed_precision))


def test_accumulated_small_batches_equal_the_large_batch(trick):
    large = train_with(trick, batch=16)
    small = train_with(trick, "graph", 2, batch=8, gradient_accumulation_steps=2)
    runs.assert_same_weights(large, small, 5e-5)


@functools.cache
def rates():
    """Each schedule's values, called eagerly with whole Python numbers."""
    return {name: [float(schedule(t)) for t in STEPS] for name, schedule in SCHEDULES.items()}


def test_a_schedule_survives_serialization():
    for name, schedule in SCHEDULES.items():
        config = json.loads(json.dumps(keras.saving.serialize_keras_object(schedule)))
        again = keras.saving.deserialize_keras_object(config)
        assert [float(again(t)) for t in STEPS] == rates()[name], name


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "bfloat16"])
def test_a_schedule_is_the_same_in_a_compiled_step_and_for_any_kind_of_step(policy):
    # The step is a variable, as in an optimizer; one program for all schedules, since compiling takes the time.
    iterations = keras.Variable(0, dtype="int32", trainable=False)
    eager = rates()
    keras.config.set_dtype_policy(policy)

    @tf.function(jit_compile=True)
    def compiled(step):
        return {name: (schedule(iterations), schedule(step)) for name, schedule in SCHEDULES.items()}

    for t in STEPS:
        iterations.assign(t)
        for name, values in compiled(tf.constant(t, tf.int64)).items():
            for value in values:
                assert value.dtype == "float32", name
                assert value.shape == (), name
                assert float(value) == pytest.approx(eager[name][t], rel=1e-5, abs=1e-9), (name, t)


def test_a_schedule_moves_an_optimizer_by_its_rate_at_each_step():
    for name, schedule in SCHEDULES.items():
        variable, optimizer = keras.Variable(0.0), keras.optimizers.SGD(schedule)
        for t in STEPS:
            optimizer.apply([tf.constant(-1.0)], [variable])
            assert float(variable.numpy()) == pytest.approx(sum(rates()[name][: t + 1]), rel=1e-5), (name, t)


def test_a_schedule_works_as_that_of_the_callback():
    # By the callback, two steps an execution: after an epoch of four batches the rate is that of step 3.
    x, y = runs.images()
    for name, schedule in SCHEDULES.items():
        model = keras.Sequential([keras.Input((6, 6, 1)), keras.layers.Flatten(), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(0.1), "mse", steps_per_execution=2)
        model.fit(x, y, batch_size=8, verbose=0, callbacks=[kt.callbacks.CyclicLR(schedule)])
        assert model.history.history["learning_rate"] == pytest.approx([rates()[name][3]], rel=1e-5), name


@pytest.mark.slow
def test_on_jax_the_schedules_have_the_same_values():
    code = """
        import json, jax
        from keras_tricks import catalog
        schedules = {t.name: t.make() for t in catalog.TRICKS if t.kind == "schedule" and t.make}
        compiled = jax.jit(lambda step: {name: schedule(step) for name, schedule in schedules.items()})
        print(json.dumps([{name: float(v) for name, v in compiled(t).items()} for t in range(11)]))
        """
    there, here = json.loads(runs.on_jax(code)), rates()
    for name in SCHEDULES:
        assert [at[name] for at in there] == pytest.approx(here[name], rel=1e-5, abs=1e-9), name
