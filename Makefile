# Every target does its own set-up in .venv, with nothing but Python >= 3.11, make and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One TensorFlow distribution only: the one with CUDA where there is a GPU, else the one for CPUs, half the download.
TENSORFLOW := $(shell nvidia-smi -L >/dev/null 2>&1 && echo gpu || echo cpu)

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint format bench docs tables clean

help:
	@echo "make demo      train a small network, plain and with tricks, and compare (about a minute)"
	@echo "make test      lint and the test suite"
	@echo "make test-all  the same, with the slow tests"
	@echo "make bench     measure, into benchmarks/results/"
	@echo "make docs      the documentation as HTML, into docs/_build/"
	@echo "make lint | format | tables | clean"

# $(call install,EXTRA): a virtual environment with the package and one extra, at the tested versions.
define install
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "keras_tricks needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)"; \
	  echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Installing keras_tricks[$(1),$(TENSORFLOW)] into $(VENV) (once; a minute or two) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$(1),$(TENSORFLOW)]' || { \
	  echo; echo "The packages could not be installed. Is there a network or a package index, and room for 2.5 GB?"; \
	  echo "pip's message is above; after mending it, run make $(MAKECMDGOALS) again."; exit 1; }
	@touch $@
endef

$(VENV)/.demo: setup.cfg constraints.txt pyproject.toml
	$(call install,demo)

$(VENV)/.test: setup.cfg constraints.txt pyproject.toml
	$(call install,test)

$(VENV)/.docs: setup.cfg constraints.txt pyproject.toml
	$(call install,docs)

demo: $(VENV)/.demo
	@$(BIN)/python examples/quick_start.py

test: lint
	$(BIN)/python -m pytest -q -n auto --maxprocesses 4 -m "not slow"

# In parts, since programs of XLA stay in a process until it ends: see tests/conftest.py.
test-all: lint
	for part in 1 2 3 4 5 6 7 8; do \
	    XLA_FLAGS= $(BIN)/python -m pytest -q -n auto --maxprocesses 4 --part $$part/8 || exit 1; \
	done

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.test
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/optimizers.py
	$(BIN)/python benchmarks/layers.py
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/data.py

docs: $(VENV)/.docs
	$(BIN)/sphinx-build -W -q -b html docs docs/_build
	@echo "Open docs/_build/index.html"

# The tables of tricks in README.md and docs/index.md, from the catalogue.
tables: $(VENV)/.test
	$(BIN)/python docs/tables.py

clean:
	rm -rf $(VENV) docs/_build runs build *.egg-info
