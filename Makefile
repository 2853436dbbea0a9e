# Everything a contributor or a CI machine runs. `make test` is the whole of it; the first call builds .venv.

PYTHON ?= python3
# The one line that depends on the machine: for an accelerator or a CPU-only build, name that build's wheel, e.g.
#   make venv TORCH='torch==2.13.0+cpu'    (with pip configured for the index that has it)
TORCH ?= torch==2.13.0

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
HOME_OF_DEMO := .graceful
# Tests of one file run in one process, because they share servers and fits.
TEST_PROCESSES ?= 2
export OMP_NUM_THREADS ?= 1
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: help venv dev demo test test-cluster unit lint types golden docs release-check bench pin clean
.DEFAULT_GOAL := help

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

venv: .venv/.stamp  ## Build .venv with what graceful needs, pinned; instant when nothing changed.

dev: .venv/.dev  ## Add the packages of checks, tests, documentation and examples.

.venv/.stamp: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "graceful needs Python 3.11 or newer; make venv PYTHON=python3.11")'
	@echo '1 of 2: .venv and $(TORCH)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(INSTALL) '$(TORCH)'
	@echo '2 of 2: graceful with Ray, DeepSpeed and MLflow, about 150 packages'
	@$(INSTALL) -e .
	@touch $@

.venv/.dev: .venv/.stamp
	@echo 'packages for checks, tests, documentation and examples'
	@$(INSTALL) -e '.[dev]'
	@touch $@

demo: venv  ## Refresh a small example model three times and show the chain of its versions.
	@$(BIN)/graceful demo --home $(HOME_OF_DEMO)

test: lint types  ## Run lint, types, import contracts, and unit, contract and integration tests.
	$(BIN)/python -m pytest -m 'not gpu and not cluster' -n $(TEST_PROCESSES) --dist loadfile

test-cluster: dev  ## Run tests on a real Kubernetes: the test bed's, or the context named by GRACEFUL_TEST_CONTEXT.
	$(BIN)/python -m pytest -m cluster tests

unit: dev  ## Run the unit tests only: no sockets, no Ray.
	$(BIN)/python -m pytest tests/unit -n $(TEST_PROCESSES) --dist loadfile

lint: dev  ## Run ruff (lint and format) and the import contracts.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: dev  ## Run mypy --strict.
	$(BIN)/mypy

golden: dev  ## Rewrite golden files; review them as a diff.
	$(BIN)/python -m pytest tests -k golden --write-golden -m 'not gpu and not cluster'

docs: dev  ## Build the documentation as a site that works from a folder: build/site/index.html.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

release-check: dev  ## Build wheel and sdist, install the wheel into an empty environment, and run the demo from there.
	$(BIN)/python -m benchmarks.release --torch '$(TORCH)'

bench: dev  ## Measure the start-up time of the command line; other benchmarks: python -m benchmarks.NAME.
	$(BIN)/python -m benchmarks.cli_startup

pin: dev  ## Rewrite constraints.txt from what .venv holds.
	{ head -n 1 constraints.txt; \
	  $(BIN)/python -m pip freeze --exclude graceful-ai --exclude-editable | grep -v '^#' | sed -E 's/\+[a-z0-9.]+$$//'; \
	} > constraints.new
	mv constraints.new constraints.txt

clean:  ## Remove caches of tools; runs and the registry stay.
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist *.egg-info
	find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +
