import inspect
import pathlib
import re

import pytest

import keras_tricks as kt
from keras_tricks import catalog

ROOT = pathlib.Path(__file__).parent.parent
SUBPACKAGES = (
    kt.callbacks,
    kt.data,
    kt.initializers,
    kt.layers,
    kt.losses,
    kt.metrics,
    kt.models,
    kt.optimizers,
    kt.schedules,
)


def public_objects():
    for package in SUBPACKAGES:
        for name in package.__all__:
            yield getattr(package, name)
    yield kt.distribute.setup


def test_every_public_trick_has_a_record():
    registered = {trick.object for trick in catalog.TRICKS}
    missing = [o.__name__ for o in public_objects() if o not in registered]
    assert not missing, f"add a record to keras_tricks/catalog.py for {missing}"
    assert len(registered) == len(catalog.TRICKS)


@pytest.mark.parametrize("trick", catalog.TRICKS, ids=lambda t: t.name)
def test_every_record_has_a_card_a_test_module_and_a_reachable_name(trick):
    assert (ROOT / "docs" / "tricks" / f"{trick.stem}.md").is_file()
    assert list((ROOT / "tests").rglob(f"test_{trick.stem}.py"))
    found = kt
    for part in trick.name.split("."):
        found = getattr(found, part)
    assert found is trick.object
    assert trick.line.endswith(".")
    assert len(trick.line) <= 90
    assert set(trick.works_with) <= set(catalog.CONDITIONS)


@pytest.mark.parametrize("trick", catalog.TRICKS, ids=lambda t: t.name)
def test_every_docstring_has_an_example_and_its_arguments(trick):
    text = inspect.getdoc(trick.object)
    assert ">>>" in text
    # A drop-in for a layer of Keras names that layer for the arguments that it has from it.
    plain = [c for c in getattr(trick.object, "__mro__", ()) if c.__module__.startswith("keras.src.layers.")]
    inherited = {name for c in plain if f"`{c.__name__}`" in text for name in inspect.signature(c).parameters}
    for name, parameter in inspect.signature(trick.object).parameters.items():
        if name not in inherited and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            assert f"{name}:" in text or f"{name} " in text, name
    assert (trick.paper == "-") == ("Reference:" not in text)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("LAMB", kt.LAMB),
        ("lamb", kt.LAMB),
        ("kt.LAMB", kt.LAMB),
        ("keras_tricks.layers.WSConv2D", kt.layers.WSConv2D),
        ("wsconv2d", kt.layers.WSConv2D),
        ("ws_conv", kt.layers.WSConv1D),  # the first of its module
        ("distribute", kt.distribute.setup),
    ],
)
def test_tricks_are_found_by_any_of_their_names(name, found):
    assert catalog.find(name).object is found


def test_a_misspelt_name_is_answered_with_the_close_ones():
    with pytest.raises(KeyError, match="Did you mean LAMB"):
        catalog.find("lambb")
    with pytest.raises(KeyError, match="list` shows all"):
        catalog.find("xyzzy")


@pytest.mark.parametrize(("page", "prefix"), [("README.md", "docs/tricks/"), ("docs/index.md", "tricks/")])
def test_the_tables_of_tricks_are_up_to_date(page, prefix):
    text = (ROOT / page).read_text(encoding="utf-8")
    table = text.split("<!-- tricks: begin -->\n")[1].split("<!-- tricks: end -->")[0]
    assert table.strip() == catalog.markdown_table(prefix).strip(), "run `make tables`"


def test_every_link_within_the_pages_leads_somewhere():
    pages = [ROOT / "README.md", *(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)]
    assert len(pages) > 50
    for page in pages:
        for name, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
            target = page.parent / name if name else page
            assert target.exists(), f"{page.name}: {name}"
            if anchor:
                headings = re.findall(r"^#+ (.*)", target.read_text(encoding="utf-8"), flags=re.M)
                slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in slugs, f"{page.name}: {name}#{anchor}"


def test_no_module_but_one_touches_what_keras_keeps_private():
    for path in (ROOT / "keras_tricks").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert "keras.src" not in text, path
        assert "tensorflow.python" not in text, path
