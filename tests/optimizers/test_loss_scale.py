import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import runs


def overflowing_run(optimizer, replica, replicas=2):
    """One step whose gradient is infinite on `replica` only; returns the model."""
    keras.config.set_dtype_policy("mixed_float16")
    with runs.strategy_of(replicas).scope():
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype="float32", kernel_initializer="ones")])
        model.compile(optimizer(), "mse")
    x = np.ones((4, 2), "float32")
    x[2 * replica] = np.inf
    model.fit(x, np.ones((4, 1)), batch_size=4, verbose=0, shuffle=False)
    return model


@pytest.mark.parametrize("replica", [0, 1])
def test_an_overflow_on_any_replica_skips_the_step_on_all_and_halves_the_scale(replica):
    model = overflowing_run(lambda: kt.LossScaleOptimizer(kt.LAMB(0.1)), replica)
    np.testing.assert_array_equal(model.get_weights()[0], 1)
    scale = model.optimizer.dynamic_scale.value
    assert [float(v) for v in model.distribute_strategy.experimental_local_results(scale)] == [2.0**14] * 2
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 0


def test_it_also_protects_the_optimizers_of_keras():
    model = overflowing_run(lambda: kt.LossScaleOptimizer(keras.optimizers.Adam(0.1)), replica=1)
    np.testing.assert_array_equal(model.get_weights()[0], 1)


def test_keras_own_loss_scaling_lets_that_overflow_through():
    # If this fails, Keras has mended its check, and LossScaleOptimizer here can go.
    model = overflowing_run(lambda: keras.optimizers.Adam(0.1), replica=1)
    assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
    assert not np.isfinite(model.get_weights()[0]).all()


@pytest.mark.parametrize("replica", [0, 1])
def test_our_optimizers_stay_finite_even_under_keras_own_loss_scaling(replica, capfd):
    model = overflowing_run(lambda: kt.LAMB(0.1), replica)  # compile() wraps it in Keras' LossScaleOptimizer
    if replica:  # Keras has looked at the first replica
        assert "LAMB skipped a step" in capfd.readouterr().err
    assert type(model.optimizer) is keras.optimizers.LossScaleOptimizer
    np.testing.assert_array_equal(model.get_weights()[0], 1)
    assert int(keras.ops.convert_to_numpy(model.optimizer.iterations)) == 0


def test_compile_does_not_wrap_it_again():
    run = runs.train(lambda: kt.LossScaleOptimizer(kt.LAMB(0.05)), precision="mixed_float16")
    assert isinstance(run.model.optimizer.inner_optimizer, kt.LAMB)


def test_the_scale_grows_after_enough_finite_steps():
    run = runs.train(
        lambda: kt.LossScaleOptimizer(kt.LAMB(0.05), initial_scale=8.0, dynamic_growth_steps=3),
        precision="mixed_float16",
        replicas=2,
    )
    # eight steps: the third and the sixth double it
    assert float(keras.ops.convert_to_numpy(run.model.optimizer.dynamic_scale)) == 32.0


def test_loss_scaling_does_not_change_the_training():
    plain = runs.train(lambda: kt.LAMB(0.05))
    scaled = runs.train(lambda: kt.LossScaleOptimizer(kt.LAMB(0.05)), replicas=2)
    runs.assert_same_weights(plain, scaled, 2e-5)


def test_learning_rate_and_iterations_are_those_of_the_inner_optimizer():
    optimizer = kt.LossScaleOptimizer(kt.LAMB(0.25))
    optimizer.learning_rate = 0.5
    assert float(optimizer.inner_optimizer.learning_rate) == 0.5
    assert optimizer.iterations is optimizer.inner_optimizer.iterations


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: kt.LossScaleOptimizer("adam"), TypeError),
        (lambda: kt.LossScaleOptimizer(kt.LossScaleOptimizer(kt.LAMB())), TypeError),
        (lambda: kt.LossScaleOptimizer(kt.LAMB(), initial_scale=0), ValueError),
        (lambda: kt.LossScaleOptimizer(kt.LAMB(), dynamic_growth_steps=0), ValueError),
        (lambda: kt.LossScaleOptimizer(kt.LAMB(), clipnorm=1.0), ValueError),
    ],
)
def test_what_makes_no_sense_is_refused(make, error):
    with pytest.raises(error):
        make()


def test_the_learning_rate_and_the_step_of_what_is_inside_can_be_read_on_replicas():
    run = runs.train(lambda: kt.LossScaleOptimizer(keras.optimizers.Adam(0.25)), replicas=2, epochs=1)
    assert float(run.model.optimizer.learning_rate) == 0.25
    assert int(run.model.optimizer.iterations) == 4
