"""The examples in the docstrings run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import keras_tricks

MODULES = [
    info.name
    for info in pkgutil.walk_packages(keras_tricks.__path__, "keras_tricks.")
    if info.name != "keras_tricks.__main__"
]


@pytest.mark.parametrize("name", ["keras_tricks", *MODULES])
def test_examples(name):
    module = importlib.import_module(name)
    tests = doctest.DocTestFinder(exclude_empty=True).find(module, name)
    # The finder does not see a class whose docstring is made by a template.
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
