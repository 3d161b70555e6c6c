"""The equivalences with optax that modules and cards state, step by step on the same numbers."""

import keras
import numpy as np
import pytest

import keras_tricks as kt
from tests import runs

optax = pytest.importorskip("optax")

NOTHING = {"exclude_from_weight_decay": [], "exclude_from_layer_adaptation": []}
CASES = {
    "lamb": (lambda: kt.LAMB(0.1, weight_decay=0.02, **NOTHING), lambda: optax.lamb(0.1, weight_decay=0.02)),
    "lars": (lambda: kt.LARS(10.0, weight_decay=0.02, **NOTHING), lambda: optax.lars(10.0, weight_decay=0.02)),
    "lars nesterov": (
        lambda: kt.LARS(10.0, nesterov=True, **NOTHING),
        lambda: optax.lars(10.0, nesterov=True),
    ),
    "yogi": (lambda: kt.Yogi(0.1), lambda: optax.yogi(0.1)),
    "sm3": (lambda: kt.SM3(0.1), lambda: optax.sm3(0.1)),
    "adafactor": (
        lambda: kt.Adafactor(0.1, min_dim_size_to_factor=4),
        lambda: optax.adafactor(0.1, min_dim_size_to_factor=4),
    ),
    "adafactor momentum": (
        lambda: kt.Adafactor(0.1, beta_1=0.9, scale_parameter=False),
        lambda: optax.adafactor(0.1, momentum=0.9, multiply_by_parameter_scale=False, min_dim_size_to_factor=16),
    ),
    "adaptive clipping": (
        lambda: kt.AdaptiveGradientClipping(keras.optimizers.SGD(0.1), 0.3),
        lambda: optax.chain(optax.adaptive_grad_clip(0.3), optax.sgd(0.1)),
    ),
    "accumulation": (
        lambda: kt.GradientAccumulation(kt.LAMB(0.1, **NOTHING), 2),
        lambda: optax.MultiSteps(optax.lamb(0.1), 2),
    ),
}


@pytest.mark.parametrize("shape", [(5,), runs.slow((3, 4)), (20, 30), (3, 3, 6, 8)], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_several_steps_equal_optax(case, shape):
    ours, theirs = (make() for make in CASES[case])
    w, gradients = runs.numbers(shape, "float32", count=6)
    gradients += np.sign(gradients)  # away from 0, where optax's sm3 adds 1e-8 to the squares
    parameters, state = w, theirs.init(w)
    for g in gradients:
        updates, state = theirs.update(g, state, parameters)
        parameters = np.asarray(optax.apply_updates(parameters, updates))
    np.testing.assert_allclose(runs.steps(ours, w, gradients), parameters, rtol=1e-4, atol=1e-5)
