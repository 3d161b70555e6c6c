import subprocess
import sys
import textwrap

import keras
import pytest
import tensorflow as tf

import keras_tricks as kt


def in_a_fresh_process(code):
    """What `code` prints where TensorFlow has not started yet."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.split("\n")[:-1]


def test_one_call_sets_devices_precision_and_xla():
    lines = in_a_fresh_process(
        """
        import keras, keras_tricks as kt
        s = kt.distribute.setup(replicas=3, precision="mixed_bfloat16", xla=True)
        print(s.num_replicas_in_sync, keras.config.dtype_policy().name, type(s).__name__)
        with s.scope():
            model = kt.jit(keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, dtype="float32")]))
            model.compile(kt.LAMB(0.1), "mse", steps_per_execution=2)
        import numpy as np
        print(len(model.fit(np.ones((12, 2)), np.ones(12), batch_size=6, verbose=0).history["loss"]))
        two = kt.distribute.setup(replicas=2)            # fewer than there are is fine afterwards
        print(two.num_replicas_in_sync, keras.config.dtype_policy().name)
        try:
            kt.distribute.setup(replicas=4)
        except RuntimeError as error:
            print(error)
        """
    )
    assert lines[:3] == ["3 mixed_bfloat16 MirroredStrategy", "1", "2 float32"]
    assert "already started" in lines[3]
    assert "up to 3 replica(s)" in lines[3]


def test_one_replica_is_the_default_strategy():
    strategy = kt.distribute.setup(precision="mixed_float16", device="CPU")
    assert strategy is tf.distribute.get_strategy()
    assert keras.config.dtype_policy().name == "mixed_float16"


def test_two_replicas_on_the_devices_of_this_process():
    assert kt.distribute.setup(replicas=2, xla=True).num_replicas_in_sync == 2


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"replicas": 0}, ValueError, "at least 1"),
        ({"replicas": "two"}, TypeError, "must be an integer.*None stands for all"),
        ({"replicas": True}, TypeError, "must be an integer"),
        ({"precision": "float8"}, ValueError, "must be 'float32', 'mixed_bfloat16'"),
        ({"device": "TPU"}, ValueError, "'GPU', 'CPU' or None"),
        ({"replicas": 64}, RuntimeError, "Call `keras_tricks.distribute.setup` before anything else"),
    ],
    ids=str,
)
def test_what_cannot_work_says_what_can(arguments, error, message):
    with pytest.raises(error, match=message):
        kt.distribute.setup(**arguments)


@pytest.mark.skipif(bool(tf.config.list_physical_devices("GPU")), reason="asks for a GPU where there is none")
def test_a_gpu_where_there_is_none():
    with pytest.raises(ValueError, match="sees no GPU"):
        kt.distribute.setup(device="GPU")


@pytest.mark.gpu
@pytest.mark.skipif(not tf.config.list_physical_devices("GPU"), reason="needs a GPU")
def test_all_gpus_by_default():
    gpus = len(tf.config.list_logical_devices("GPU"))
    assert kt.distribute.setup(xla=True).num_replicas_in_sync == gpus
    with pytest.raises(ValueError, match="Use up to"):
        kt.distribute.setup(replicas=gpus + 1)
