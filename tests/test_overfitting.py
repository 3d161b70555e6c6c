"""The example trains its seven networks, prints its table and what is seen, and draws its picture."""

import gzip
import pathlib
import runpy
import subprocess
import sys

import numpy as np
import pytest

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "overfitting.py"
NAMES = ("original", "smaller", "larger", "L1", "L2", "dropout", "early stopping")


def run(*arguments):
    command = [sys.executable, EXAMPLE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


def check(result, folder):
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    assert [row[0] for row in rows if row[0]] == list(NAMES)
    assert all(row[-1].endswith("%") for row in rows)
    assert "The gap at the end is widest for " in result.stdout
    assert (folder / "overfitting.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_it_compares_seven_networks_and_draws_their_curves(tmp_path):
    check(run("--epochs", 2, "--examples", 40, "--out", tmp_path), tmp_path)


@pytest.mark.slow
def test_it_reads_reviews(tmp_path):
    lines = [f"{n % 2}\t{1 + 9 * (n % 2)}\t{('a dull', 'a fine')[n % 2]} film\twith tabs\n" for n in range(90)]
    for name in ("train", "test"):
        with gzip.open(tmp_path / f"{name}.tsv.gz", "wt", encoding="utf-8", newline="\n") as file:
            file.writelines(lines)
    check(run("--data", "imdb", "--data-dir", tmp_path, "--epochs", 1, "--examples", 60, "--out", tmp_path), tmp_path)


def results(**of):
    """What the script knows of each network: validation losses and test accuracy; training's loss is always 0.1."""
    return {name: {"curves": np.array([[0.1] * 3, losses]), "accuracy": share} for name, (losses, share) in of.items()}


def test_what_is_seen_depends_on_the_results(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    verdict = runpy.run_path(str(EXAMPLE))["verdict"]
    overfit, steady = [0.6, 0.5, 0.9], [0.6, 0.5, 0.4]
    said = verdict(results(original=(overfit, 0.5), L1=(steady, 0.9)), 1000)
    assert "overfits: its validation loss is lowest in epoch 2 of 3, 0.500, and 0.900 in the last" in said
    assert "widest for original (0.800), narrowest for L1 (0.300)" in said
    assert "of L1, is 40.0 points above the original's: more than chance" in said
    assert ": no more than chance" in verdict(results(original=(overfit, 0.5), L1=(steady, 0.51)), 1000)
    said = verdict(results(original=(steady, 0.9), L1=(steady, 0.5)), 1000)
    assert "does not overfit yet" in said
    assert "None has a better test accuracy" in said


def test_bad_arguments_give_one_clear_line(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, "--epochs", "0"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "--epochs and --examples must be at least 1" in capsys.readouterr().err.strip().split("\n")[-1]


def test_missing_reviews_are_explained(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, "--data", "imdb", "--data-dir", str(tmp_path)])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "train.tsv.gz (FileNotFoundError)" in left.value.code
    assert "--data digits" in left.value.code
