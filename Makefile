# make demo and make test set up all they need in a virtual environment of their own.
#
#   PYTHON       the interpreter to start from (3.10 to 3.13)
#   VENV         where the environment goes
#   TORCH_INDEX  another package index for torch alone, e.g. one of CPU builds

PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test test-slow lint docs bench clean

demo: $(VENV)/.bench
	$(BIN)/python -m bench.demo

test: $(VENV)/.test $(VENV)/.bench $(VENV)/.peers
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m "not slow"

test-slow: $(VENV)/.test $(VENV)/.bench $(VENV)/.peers
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m slow

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.docs
	$(BIN)/python -W error::UserWarning -m pdoc --docformat google --output-directory build/docs fastkan fastkan_kernels

bench: $(VENV)/.bench $(VENV)/.peers
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "fastkan needs Python 3.10 or newer: make ... PYTHON=python3.11")'
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) --upgrade pip setuptools
	$(PIP) torch $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	touch $@

# one stamp for each extra of pyproject.toml
$(VENV)/.bench $(VENV)/.test $(VENV)/.peers $(VENV)/.docs: $(VENV)/.%: $(VENV)/.torch pyproject.toml
	$(PIP) --editable '.[$*]'
	touch $@

# mypy reads the types of what the others install
$(VENV)/.lint: $(VENV)/.bench $(VENV)/.test pyproject.toml
	$(PIP) --editable '.[lint]'
	touch $@
