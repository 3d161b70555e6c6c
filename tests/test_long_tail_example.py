"""The long-tailed example trains, prints its table and draws its picture, on images and on text."""

import importlib
import os
import pathlib
import subprocess
import sys

import pytest

import keras_tricks as kt

EXAMPLE = pathlib.Path(__file__).parent.parent / "examples" / "long_tail.py"
WORDS = {"ham": ["home", "later", "dinner", "mum"], "spam": ["prize", "claim", "free", "urgent"]}


@pytest.fixture
def run(monkeypatch):
    """Runs the example in this process, with these arguments."""
    monkeypatch.syspath_prepend(EXAMPLE.parent)
    example = importlib.import_module("long_tail")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["long_tail.py", *map(str, arguments)])
        example.main()

    return run


def row_of(method, output):
    """The cells of a method's row in the printed table."""
    return next(
        [cell.strip() for cell in line.split("│")[1:-1]] for line in output.split("\n") if f"│ {method} " in line
    )


@pytest.fixture
def messages(tmp_path):
    """Forty ham and ten spam messages, told apart by their words."""
    lines = [
        f"{kind}\t{WORDS[kind][i % 4]} {WORDS[kind][i // 4 % 4]} message{i}\n"
        for kind, count in (("ham", 40), ("spam", 10))
        for i in range(count)
    ]
    file = tmp_path / "SMSSpamCollection"
    file.write_text("".join(lines), encoding="utf-8")
    return file


@pytest.mark.slow
def test_it_trains_prints_its_table_and_draws(tmp_path):
    out = tmp_path / "recalls.png"
    result = subprocess.run(
        [sys.executable, EXAMPLE, "--methods", "ldam_drw", "post_hoc_adjustment", "--epochs", "1", "--out", out],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONIOENCODING": "utf-8"},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "few: 7 (14), 8 (10), 9 (7)" in result.stdout
    rows = [row_of(method, result.stdout) for method in ("plain", "ldam_drw", "post_hoc_adjustment")]
    assert [len(row) for row in rows] == [7, 7, 7]
    assert rows[2][-1].startswith("+ ")  # seconds beyond those of the plain model
    assert "of 2 methods ha" in result.stdout
    assert out.read_bytes()[:4] == b"\x89PNG"


def test_it_reads_messages_and_finds_spam_by_its_words(run, messages, capsys):
    run("--data", "sms_spam", "--file", messages, "--methods", "balanced_softmax", "--epochs", 60)
    output = capsys.readouterr().out
    assert "The 10 test messages are as imbalanced as the others" in output
    assert row_of("balanced_softmax", output)[1:6] == ["100.0%"] * 5


def test_a_message_that_is_sent_twice_is_in_one_part_only(run, messages):
    once = sys.modules["long_tail"].load_messages(messages)
    messages.write_text(messages.read_text("utf-8") * 2, encoding="utf-8")
    twice = sys.modules["long_tail"].load_messages(messages)
    assert (once.counts == twice.counts).all()
    assert len(twice.test[1]) == 10


def test_a_missing_file_of_messages_says_where_to_get_it(run, tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)none.tsv \(FileNotFoundError\).*UCI.*--data digits"):
        run("--data", "sms_spam", "--file", tmp_path / "none.tsv")


def test_a_wrong_line_among_the_messages_is_shown(run, messages):
    with messages.open("a", encoding="utf-8") as file:
        file.write("no label here\n")
    with pytest.raises(SystemExit, match=r"(?s)Message 51 of.*no label here"):
        run("--data", "sms_spam", "--file", messages)


def test_messages_of_one_kind_are_refused(run, tmp_path):
    file = tmp_path / "ham.tsv"
    file.write_text("".join(f"ham\thello {i}\n" for i in range(20)), encoding="utf-8")
    with pytest.raises(SystemExit, match="both parts need ham and spam"):
        run("--data", "sms_spam", "--file", file)


def test_missing_images_say_how_to_get_them(run, tmp_path):
    with pytest.raises(SystemExit, match=r"(?s)cifar10 is not prepared in.*--data digits"):
        run("--data", "cifar10", "--data-dir", tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", 0), "--epochs must be at least 1. Received: 0"),
        (("--imbalance", 1), "--imbalance must be at least 2. Received: 1"),
        (("--imbalance", 1000), "would be left without examples"),
        (("--methods", "magic"), "invalid choice: 'magic'"),
        (("--data", "sms_spam"), "it takes --file, the SMS collection, and no --imbalance"),
    ],
)
def test_bad_arguments_give_one_clear_line(run, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        run(*arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.strip().split("\n")[-1]


def test_the_verdict_says_so_where_nothing_helped(run):
    example = sys.modules["long_tail"]
    labels = [0, 0, 1, 1]
    right, wrong = (kt.metrics.recall_by_class(labels, guesses, [90, 9]) for guesses in ([0, 0, 1, 1], [0, 0, 0, 0]))
    verdict = example.verdict({"plain": right, "focal": wrong})
    assert verdict.startswith("0 of 1 methods have a better balanced accuracy than plain training.")
    assert "-50.0 points" in verdict
    assert "not more than chance" in verdict


@pytest.mark.slow
def test_every_method_trains(run, monkeypatch, capsys):
    monkeypatch.setattr(sys.modules["long_tail_methods"], "BATCH", 256)
    run("--methods", "all", "--epochs", 1)
    output = capsys.readouterr().out
    methods = sys.modules["long_tail_methods"].METHODS
    assert all(len(row_of(method, output)) == 7 for method in methods)
    assert "of 18 methods ha" in output
