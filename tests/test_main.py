import subprocess
import sys

import pytest

from keras_tricks import __main__, __version__, catalog


def test_list_names_every_trick(capsys):
    assert __main__.main(["list"]) == 0
    output = capsys.readouterr().out
    assert all(trick.name in output for trick in catalog.TRICKS)


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


def test_env_prints_versions_devices_and_what_works(capsys):
    assert __main__.main(["env"]) == 0
    output = capsys.readouterr().out
    assert f"keras_tricks {__version__}" in output
    assert "What works here:" in output
    assert "bfloat16  with XLA  yes" in output


def test_without_a_command_the_usage_is_shown():
    with pytest.raises(SystemExit):
        __main__.main([])


def test_importing_without_a_backend_says_which_line_to_run():
    code = "import sys; sys.modules['tensorflow'] = None; import keras_tricks"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "pip install 'keras_tricks[cpu]'" in result.stderr


def test_importing_brings_nothing_heavy_beside_keras_and_its_backend():
    code = (
        "import sys, keras, tensorflow; before = set(sys.modules); import keras_tricks; "
        "print({m.split('.')[0] for m in set(sys.modules) - before})"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = eval(result.stdout.strip().splitlines()[-1])
    assert not new & {"matplotlib", "tensorboard", "sklearn", "tensorflow_datasets", "jax", "torch"}
