# Every target makes .venv when it is missing and installs what it needs there. Nothing comes before.
PYTHON ?= python3
JOBS ?= auto
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test lint types doctest doctest-docstrings doctest-pages docs bench clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/experiments  ## train six optimizers on real data; table and curves in results/compare
	$(BIN)/python -m experiments compare

test: $(VENV)/experiments $(VENV)/dev $(VENV)/docs  ## lint, types, the whole test suite, doctests
	$(MAKE) --no-print-directory lint types
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
	$(MAKE) --no-print-directory -j2 doctest

lint: $(VENV)/dev  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/dev  ## mypy --strict on filteropt
	$(BIN)/mypy

doctest: doctest-docstrings doctest-pages  ## examples in docstrings and pages

doctest-docstrings: $(VENV)/dev $(VENV)/docs
	$(BIN)/python -m pytest -q --doctest-modules filteropt

doctest-pages: $(VENV)/dev $(VENV)/docs
	$(BIN)/python -m sphinx -q -n -W -b doctest docs docs/_build/doctest

docs: $(VENV)/docs  ## the documentation, in docs/_build/html
	$(BIN)/python -m sphinx -n -W -b html docs docs/_build/html

bench: $(VENV)/experiments  ## optimizers' steps: time, memory, bandwidth, against torch's fused AdamW
	$(BIN)/python -m benchmarks

clean:  ## remove the environment and what was built
	rm -rf $(VENV) docs/_build docs/api build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# One stamp per extra: reinstalled when the requirements change.
$(VENV)/experiments $(VENV)/dev $(VENV)/docs: $(VENV)/%: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[$*]"
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
