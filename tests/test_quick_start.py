import pathlib
import runpy
import subprocess
import sys

import pytest

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "quick_start.py"


def run(*arguments):
    command = [sys.executable, EXAMPLE, "--quiet", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("xla", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_everything_at_once_trains_draws_saves_and_reloads(xla, tmp_path):
    arguments = ("--steps", 10, "--replicas", 2, "--precision", "mixed_float16", "--out", tmp_path)
    result = run(*arguments, *(["--xla"] if xla else []))
    assert result.returncode == 0, result.stderr[-3000:]
    assert "digits, 2 replica(s), mixed_float16" + ", XLA" * xla in result.stdout
    assert "In accuracy the tricks" in result.stdout
    assert "predictions equal" in result.stdout
    assert (tmp_path / "gradients.png").stat().st_size > 5000
    assert list((tmp_path / "logs").rglob("events*"))


@pytest.mark.slow
def test_the_default_run_reaches_a_good_accuracy(tmp_path):
    result = run("--out", tmp_path)
    assert result.returncode == 0, result.stderr[-3000:]
    accuracies = [float(cell.strip().rstrip("%")) for line in result.stdout.splitlines()
                  for cell in line.split("│") if cell.strip().endswith("%")]  # fmt: skip
    assert len(accuracies) == 2
    assert min(accuracies) > 96


def refused(monkeypatch, *arguments):
    """The exit code or message of a run in this process, which ends before it trains."""
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *arguments])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return left.value.code


def test_a_missing_data_set_is_explained(monkeypatch, tmp_path):
    message = refused(monkeypatch, "--data", "mnist", "--data-dir", str(tmp_path))  # Python prints it and exits with 1
    assert f"mnist is not prepared in {tmp_path}" in message
    assert "tfds.load('mnist')" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--replicas", "0"], "at least 1"),
        (["--steps", "3"], "at least 10"),
    ],
)
def test_bad_arguments_give_one_clear_line(arguments, message, monkeypatch, capsys):
    assert refused(monkeypatch, *arguments) == 2
    assert message in capsys.readouterr().err.strip().split("\n")[-1]
