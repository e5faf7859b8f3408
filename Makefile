# Two doors: `make demo` and `make test`. Both set up everything they need in .venv first.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

OLDEST := .venv-oldest
OLDEST_PIP := $(OLDEST)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints-oldest.txt

EXTRAS := .venv-extras
EXTRAS_PIP := $(EXTRAS)/bin/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

# No constraints: whatever pip finds today, but for torch, whose other builds are gigabytes.
NEWEST := .venv-newest
NEWEST_PIP := $(NEWEST)/bin/python -m pip install --disable-pip-version-check --quiet

.PHONY: help demo test test-oldest test-extras test-newest lint types check docs clean

help:
	@echo "make demo    train and compare single / joint / Ortho-LoRA on three real tasks (about 5 minutes on 2 cores)"
	@echo "make test    run the tests"
	@echo "make test-oldest   run engine, model, trainer and run tests with the oldest supported peft and transformers"
	@echo "make test-extras   run the tests of Ray, Weights & Biases, MLflow and trackio (make test skips them)"
	@echo "make test-newest   run the tests, without the slow ones, with the newest versions of all packages but torch"
	@echo "make check   lint and types"
	@echo "make docs    build the documentation site in docs/_build"
	@echo "make clean   remove the virtual environment and the demo's results"

$(VENV)/bin/python:
	@echo "== Making a virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 " + "...")'
	@$(PYTHON) -m venv $(VENV)

# torch first and alone: a range in another package would let pip take a larger build.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	@echo "== Installing torch 2.13.0 (a few minutes)"
	@$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "== Installing ortholora with the demo's model and texts"
	@$(PIP) -e ".[demo]"
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@echo "== Installing ortholora with what the tests need"
	@$(PIP) -e ".[demo,dev]"
	@touch $@

demo: $(VENV)/.demo
	@echo "== Comparing single, joint and Ortho-LoRA training; results go to demo-run/"
	@$(BIN)/ortholora demo

# worksteal: each process takes the tests in one piece, so that what a file prepares is prepared once.
test: $(VENV)/.dev
	@echo "== Running the tests"
	@$(BIN)/python -m pytest -n 2 --dist worksteal

# Rules see tensors alone, nothing of peft or transformers: the newest versions' run has tested them.
ANY_VERSION := $(addprefix --ignore=tests/engine/test_,rule_contract.py noise_rules.py projection.py torchjd.py famo.py \
	db_mtl.py gradnorm.py plateau.py balanced.py)

$(OLDEST)/.torch: constraints-oldest.txt
	@echo "== Making a virtual environment in $(OLDEST) with the oldest supported versions"
	@$(PYTHON) -m venv $(OLDEST)
	@$(OLDEST_PIP) torch==2.13.0
	@touch $@

# No [dev]: its packages follow the newest transformers.
$(OLDEST)/.installed: $(OLDEST)/.torch constraints-oldest.txt pyproject.toml
	@$(OLDEST_PIP) -e ".[cli,tensorboard]" hypothesis pytest pytest-xdist torchjd
	@touch $@

test-oldest: $(OLDEST)/.installed
	@echo "== Running the tests of engine, models, trainers and runs with the oldest supported versions"
	@$(OLDEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow" tests/engine tests/models tests/trainers tests/runs tests/invariant $(ANY_VERSION)

$(EXTRAS)/.torch: constraints.txt
	@echo "== Making a virtual environment in $(EXTRAS) for Ray and the trackers"
	@$(PYTHON) -m venv $(EXTRAS)
	@$(EXTRAS_PIP) torch==2.13.0
	@touch $@

$(EXTRAS)/.installed: $(EXTRAS)/.torch constraints.txt pyproject.toml
	@$(EXTRAS_PIP) -e ".[ray,wandb,mlflow,trackio]" hypothesis pytest
	@touch $@

# The import comes first: a test that skips because its package is missing would tell nothing. Of the slow tests on Ray, the one
# in which a node is killed is run; the others are run by hand: each start of a cluster costs as much as all trackers.
test-extras: $(EXTRAS)/.installed
	@$(EXTRAS)/bin/python -c 'import sys, mlflow, ray, trackio, wandb; print("== Running the tests of Ray and the trackers on Python", sys.version.split()[0])'
	@$(EXTRAS)/bin/python -m pytest tests/runs/test_trackers.py::test_the_real_one \
		tests/cli/test_on_ray.py::test_with_a_node_killed_in_the_middle_it_gives_what_one_process_gives

# Made anew each time: an old environment would hold old versions.
test-newest:
	@echo "== Making a virtual environment in $(NEWEST) with the newest versions"
	@$(PYTHON) -m venv --clear $(NEWEST)
	@$(NEWEST_PIP) torch==2.13.0
	@$(NEWEST_PIP) torch==2.13.0 -e ".[demo,dev]"
	@$(NEWEST)/bin/python -m pip list --format=freeze
	@echo "== Running the tests, without the slow ones, with the newest versions"
	@$(NEWEST)/bin/python -m pytest -n 2 --dist worksteal -m "not slow" $(NEWEST_TESTS)

lint: $(VENV)/.dev
	@echo "== Lint"
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

# What a user's checker sees: one public name without a written type, in any module, fails. Pyright looks for the package where
# the first `python` of PATH does, and would ask a registry for a newer pyright each time.
types: $(VENV)/.dev
	@echo "== Types"
	@$(BIN)/mypy
	@PATH="$(CURDIR)/$(BIN):$$PATH" PYRIGHT_PYTHON_IGNORE_WARNINGS=1 \
		$(BIN)/pyright --verifytypes ortholora --ignoreexternal >$(VENV)/types.txt || { cat $(VENV)/types.txt; exit 1; }

check: lint types

docs: $(VENV)/.dev
	@echo "== Building the documentation site in docs/_build; a broken link or reference fails"
	@$(BIN)/python -m sphinx -W --keep-going -n -q -b html -c docs . docs/_build

clean:
	rm -rf $(VENV) $(OLDEST) $(EXTRAS) $(NEWEST) demo-run docs/_build
