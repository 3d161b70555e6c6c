"""Numbers and choices that are none are refused wherever one is taken, under the argument's name."""

import pytest
import tensorflow as tf

import keras_tricks as kt

COUNTS = [30, 20, 10]
NAN, INF = float("nan"), float("inf")
checks = kt.data.checks
ELEMENTS = tf.data.Dataset.range(3)

# Of each: what makes it, the argument, and whether it must be a whole number.
RATES = [
    (lambda v: kt.schedules.CyclicalLearningRate(v, 0.1, 4), "initial_learning_rate"),
    (lambda v: kt.schedules.CyclicalLearningRate(0.1, v, 4), "maximal_learning_rate"),
    (lambda v: kt.schedules.CyclicalLearningRate(0.1, 0.2, v), "step_size"),
    (lambda v: kt.schedules.CyclicalLearningRate(0.1, 0.2, 4, gamma=v), "gamma"),
    (lambda v: kt.schedules.OneCycle(v, 10), "max_learning_rate"),
    (lambda v: kt.schedules.OneCycle(0.1, 10, pct_start=v), "pct_start"),
    (lambda v: kt.schedules.OneCycle(0.1, 10, div_factor=v), "div_factor"),
    (lambda v: kt.schedules.OneCycle(0.1, 10, final_div_factor=v), "final_div_factor"),
    (lambda v: kt.schedules.OneCycle(0.1, 10).momentum(high=v), "high"),
    (lambda v: kt.schedules.OneCycle(0.1, 10).momentum(low=v), "low"),
    (lambda v: kt.schedules.WarmUp(v, 10), "schedule_or_float"),
    (lambda v: kt.schedules.WarmUp(0.1, 10, power=v), "power"),
    (lambda v: kt.schedules.WarmUp(0.1, 10, initial_learning_rate=v), "initial_learning_rate"),
    (lambda v: kt.schedules.SquareRoot(v), "initial_learning_rate"),
    (lambda v: kt.schedules.Factor(v, 0.9), "initial_learning_rate"),
    (lambda v: kt.schedules.Factor(0.1, v), "factor"),
    (lambda v: kt.schedules.Factor(0.1, 0.9, floor=v), "floor"),
    (lambda v: kt.schedules.MultiFactor(v, 0.9, [1]), "initial_learning_rate"),
    (lambda v: kt.schedules.MultiFactor(0.1, v, [1]), "factor"),
    (lambda v: kt.schedules.scale_learning_rate(v, batch_size=4, base_batch_size=2), "base"),
]
OTHERS = [
    (lambda v: kt.losses.ClassBalanced(COUNTS, beta=v), "beta"),
    (lambda v: kt.losses.ClassBalanced(COUNTS, gamma=v), "gamma"),
    (lambda v: kt.losses.SparseFocal(gamma=v), "gamma"),
    (lambda v: kt.losses.SparseFocal(alpha=v), "alpha"),
    (lambda v: kt.losses.SparseFocal(alpha=[1.0, v]), "alpha"),
    (lambda v: kt.losses.LDAM(COUNTS, max_margin=v), "max_margin"),
    (lambda v: kt.losses.LDAM(COUNTS, scale=v), "scale"),
    (lambda v: kt.losses.LogitAdjusted(COUNTS, tau=v), "tau"),
    (lambda v: kt.losses.LabelAwareSmoothing(COUNTS, smooth_head=v), "smooth_head"),
    (lambda v: kt.losses.LabelAwareSmoothing(COUNTS, smooth_tail=v), "smooth_tail"),
    (lambda v: kt.data.echo(v), "factor"),
    (lambda v: kt.data.make_long_tailed(3, imbalance=v), "imbalance"),
    (lambda v: kt.data.remix(COUNTS, alpha=v), "alpha"),
    (lambda v: kt.data.remix(COUNTS, tau=v), "tau"),
    (lambda v: kt.data.measure_echo_factor(ELEMENTS, print, seconds=v), "seconds"),
]
COUNTED = [
    (lambda v: kt.schedules.OneCycle(0.1, v), "total_steps"),
    (lambda v: kt.schedules.WarmUp(0.1, v), "warmup_steps"),
    (lambda v: kt.schedules.MultiFactor(0.1, 0.9, [v]), "milestones"),
    (lambda v: kt.schedules.plot(kt.schedules.SquareRoot(0.1), v), "steps"),
    (lambda v: kt.schedules.scale_learning_rate(0.1, batch_size=v, base_batch_size=2), "batch_size"),
    (lambda v: kt.schedules.scale_learning_rate(0.1, batch_size=2, base_batch_size=v), "base_batch_size"),
    (lambda v: kt.metrics.BalancedAccuracy(v), "num_classes"),
    (lambda v: kt.metrics.ShotAccuracy(COUNTS, "few", many=v), "many"),
    (lambda v: kt.metrics.ShotAccuracy(COUNTS, "few", few=v), "few"),
    (lambda v: kt.metrics.recall_by_class([0], [0], COUNTS, many=v), "many"),
    (lambda v: kt.data.class_counts(ELEMENTS, v), "num_classes"),
    (lambda v: kt.data.class_balanced(COUNTS, seed=v), "seed"),
    (lambda v: kt.data.class_balanced(COUNTS, epochs=v), "epochs"),
    (lambda v: kt.data.class_balanced(COUNTS, start_epoch=v), "start_epoch"),
    (lambda v: kt.data.class_balanced(COUNTS, shuffle_buffer=v), "shuffle_buffer"),
    (lambda v: kt.data.echo(2, shuffle_buffer=v), "shuffle_buffer"),
    (lambda v: kt.data.echo(2, seed=v), "seed"),
    (lambda v: kt.data.make_long_tailed(v), "num_classes"),
    (lambda v: kt.data.make_long_tailed(3, seed=v), "seed"),
    (lambda v: kt.data.remix(COUNTS, seed=v), "seed"),
    (lambda v: kt.data.measure_echo_factor(ELEMENTS, print, sample=v), "sample"),
    (lambda v: checks.valid_label(v), "num_classes"),
    (lambda v: checks.min_length(v, 0), "length"),
]
# Of any sign, or of any size.
SIGNED = [(lambda v: kt.data.class_balanced(COUNTS, q=v), "q")]
UNBOUNDED = [
    (lambda v: kt.data.remix(COUNTS, kappa=v), "kappa"),
    (lambda v: checks.within(v, 5, 0), "low"),
    (lambda v: checks.within(-5, v, 0), "high"),
]


