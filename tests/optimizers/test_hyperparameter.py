"""Arguments of optimizers: what is no value is refused by name, and what is set later acts or says why not."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.optimizers import AdamW

import keras_tricks as kt

INF, NAN = float("inf"), float("nan")


def adam(**arguments):
    return kt.GradientAccumulation(keras.optimizers.Adam(**arguments), 2)


NO_VALUES = {
    "learning_rate": (kt.LAMB, [INF, NAN, -1.0, True, 1e39]),
    "weight_decay": (kt.LAMB, [INF, NAN, -0.1, "much"]),
    "clipnorm": (kt.Yogi, [INF, NAN, -1]),
    "global_clipnorm": (kt.SM3, [INF, NAN, -1]),
    "clipvalue": (kt.LARS, [INF, NAN, -1]),
    "loss_scale_factor": (kt.LAMB, [0, INF, NAN, -1, 1e-320]),
    "ema_momentum": (kt.LAMB, [NAN, -0.1, 1.1]),
    "ema_overwrite_frequency": (kt.LAMB, [0, 2.5]),
    "gradient_accumulation_steps": (kt.LAMB, [0, 2.5, True]),
    "use_ema": (kt.LAMB, [1, "yes"]),
    "jit_compile": (kt.LAMB, [1, "yes"]),
    "beta_1": (kt.LAMB, [1.0, NAN, -0.1]),
    "beta_2": (kt.Yogi, [1.0, NAN, -0.1]),
    "epsilon": (kt.LAMB, [INF, NAN, -1e-6]),
    "trust_ratio_clip": (kt.LAMB, [INF, NAN, -1, (2, 1), (0, INF), (1, 2, 3)]),
    "bias_correction": (kt.LAMB, [1]),
    "momentum": (kt.LARS, [1.0, NAN, -0.1]),
    "nesterov": (kt.LARS, [1]),
    "trust_coefficient": (kt.LARS, [0, INF, NAN]),
    "initial_accumulator_value": (kt.Yogi, [INF, NAN, -1]),
    "beta_2_decay": (kt.Adafactor, [0, -2, NAN]),
    "epsilon_1": (kt.Adafactor, [INF, NAN, -1]),
    "epsilon_2": (kt.Adafactor, [INF, NAN, -1]),
    "clip_threshold": (kt.Adafactor, [0, INF, NAN]),
    "scale_parameter": (kt.Adafactor, [1]),
    "min_dim_size_to_factor": (kt.Adafactor, [0, 2.5]),
    "variant": (kt.SM3, ["III", 1]),
    "sync_period": (lambda **a: kt.Lookahead(keras.optimizers.SGD(), **a), [0, 2.5, True]),
    "slow_step_size": (lambda **a: kt.Lookahead(keras.optimizers.SGD(), **a), [0, 1.1, NAN]),
    "clipping": (lambda **a: kt.AdaptiveGradientClipping(keras.optimizers.SGD(), **a), [0, INF, NAN]),
    "steps": (lambda **a: kt.GradientAccumulation(keras.optimizers.SGD(), **a), [0, 2.5, True]),
    "initial_scale": (lambda **a: kt.LossScaleOptimizer(kt.LAMB(), **a), [0, INF, NAN, 1e-320]),
    "dynamic_growth_steps": (lambda **a: kt.LossScaleOptimizer(kt.LAMB(), **a), [0, 2.5, True]),
}
CASES = [(name, make, value) for name, (make, values) in NO_VALUES.items() for value in values]


@pytest.mark.parametrize(("name", "make", "value"), CASES, ids=[f"{n}={v}" for n, _, v in CASES])
def test_what_is_no_value_is_refused_by_name(name, make, value):
    with pytest.raises((TypeError, ValueError), match=f"`{name}"):
        make(**{name: value})


@pytest.mark.parametrize("keyword", ["learning_rate", "weight_decay", "clipnorm", "ema_momentum"])
def test_also_where_it_was_given_to_an_optimizer_of_keras_that_is_wrapped(keyword):
    with pytest.raises(ValueError, match=f"`{keyword}` must be"):
        adam(**{keyword: NAN})


@pytest.mark.parametrize("make", [kt.LAMB, adam])
def test_a_rate_that_is_set_later_or_scheduled_is_checked_too(make):
    optimizer = make()
    with pytest.raises(ValueError, match="`learning_rate` must be at least 0 and finite"):
        optimizer.learning_rate = NAN
    with pytest.raises(ValueError, match="`decay_steps of CosineDecay`"):
        make(learning_rate=keras.optimizers.schedules.CosineDecay(0.1, INF))


def moved(optimizer, kernel, gradient=0.0):
    before = kernel.numpy()
    optimizer.apply([tf.fill(kernel.shape, gradient)], [kernel])
    return kernel.numpy() - before


@pytest.mark.parametrize("wrap", [lambda o: o, lambda o: kt.Lookahead(o), lambda o: kt.LossScaleOptimizer(o)])
@pytest.mark.parametrize("rule", [kt.LAMB, functools.partial(kt.LARS, momentum=0), kt.Adafactor, kt.SM3, AdamW])
def test_a_decay_that_is_set_later_acts(rule, wrap):
    """Without a gradient only the decay moves the weights."""
    optimizer = wrap(rule(0.1, weight_decay=0.5))
    kernel = keras.Variable(np.ones((2, 2), "float32"), name="kernel")
    assert (moved(optimizer, kernel) < 0).all()
    optimizer.weight_decay = 0.0
    np.testing.assert_array_equal(moved(optimizer, kernel), 0)
    assert getattr(optimizer, "inner_optimizer", optimizer).get_config()["weight_decay"] == 0.0


def test_a_clipping_that_is_set_later_acts_also_through_a_wrapper():
    optimizer = kt.GradientAccumulation(keras.optimizers.SGD(1.0), 1)
    kernel = keras.Variable(np.ones((2, 2), "float32"))
    assert moved(optimizer, kernel, 1.0).min() == -1
    optimizer.clipvalue = 0.25
    assert moved(optimizer, kernel, 1.0).min() == -0.25
    assert optimizer.inner_optimizer.get_config()["clipvalue"] == 0.25
    with pytest.raises(ValueError, match="Only one of `clipnorm` and `clipvalue`"):
        kt.LAMB(clipvalue=1.0).clipnorm = 1.0


def test_what_shapes_the_state_cannot_be_set_once_there_is_one():
    optimizer = kt.LAMB()
    optimizer.gradient_accumulation_steps = 4  # not built yet
    optimizer.build([keras.Variable(np.ones((2, 2)))])
    with pytest.raises(AttributeError, match="`gradient_accumulation_steps` of LAMB shapes its state"):
        optimizer.gradient_accumulation_steps = 2
    with pytest.raises(AttributeError, match="`use_ema` of LAMB shapes its state"):
        optimizer.use_ema = True
    wrapper = kt.GradientAccumulation(keras.optimizers.Adam(), 2)
    wrapper.build([keras.Variable(np.ones((2, 2)))])
    with pytest.raises(AttributeError, match="shapes its state"):
        wrapper.steps = 4
    assert wrapper.get_config()["steps"] == 2
    momentum_free = kt.LARS(momentum=0.0)
    momentum_free.build([keras.Variable(np.ones((2, 2)))])
    with pytest.raises(AttributeError, match="keeps no state for it"):
        momentum_free.momentum = 0.9


def test_a_step_that_is_compiled_keeps_the_old_value_and_a_warning_says_so():
    optimizer, kernel = kt.SM3(0.1, weight_decay=0.5), keras.Variable(np.ones((2, 2), "float32"))

    @tf.function
    def step():
        optimizer.apply([tf.zeros((2, 2))], [kernel])

    step()
    with pytest.warns(UserWarning, match=r"`weight_decay` was set after a step of SM3 had been compiled"):
        optimizer.weight_decay = 0.0
    optimizer.learning_rate = 0.0  # a variable, which acts at once
    before = kernel.numpy()
    step()
    np.testing.assert_array_equal(kernel.numpy(), before)
