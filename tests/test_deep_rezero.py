"""The example trains deep networks, with recomputation too, prints a table and a sentence, and draws a picture."""

import os
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "deep_rezero.py"


@pytest.mark.slow
@pytest.mark.parametrize(
    "networks", [["ReZero"], ["plain", "residual", "layer normalisation", "ReZero"]], ids=["one", "all"]
)
def test_it_trains_prints_and_draws(networks, tmp_path):
    arguments = ["--networks", *networks, "--layers", 40, "--epochs", 1, "--recompute", "--out", tmp_path]
    command = [sys.executable, EXAMPLE, *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in result.stdout.splitlines() if "│" in line}
    assert list(rows) == networks
    assert all(0 <= float(row[0].strip().rstrip("%")) <= 100 for row in rows.values())
    first, last = ({name: float(row[column]) for name, row in rows.items()} for column in (2, 3))
    assert first["ReZero"] == last["ReZero"]  # the gradient comes through as it is
    assert first.get("plain", 0) <= last.get("plain", 0) / 10  # it vanishes
    assert "With 40 layers, after 1 epoch, " in result.stdout
    assert (tmp_path / "deep_rezero.png").read_bytes()[:4] == b"\x89PNG"


def test_a_stack_is_its_blocks_one_after_the_other_and_recomputation_changes_nothing(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    example = runpy.run_path(str(EXAMPLE))
    import keras
    import tensorflow as tf

    class Options:
        width, layers = 4, 6

    def gradients(model, x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True) ** 2)
        return [g.numpy().ravel() for g in tape.gradient(loss, [v.value for v in model.trainable_variables])]

    x = np.random.default_rng(0).normal(size=(3, 2)).astype("float32")
    for network in ("layer normalisation", "ReZero"):
        plain, recomputed = (example["build"](network, (2,), Options, flag) for flag in (False, True))
        plain.set_weights([w + np.random.normal(size=w.shape) * 0.3 for w in plain.get_weights()])
        weights = zip(plain.get_weights(), recomputed.get_weights(), strict=True)
        recomputed.set_weights([w.reshape(v.shape) for w, v in weights])
        one = example["block"](network, Options.width)
        _, first, stack, *_ = plain.layers
        h = expected = first(x)
        for j in range(Options.layers):
            one.set_weights([w[j] for w in stack.get_weights()])
            expected = one(expected)
        np.testing.assert_allclose(stack(h), expected, rtol=1e-5, atol=1e-5)
        for a, b in zip(gradients(plain, x), gradients(recomputed, x), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert keras.config.dtype_policy().name == "float32"


def test_bad_arguments_give_one_clear_line(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, "--layers", "0"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "--layers must be at least 1. Received: 0" in capsys.readouterr().err.strip().split("\n")[-1]
