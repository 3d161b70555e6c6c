import os
import subprocess
import sys

import pytest

from keras_tricks import __main__, __version__, catalog


def test_list_names_every_trick(capsys):
    assert __main__.main(["list"]) == 0
    output = capsys.readouterr().out
    assert all(trick.name in output for trick in catalog.TRICKS)


def run(*arguments, **environment):
    """The command line in a process of its own, its output piped."""
    result = subprocess.run(
        [sys.executable, "-m", "keras_tricks", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_list_is_one_plain_line_per_trick_when_it_is_piped():
    lines = run("list", COLUMNS="40", FORCE_COLOR="1").splitlines()
    assert [line.split()[0] for line in lines] == [trick.name for trick in catalog.TRICKS]
    assert all(line.endswith(trick.line) for line, trick in zip(lines, catalog.TRICKS, strict=True))
    assert "\x1b" not in "".join(lines)


def test_list_is_a_table_within_the_width_of_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    assert __main__.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(trick.name in "\n".join(lines) for trick in catalog.TRICKS)
    assert max(map(len, lines)) <= 80
    assert any("what it does" in line for line in lines)


def test_list_as_markdown_is_the_table(capsys):
    assert __main__.main(["list", "--markdown", "docs/"]) == 0
    assert capsys.readouterr().out == catalog.markdown_table("docs/")


def test_show_prints_signature_card_and_documentation(capsys):
    assert __main__.main(["show", "lamb"]) == 0
    output = capsys.readouterr().out
    assert "keras_tricks.LAMB(learning_rate=0.001" in output
    assert "docs/tricks/lamb.md" in output
    assert "arXiv:1904.00962" in output


def test_show_of_an_unknown_name_fails_with_a_hint(capsys):
    assert __main__.main(["show", "lambb"]) == 1
    assert "Did you mean LAMB" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("wsconv", ["layers.WSConv1D", "layers.WSConv2D", "layers.WSConv3D"]),
        ("gradient_accumulation", ["GradientAccumulation"]),
        ("losses", ["losses.LDAM", "losses.ClassBalanced"]),
        ("one cycle", ["schedules.OneCycle"]),
        ("histogramms", ["callbacks.Histograms"]),
    ],
)
def test_show_of_a_wrong_name_tells_the_close_ones(name, close, capsys):
    assert __main__.main(["show", name]) == 1
    message = capsys.readouterr().err
    assert "Did you mean" in message
    assert all(right in message for right in close)


def test_version(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["--version"])
    assert capsys.readouterr().out == f"keras_tricks {__version__}\n"


def test_env_prints_versions_devices_and_what_works(capsys):
    assert __main__.main(["env"]) == 0
    output = capsys.readouterr().out
    assert f"keras_tricks {__version__}" in output
    assert "What works here:" in output
    assert "bfloat16  with XLA  yes" in output


def test_env_on_jax_tells_from_the_catalogue_what_needs_tensorflow():
    pytest.importorskip("jax")
    output = " ".join(run("env", KERAS_BACKEND="jax", JAX_PLATFORMS="cpu").split())
    assert "backend jax" in output
    assert "Devices:" in output
    told = output.split("These need KERAS_BACKEND=tensorflow: ")[1].split(", ")
    assert told == [trick.name for trick in catalog.TRICKS if "jax" not in trick.backends]


def test_without_a_command_the_usage_is_shown():
    with pytest.raises(SystemExit):
        __main__.main([])


def without(*modules, backend):
    """What an import says where these modules are not installed."""
    code = f"import sys; sys.modules.update(dict.fromkeys({modules!r})); import keras_tricks"
    environment = {name: value for name, value in os.environ.items() if name != "KERAS_BACKEND"}
    environment |= {"KERAS_BACKEND": backend} if backend else {}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "pip install 'keras_tricks[cpu]'" in result.stderr
    return result.stderr


def test_importing_without_a_backend_says_which_line_to_run():
    assert "Install one of:" in without("tensorflow", "jax", backend=None)


def test_importing_with_another_backend_than_keras_tries_says_to_set_it():
    pytest.importorskip("jax")
    assert "Set KERAS_BACKEND=jax" in without("tensorflow", backend=None)
    assert "Set KERAS_BACKEND=tensorflow" in without("jax", backend="jax")


def test_importing_brings_nothing_heavy_beside_keras_and_its_backend():
    code = (
        "import sys, keras, tensorflow; before = set(sys.modules); import keras_tricks; "
        "print({m.split('.')[0] for m in set(sys.modules) - before})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = eval(result.stdout.strip().splitlines()[-1])
    assert not new & {"matplotlib", "tensorboard", "sklearn", "tensorflow_datasets", "jax", "torch"}
