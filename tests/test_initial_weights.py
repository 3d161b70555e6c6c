"""The example trains its networks, prints its tables and what is seen, and draws its picture."""

import pathlib
import runpy
import subprocess
import sys

import pytest

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "initial_weights.py"


@pytest.mark.slow
def test_it_compares_ranges_and_activations_and_draws_them(tmp_path):
    command = [sys.executable, EXAMPLE, "--epochs", "1", "--depth", "3", "--out", tmp_path]
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.stdout.splitlines() if "│" in line]
    units = [(row[0], row[1]) for row in rows if row[0] in ("tanh", "sigmoid") and "Glorot" in row[1]]
    ranges = ["Glorot / 4", "Glorot", "4 x Glorot", "16 x Glorot"]
    assert units == [(unit, name) for unit in ("tanh", "sigmoid") for name in ranges]
    last = ["tanh", "sigmoid", "softsign", "relu", "gelu", "none", "no hidden layers"]
    assert [row[0] for row in rows if len(row) == 4] == last
    assert "Without a non-linearity the layers get" in result.stdout
    assert (tmp_path / "initial_weights.png").read_bytes()[:4] == b"\x89PNG"


def test_what_is_seen_depends_on_the_results(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    verdict = runpy.run_path(str(EXAMPLE))["verdict"]
    ranges = {
        (unit, name): {"train": share} for unit in ("tanh", "sigmoid") for name, share in (("a", 0.6), ("b", 0.9))
    }
    shares = {"none": 0.91, "no hidden layers": 0.9, "relu": 1.0, "tanh": 0.95}
    said = verdict(ranges, {name: {"train": share} for name, share in shares.items()}, 1000)
    assert "tanh gets most from b (90.0%) and fewest from a (60.0%); sigmoid" in said
    assert "91.0% right, like a model without hidden layers (90.0%); with one, 95.0% to 100.0%." in said
    shares["none"] = 0.99
    assert ", unlike a model" in verdict(ranges, {name: {"train": share} for name, share in shares.items()}, 1000)


def test_bad_arguments_give_one_clear_line(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, "--depth", "0"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "--depth and --epochs must be at least 1" in capsys.readouterr().err.strip().split("\n")[-1]