@pytest.mark.parametrize(
    ("make", "argument", "values"),
    [
        *((make, name, (NAN, INF, -INF, -1.0, 1e39, "0.1", True, [0.1], 1j)) for make, name in RATES + OTHERS),
        *((make, name, (NAN, INF, -1, 2.5, "2", True, [2])) for make, name in COUNTED),
        *((make, name, (NAN, INF, -INF, 1e39, "0.1", True)) for make, name in SIGNED),
        *((make, name, (NAN, "0.1", True)) for make, name in UNBOUNDED),
    ],
)
def test_what_is_no_such_number_is_refused_by_name(make, argument, values):
    for value in values:
        if argument == "alpha" and value == [0.1]:  # one of each class
            continue
        with pytest.raises((TypeError, ValueError), match=f"`{argument}`.*Received"):
            make(value)


CHOICES = [
    (lambda v: kt.schedules.CyclicalLearningRate(0.1, 0.2, 4, mode=v), "mode"),
    (lambda v: kt.schedules.OneCycle(0.1, 10, definition=v), "definition"),
    (lambda v: kt.losses.ClassBalanced(COUNTS, base=v), "base"),
    (lambda v: kt.metrics.ShotAccuracy(COUNTS, v), "group"),
    (lambda v: kt.layers.ACConv2D(4, 3, gamma=v), "gamma"),
    (lambda v: kt.data.drop_corrupt(on_error=v), "on_error"),
    (lambda v: kt.callbacks.LRFinder(mode=v), "mode"),
    (lambda v: kt.callbacks.EarlyStopping(v), "criterion"),
    (lambda v: kt.distribute.setup(device=v), "device"),
]


@pytest.mark.parametrize(("make", "argument"), CHOICES, ids=[name for _, name in CHOICES])
@pytest.mark.parametrize("value", ["none such", 3, ["exp"]], ids=str)
def test_what_is_none_of_the_choices_is_answered_with_all_of_them(make, argument, value):
    with pytest.raises(ValueError, match=rf"`{argument}` must be '\w+'.* or ('\w+'|None)\. Received: {argument}="):
        make(value)
