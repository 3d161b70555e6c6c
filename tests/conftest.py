"""Two logical CPU devices, made before TensorFlow starts; the same seed and precision at the start of every test."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# The tests compile hundreds of small programs under XLA and run each a few times, so LLVM's optimisation is a seventh
# of their time. `make test-all` leaves it on.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# `make test` has a process for each core, and the networks are too small to share one's work among threads.
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import keras
import pytest
import tensorflow as tf

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


def pytest_addoption(parser):
    # Each program that XLA compiles takes about 120 of the 65,530 memory maps that Linux grants a process, and gives
    # none back. Some 500 compiled models later the process ends with a segmentation fault.
    parser.addoption("--part", help="such as 2/8: every eighth test, from the second on")


@pytest.fixture(autouse=True)
def fresh_start():
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy("float32")
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True, scope="module")
def forgotten_graphs():
    """TensorFlow keeps the graph of every custom gradient for ever, and a large heap makes all later tests slower."""
    yield
    from tensorflow.python.framework import ops

    gradients = ops.gradient_registry._registry
    for name in [name for name in gradients if name.startswith("CustomGradient-")]:
        del gradients[name]


@pytest.fixture(params=[1, 2], ids=["1-device", "2-replicas"])
def replicas(request):
    return request.param


@pytest.fixture(params=["eager", "graph", "xla"])
def mode(request):
    return request.param


@pytest.fixture(params=["float32", "mixed_bfloat16", "mixed_float16"])
def precision(request):
    return request.param


@pytest.fixture(params=["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
def mixed_precision(request):
    """For what takes seconds to compile: float16 needs more of a trick, with its scaled losses."""
    return request.param


def pytest_collection_modifyitems(config, items):
    """The longest tests first, or one of two processes would end with them while the other has nothing to do."""
    longest = ("test_training_ends_where_it_does_on_tensorflow", "test_everything_at_once", "test_on_jax")
    items.sort(key=lambda item: not item.name.startswith(longest))
    if config.option.part:
        part, parts = map(int, config.option.part.split("/"))
        config.hook.pytest_deselected(items=[item for i, item in enumerate(items) if i % parts != part - 1])
        items[:] = items[part - 1 :: parts]
