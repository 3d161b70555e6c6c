"""The pages: their code runs as it stands, and no line of it is wider than a rendered page."""

import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
WIDTH = 86  # what a page shows of a line of code without scrolling


def code_of(page, language="python"):
    """The blocks of a page in one language, each behind as many empty lines as the page has above it.

    So an error names the line of the page.
    """
    text = page.read_text(encoding="utf-8")
    for block in re.finditer(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S):
        yield "\n" * text.count("\n", 0, block.start(1)) + block.group(1)


def run(page, blocks=None):
    """Runs the first `blocks` Python blocks of a page in one namespace, and returns it."""
    namespace = {"__name__": "__main__"}
    for code in list(code_of(page))[:blocks]:
        exec(compile(code, str(page), "exec"), namespace)
    return namespace


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    """Pages write logs, models and pictures where their reader is."""
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_of_code_is_wider_than_a_page(page):
    wide, inside = [], False
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if line.lstrip().startswith("```"):
            inside = not inside
        elif inside and len(line) > WIDTH:
            wide.append(f"{number}: {line}")
    assert not inside, "a block is not closed"
    assert not wide, f"more than {WIDTH} characters"


def test_the_first_blocks_of_the_readme_run_as_they_stand():
    found = run(ROOT / "README.md", blocks=3)
    assert found["clean"].counts == {"not finite": 0, "label outside 0..9": 0}
    assert found["model"].evaluate(found["test"], verbose=0, return_dict=True)["accuracy"] > 0.5


@pytest.mark.slow
def test_all_blocks_of_the_readme_run_as_they_stand():
    found = run(ROOT / "README.md")
    assert found["fair"].evaluate(found["test"], verbose=0, return_dict=True)["balanced_accuracy"] > 0.5
    assert pathlib.Path("deployed.keras").is_file()
    assert list(pathlib.Path("logs").rglob("events*"))


def test_the_lines_on_the_first_page_run_as_they_stand():
    found = run(ROOT / "docs" / "index.md")
    assert found["model"].optimizer.iterations > 0


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: str(page.relative_to(ROOT)))
def test_the_code_of_every_other_page_runs_as_it_stands(page):
    run(page)


def test_every_card_is_in_the_list_of_cards():
    listed = re.search(r"{toctree}.*?\n\n(.*?)\n```", (ROOT / "docs" / "tricks" / "index.md").read_text(), re.S)[
        1
    ].split()
    assert sorted(listed) == sorted(
        page.stem for page in (ROOT / "docs" / "tricks").glob("*.md") if page.stem != "index"
    )
