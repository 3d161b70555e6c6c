import itertools
import math

import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import reference, runs

FORMS = [
    {},
    {"anneal_strategy": "linear", "pct_start": 0.45},
    {"three_phase": True},
    {"three_phase": True, "pct_start": 0.5, "anneal_strategy": "linear"},
    {"definition": "fastai", "pct_start": 0.25, "final_div_factor": 1e5},
]
STEPS = 8


def of_reference(t, high, steps, form):
    names = {"anneal_strategy": "anneal"}
    return reference.one_cycle(t, high, steps, **{names.get(name, name): value for name, value in form.items()})


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("steps", [7, 20, 33])
def test_equals_the_definition_at_every_step_and_stays_at_the_end(form, steps):
    schedule = kt.schedules.OneCycle(0.3, steps, **form)
    got = [float(schedule(t)) for t in range(steps + 3)]
    np.testing.assert_allclose(got, [of_reference(t, 0.3, steps, form) for t in range(steps + 3)], rtol=2e-5)


@pytest.mark.parametrize(("pct_start", "steps"), [(0.0, 6), (1.0, 6), (0.3, 1), (0.3, 2), (0.5, 2), (1.0, 1)])
@pytest.mark.parametrize("definition", ["torch", "fastai"])
def test_cycles_without_a_rise_or_without_a_fall_are_finite(pct_start, steps, definition):
    form = {"pct_start": pct_start, "definition": definition}
    got = [float(kt.schedules.OneCycle(0.3, steps, **form)(t)) for t in range(steps + 2)]
    np.testing.assert_allclose(got, [of_reference(t, 0.3, steps, form) for t in range(steps + 2)], rtol=2e-5)
    assert max(got) <= 0.3 * (1 + 1e-6)


def test_first_rate_peak_and_last_rate_are_what_the_factors_say():
    schedule = kt.schedules.OneCycle(0.5, 100, pct_start=0.3, div_factor=10.0, final_div_factor=100.0)
    assert [float(schedule(t)) for t in (0, 29, 99, 5000)] == pytest.approx([0.05, 0.5, 0.0005, 0.0005], rel=1e-6)


def test_the_last_rates_of_a_long_run_keep_their_digits():
    # By 1 + cos(π·p) in float32 the cosine one would be wrong by 0.25 % here, 100 steps before the end.
    steps = 1_000_000
    for anneal in ("cos", "linear"):
        schedule = kt.schedules.OneCycle(1.0, steps, anneal_strategy=anneal)
        for t in (steps - 1000, steps - 100, steps - 2, steps - 1):
            want = reference.one_cycle(t, 1.0, steps, anneal=anneal)
            assert float(schedule(t)) == pytest.approx(want, rel=1e-5), (anneal, t)


def test_fastai_s_form_with_the_end_of_torch_is_that_of_optax():
    optax = pytest.importorskip("optax")
    theirs = optax.cosine_onecycle_schedule(40, 0.3, pct_start=0.25)
    ours = kt.schedules.OneCycle(0.3, 40, 0.25, final_div_factor=25e4, definition="fastai")
    for t in range(43):
        assert float(ours(t)) == pytest.approx(float(theirs(t)), rel=1e-4, abs=3e-8), t


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_momentum_runs_against_the_rate_in_the_same_phases(form):
    cycle = kt.schedules.OneCycle(0.3, 20, **form)
    momentum = cycle.momentum(0.95, 0.85)
    rates, momenta = ([float(s(t)) for t in range(23)] for s in (cycle, momentum))
    assert momenta[0] == pytest.approx(0.95)
    assert momenta[-1] == pytest.approx(0.95)
    peak = int(np.argmax(rates))
    assert int(np.argmin(momenta)) == peak
    assert min(momenta) == pytest.approx(0.85, abs=1e-3)
    for t, ((a, b), (p, q)) in enumerate(zip(itertools.pairwise(rates), itertools.pairwise(momenta), strict=True)):
        if math.isclose(p, q, abs_tol=1e-6):
            continue  # the third phase, and after the end
        assert (b > a) == (q < p), t
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(momentum))
    assert [float(again(t)) for t in range(23)] == momenta


def by_hand(cycle):
    """The same training eagerly, batch by batch, with rate and momentum from NumPy set before each step."""
    keras.utils.set_random_seed(0)
    model = runs.small_network()
    optimizer = keras.optimizers.SGD(0.01, momentum=0.9)
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), run_eagerly=True)
    x, y = runs.images()
    for t in range(STEPS):
        optimizer.learning_rate = of_reference(t, 0.1, STEPS, {})
        if cycle:
            optimizer.momentum = float(reference.one_cycle(t, 0.25, STEPS, 0.3, 0.25 / 0.95, 1.0))
        batch = slice(8 * (t % 4), 8 * (t % 4) + 8)
        model.train_on_batch(x[batch], y[batch])
    return runs.Run(model, [], model.get_weights())


def test_a_compiled_fit_moves_momentum_in_phase_with_the_rate():
    cycle = kt.schedules.OneCycle(0.1, STEPS)
    run = runs.train(
        lambda: keras.optimizers.SGD(0.01, momentum=0.9),
        replicas=2,
        callbacks=[kt.callbacks.CyclicLR(cycle, momentum=cycle.momentum(0.95, 0.25))],
        steps_per_execution=2,
    )
    history = run.model.history.history
    assert history["learning_rate"] == pytest.approx([of_reference(t, 0.1, STEPS, {}) for t in (3, 7)], rel=1e-5)
    momenta = [reference.one_cycle(t, 0.25, STEPS, 0.3, 0.25 / 0.95, 1.0) for t in (3, 7)]
    assert history["momentum"] == pytest.approx(momenta, rel=1e-5)
    runs.assert_same_weights(run, by_hand(cycle=True), 3e-5)
    still = by_hand(cycle=False)
    assert max(np.abs(a - b).max() for a, b in zip(run.weights, still.weights, strict=True)) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"max_learning_rate": 0}, ValueError),
        ({"max_learning_rate": math.inf}, ValueError),
        ({"max_learning_rate": "0.1"}, TypeError),
        ({"total_steps": 0}, ValueError),
        ({"total_steps": 10.5}, TypeError),
        ({"pct_start": 1.1}, ValueError),
        ({"pct_start": math.nan}, ValueError),
        ({"div_factor": 0}, ValueError),
        ({"final_div_factor": -1}, ValueError),
        ({"anneal_strategy": "exp"}, ValueError),
        ({"definition": "keras"}, ValueError),
        ({"three_phase": 1}, TypeError),
        ({"three_phase": True, "pct_start": 0.6}, ValueError),
        ({"three_phase": True, "definition": "fastai"}, ValueError),
    ],
    ids=str,
)
def test_impossible_values_are_refused(arguments, error):
    with pytest.raises(error, match="Received"):
        kt.schedules.OneCycle(**{"max_learning_rate": 0.1, "total_steps": 10, **arguments})


@pytest.mark.parametrize("pair", [(0.85, 0.95), (1.0, 0.9), (0.9, 0.0)])
def test_impossible_momenta_are_refused(pair):
    with pytest.raises(ValueError, match="Received"):
        kt.schedules.OneCycle(0.1, 10).momentum(*pair)


def test_a_pair_of_momenta_is_refused_by_the_callback_with_what_to_do_instead():
    # The rate ends far below its first value, so the mirror image of it would end above the high momentum.
    with pytest.raises(ValueError, match="pass a LearningRateSchedule as `momentum`"):
        kt.callbacks.CyclicLR(kt.schedules.OneCycle(0.1, 10), momentum=(0.95, 0.85))
