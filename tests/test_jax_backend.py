import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from tests import backends

pytest.importorskip("jax")


def on_jax(*command):
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


def test_training_ends_where_it_does_on_tensorflow(tmp_path):
    result = on_jax("-m", "tests.backends", str(tmp_path / "jax.npz"))
    assert result.returncode == 0, result.stderr[-3000:]
    jax, tensorflow = np.load(tmp_path / "jax.npz"), backends.results()
    assert set(jax) == set(tensorflow)
    assert len(tensorflow) >= 10
    for name, weights in tensorflow.items():
        np.testing.assert_allclose(jax[name], weights, rtol=2e-4, atol=2e-4, err_msg=name)


def test_what_is_for_tensorflow_only_imports_and_says_so_when_used():
    code = """
        import keras, keras_tricks as kt
        model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
        for use in (
            lambda: kt.jit(model),
            lambda: kt.data.echo(2),
            lambda: kt.data.measure_echo_factor([], print),
            lambda: kt.data.drop_corrupt(),
            lambda: kt.data.checks.finite(),
            lambda: kt.data.class_counts([]),
            lambda: kt.data.class_balanced([1, 2]),
            lambda: kt.data.make_long_tailed(2),
            lambda: kt.data.remix([1, 2]),
            lambda: kt.distribute.setup(),
            lambda: kt.callbacks.Histograms(),
        ):
            try:
                use()
            except RuntimeError as error:
                print("TensorFlow" in str(error) or "tf." in str(error), "jax" in str(error))
        """
    result = on_jax("-c", textwrap.dedent(code))
    assert result.stdout.split("\n")[:-1] == ["True True"] * 11, result.stderr[-3000:]


def test_the_package_does_not_need_tensorflow_there():
    code = "import sys; sys.modules['tensorflow'] = None; import keras_tricks as kt; print(kt.LAMB(0.1).name)"
    result = on_jax("-c", code)
    assert result.stdout.strip() == "lamb", result.stderr[-3000:]
