"""One small training run under given conditions: what most contract tests compare."""

import dataclasses
import itertools
import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_tricks as kt


def strategy_of(replicas):
    if replicas == 1:
        return tf.distribute.get_strategy()
    # TensorFlow's default collectives let two strategies of different size in one process break each other.
    return tf.distribute.MirroredStrategy(
        [f"CPU:{i}" for i in range(replicas)], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )


def slow(*parameters):
    """Parameters of a test that only `make test-all` tries."""
    return pytest.param(*parameters, marks=pytest.mark.slow)


def conditions(*quick):
    """Every mode on one device and on two as parameters (mode, replicas), slow but for these."""
    return [c if c in quick else slow(*c) for c in itertools.product(("eager", "graph", "xla"), (1, 2))]


# They differ only in a rule or a shape from another of their kind: what takes seconds to compile is slow for them.
ALIKE = (
    *(kt.optimizers.LARS, kt.optimizers.Adafactor, kt.optimizers.SM3, kt.optimizers.Yogi, kt.optimizers.Lookahead),
    *(kt.layers.WSConv1D, kt.layers.WSConv3D, kt.layers.WSDepthwiseConv2D, kt.layers.WSDense),
    kt.layers.ScaledActivation,
)


def slow_where(condition, tricks):
    """Records as parameters of a test, slow where the condition of the object holds."""
    return [slow(t) if condition(t.object) else t for t in tricks]


def of_each_kind(tricks):
    """Records as parameters of a test, slow where they are like another one."""
    return slow_where(ALIKE.__contains__, tricks)


def images(count=32, size=6, channels=1, classes=3, seed=0):
    random = np.random.default_rng(seed)
    return random.normal(size=(count, size, size, channels)).astype("float32"), random.integers(0, classes, count)


def small_network(conv=keras.layers.Conv2D):
    """A convolution, a dense layer with a constraint, and float32 logits; one bias, since each variable takes time."""
    return keras.Sequential(
        [
            keras.Input((6, 6, 1)),
            conv(4, 3, activation="relu", use_bias=False),
            keras.layers.Flatten(),
            keras.layers.Dense(5, activation="tanh", kernel_constraint=keras.constraints.MaxNorm(1.0)),
            keras.layers.Dense(3, use_bias=False, dtype="float32"),
        ]
    )


def on_jax(code, *arguments):
    """What the code prints on the JAX backend, in a process of its own."""
    pytest.importorskip("jax")
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


SHAPES = [(), (1,), (5,), (4, 1), (3, 4), (2, 3, 4), (3, 3, 2, 4), (2, 2, 2, 2, 3)]


def numbers(shape, dtype, count=4, seed=0):
    """Weights of `shape`, and as many gradients as `count`."""
    random = np.random.default_rng(seed)
    return random.normal(size=shape).astype(dtype), random.normal(size=(count, *shape)).astype(dtype)


def steps(optimizer, start, gradients):
    """The weights after the optimizer has taken a step with each gradient."""
    variable = keras.Variable(start)
    for g in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(g)], [variable])
    return keras.ops.convert_to_numpy(variable)


@dataclasses.dataclass
class Run:
    model: keras.Model
    losses: list
    weights: list


def train(
    optimizer,
    mode="graph",
    replicas=1,
    precision="float32",
    batch=8,
    epochs=2,
    network=small_network,
    callbacks=(),
    data=None,
    loss=lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    **compile_arguments,
):
    """Trains `network()` with `optimizer()`; eager, as a graph, or under XLA as it works on so many replicas."""
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(precision)
    with strategy_of(replicas).scope():
        model = network()
        model.compile(
            optimizer(),
            loss(),
            run_eagerly=mode == "eager",
            jit_compile=mode == "xla" and replicas == 1,
            **compile_arguments,
        )
        if mode == "xla" and replicas > 1:
            kt.jit(model)
    x, y = images() if data is None else data
    history = model.fit(x, y, batch_size=batch, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))
    return Run(model, history.history["loss"], [np.array(w) for w in model.get_weights()])


def tolerance(precision):
    return {"float32": 2e-5, "mixed_bfloat16": 3e-2, "mixed_float16": 4e-3}[precision]


def assert_same_weights(a, b, tolerance):
    for x, y in zip(a.weights, b.weights, strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)
