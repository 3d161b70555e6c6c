"""The example trains behind its slow reader, prints its table and draws its picture."""

import os
import pathlib
import runpy
import subprocess
import sys

import pytest

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "echo_slow_input.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, EXAMPLE, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8"},
    )


@pytest.mark.slow
def test_it_trains_with_each_factor_and_draws(tmp_path):
    result = run("--factors", 1, 2.5, "--target", 0.3, "--ratio", 3, "--plot", tmp_path / "echo.png")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "Reading is the bottleneck" in result.stdout
    assert result.stdout.count("before augmentation: ") == 2
    assert "2.5" in result.stdout.split("fresh examples")[1]
    assert (tmp_path / "echo.png").read_bytes()[:4] == b"\x89PNG"


def test_bad_arguments_give_one_clear_line(monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, "--factors", "0.5"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "--factors must be at least 1" in capsys.readouterr().err.strip().split("\n")[-1]
