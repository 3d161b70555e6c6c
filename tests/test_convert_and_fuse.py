"""The example converts, trains, fuses and exports a network, prints a table and a sentence, and draws a picture."""

import os
import pathlib
import runpy
import subprocess
import sys

import pytest

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "convert_and_fuse.py"


@pytest.mark.slow
def test_all_forms_of_the_converted_network_compute_the_same(tmp_path):
    arguments = ["--steps", 2, "--repeats", 2, "--out", tmp_path]
    command = [sys.executable, EXAMPLE, *map(str, arguments)]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False, env=environment)
    assert result.returncode == 0, result.stderr[-3000:]
    rows = {line.split("│")[1].strip(): line.split("│")[2:-1] for line in result.stdout.splitlines() if "│" in line}
    deployed = ["plain, fused", "converted, fused", "fused, SavedModel", "fused, LiteRT"]
    assert set(rows) == {"plain", "converted", *deployed}
    for name in deployed:
        assert 0 < float(rows[name][4]) < 1e-4
        assert int(rows[name][5]) <= 1
        assert int(rows[name][0]) == int(rows["plain, fused"][0]) < int(rows["plain"][0])
    assert "With this seed the tricks change the test accuracy by" in result.stdout
    assert (tmp_path / "convert_and_fuse.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "saved_model" / "saved_model.pb").is_file()
    assert (tmp_path / "model.tflite").stat().st_size > 100_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--tricks", "ws_conv", "ac_conv"], "ws_conv or ac_conv, not both"), (["--repeats", "0"], "at least 1")],
)
def test_bad_arguments_give_one_clear_line(arguments, message, monkeypatch, capsys):
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    monkeypatch.setattr(sys, "argv", [EXAMPLE.name, *arguments])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert message in capsys.readouterr().err.strip().split("\n")[-1]
