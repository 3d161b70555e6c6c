"""The example trains with each schedule, prints its table and its sentence, and draws its picture."""

import os
import pathlib
import re
import subprocess
import sys

import pytest

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "schedules_on_lenet.py"
ENVIRONMENT = {**os.environ, "MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8"}


def run(*arguments):
    command = [sys.executable, EXAMPLE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)


def rows(output):
    """The cells of each row of the printed table, by the schedule's name."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in output.split("\n") if line.startswith("│")]
    return {name: others for name, *others in cells}


@pytest.mark.slow
def test_it_trains_prints_its_table_and_draws(tmp_path):
    result = run("--only", "constant", "halving each epoch", "--epochs", 2, "--seeds", 2, "--out", tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    table = rows(result.stdout)
    assert table["constant"][:2] == ["0.300", "0.3"]
    assert table["halving each epoch"][:2] == ["0.225", "0.15"]
    losses = {name: float(cells[2].split(" ± ")[0]) for name, cells in table.items()}
    low, high = re.search(r"lowest with (.*) \(.*highest with (.*) \(.*; on test images", result.stdout).groups()
    assert [low, high] == sorted(losses, key=losses.get)
    assert (tmp_path / "schedules.png").stat().st_size > 20_000


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    import schedules_on_lenet

    return schedules_on_lenet


@pytest.mark.parametrize("epochs", [1, 10])
def test_no_schedule_goes_above_the_peak_and_most_reach_it(example, epochs):
    schedules = example.schedules(0.4, 5, epochs)
    assert len(schedules) == 9
    for name, schedule in schedules.items():
        rates = [float(schedule(step)) for step in range(5 * epochs)]
        assert max(rates) <= 0.4 + 1e-6, name
        assert max(rates) > 0.3, name


@pytest.mark.slow
def test_two_runs_of_a_seed_are_equal(example, tmp_path):
    import argparse

    import numpy as np

    images, labels = np.random.default_rng(0).random((70, 8, 8, 1), "float32"), np.arange(70) % 10
    options = argparse.Namespace(seed=3, seeds=2, epochs=1)
    schedule = example.schedules(0.1, 5, 1)["cosine"]
    accuracies, losses = example.train(schedule, (images, labels), (images, labels), options)
    options.seed, options.seeds = 4, 1
    assert losses[1:] == pytest.approx(example.train(schedule, (images, labels), (images, labels), options)[1])
    assert accuracies.shape == (2,)
    assert losses[0] != pytest.approx(losses[1], rel=1e-6)


def test_a_run_that_diverges_is_not_the_lowest_loss(example):
    import numpy as np

    good, bad = np.array([[2.0, 1.0]]), np.array([[2.0, np.inf]])
    results = {"constant": ([0.3], np.array([0.1]), bad), "cosine": ([0.3], np.array([0.9]), good)}
    sentence = example.conclude(results)
    assert "lowest with cosine (1.0000) and highest with constant (inf)" in sentence
    assert "cosine is best (90.0%, 80.00 points above the constant rate)" in sentence


def test_an_unknown_schedule_gives_one_clear_line(example, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, "--only", "linear"])
    with pytest.raises(SystemExit, match="2"):
        example.main()
    assert "Received: linear" in capsys.readouterr().err.strip().split("\n")[-1]
