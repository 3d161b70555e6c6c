"""The valley of `optimizers_on_a_valley.py`, and walks of an optimizer down to its minimum."""

import itertools

import keras
import numpy as np
import tensorflow as tf

# LAMB's steps are in proportion to the weights. A minimum at 0 would make it a present of steps that shrink there.
MINIMUM = np.array([3, 4], "float32")
STEPS, NEAR = 3000, 0.01  # after that many steps a walk gives up; it is there at that share of its first distance
RATES = 10.0 ** np.arange(-3, 2.1, 0.2)


def valley(condition, angle):
    """The second derivatives, and where to start: far along, less far across."""
    cos, sin = np.cos(np.radians(angle)), np.sin(np.radians(angle))
    turn = np.array([[cos, -sin], [sin, cos]])
    hessian, start = turn @ np.diag([1 / condition, 1]) @ turn.T, MINIMUM + turn @ [-5, -1.5]
    return hessian.astype("float32"), start.astype("float32")


def restart(optimizer, state, rate):
    """An optimizer as it was before its first step; cheaper than a new one, which would be compiled anew."""
    for variable, value in zip(optimizer.variables, state, strict=True):
        variable.assign(value)
    optimizer.learning_rate = rate


def walker(optimizer):
    """A function from a valley and a rate to the path of the weights, an array (STEPS, 2)."""
    weights = keras.Variable(MINIMUM)
    optimizer.build([weights])
    state = [variable.numpy() for variable in optimizer.variables]

    @tf.function(jit_compile=True)
    def run(hessian):
        path = tf.TensorArray("float32", STEPS, element_shape=(2,))
        for step in tf.range(STEPS):
            path = path.write(step, weights.value)
            optimizer.apply([keras.ops.matmul(hessian, weights - MINIMUM)], [weights])
        return path.stack()

    def walk(hessian, start, rate):
        restart(optimizer, state, rate)
        weights.assign(start)
        return run(hessian).numpy()

    return walk


def best_walk(walks, condition, angle):
    """(steps, rate, path) of the walk that is the first to come near to the minimum for good; steps may be infinite."""
    hessian, start = valley(condition, angle)
    best = (np.inf, None, None)
    for walk, rate in itertools.product(walks, RATES):
        path = walk(hessian, start, rate)
        distance = np.hypot(*(path.astype("float64") - MINIMUM).T)
        far = ~(distance <= NEAR * distance[0])  # and not `>`, as NaN is far, too
        if not far[-1]:
            best = min(best, (np.flatnonzero(far)[-1] + 1, rate, path), key=lambda found: found[0])
    return best
