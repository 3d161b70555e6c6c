"""Writes the table of tricks, made from the catalogue, between the marks in README.md and docs/index.md."""

import pathlib
import re

from keras_tricks import catalog

ROOT = pathlib.Path(__file__).parent.parent

for page, prefix in (("README.md", "docs/tricks/"), ("docs/index.md", "tricks/")):
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    table = f"<!-- tricks: begin -->\n{catalog.markdown_table(prefix)}<!-- tricks: end -->"
    path.write_text(re.sub(r"<!-- tricks: begin -->.*<!-- tricks: end -->", table, text, flags=re.S), encoding="utf-8")
