"""Sphinx configuration; `make docs` runs `sphinx-build -W -b html docs docs/_build`."""

import os
import pathlib
import sys

# autodoc imports the package, and with it TensorFlow, which otherwise writes its log between Sphinx' own lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import keras_tricks

project = "keras_tricks"
author = "the keras_tricks authors"
version = release = keras_tricks.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]

# Docstrings put code between single backticks, as Markdown does.
default_role = "literal"

html_theme = "furo"
html_title = f"keras_tricks {release}"
html_copy_source = False
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["wide_tables.css"]

myst_enable_extensions = ["fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Input shape", "notes_style"), ("Output shape", "notes_style")]


def _examples_as_code(app, what, name, obj, options, lines):
    """Docstrings have their example right behind `Example:`, as in Keras; reStructuredText wants a blank line."""
    for i in reversed(range(len(lines) - 1)):
        if lines[i] == "Example:" and lines[i + 1].startswith(">>>"):
            lines[i : i + 1] = [".. rubric:: Example", ""]


def setup(app):
    app.connect("autodoc-process-docstring", _examples_as_code)
