"""The example walks, trains, prints its table and its sentence, and draws its picture."""

import os
import pathlib
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "optimizers_on_a_valley.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, EXAMPLE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8"},
    )


def rows(output):
    """The cells of each row of the printed table, by the rule's name."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.split("\n") if line.startswith("│")]
    return {name: others for name, *others in cells}


@pytest.mark.slow
def test_it_walks_trains_prints_its_table_and_draws(tmp_path):
    result = run("--rules", "gradient descent", "Adagrad", "--rates", 0.1, "--epochs", 1, "--out", tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    table = rows(result.stdout)
    assert list(table) == ["gradient descent", "Adagrad"]
    # Gradient descent does not see how the valley is turned. Adagrad has a rate for each axis, and does.
    assert table["gradient descent"][0] == table["gradient descent"][1]
    assert int(table["Adagrad"][1]) > 10 * int(table["Adagrad"][0])
    assert float(table["gradient descent"][2]) == pytest.approx(1, abs=0.15)  # (L/m) ln(1/NEAR)/2 steps, in theory
    losses = sorted(float(cells[4]) for cells in table.values())
    sentence = re.search(r"multiplies them by 1.00 \(gradient.*ends at ([\d.]+) .* to ([\d.]+) ", result.stdout)
    assert [float(loss) for loss in sentence.groups()] == losses
    assert (tmp_path / "valley.png").stat().st_size > 20_000


@pytest.fixture
def walks(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    import valley_walks

    return valley_walks


def test_a_walk_is_the_rule_of_the_book(walks):
    import keras

    hessian, start = walks.valley(10, 30)
    assert np.linalg.eigvalsh(hessian) == pytest.approx([0.1, 1])
    walk = walks.walker(keras.optimizers.SGD(momentum=0.5))
    for rate in (0.5, 0.2):  # the second walk starts anew, without the first one's momentum
        path, weights, velocity = walk(hessian, start, rate), start.astype("float64"), 0.0
        for step in range(20):
            assert path[step] == pytest.approx(weights, abs=1e-4)
            velocity = 0.5 * velocity + hessian @ (weights - walks.MINIMUM)
            weights = weights - rate * velocity


def test_a_bad_condition_gives_one_clear_line(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, "--condition", "0.5"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "--condition must be at least 1. Received: 0.5" in capsys.readouterr().err.strip().split("\n")[-1]
