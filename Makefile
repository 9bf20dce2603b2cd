# `make run` and `make test` make the environment first if it is missing or older than pyproject.toml.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test test-slow test-gpu test-slurm lint

run: $(BIN)/snakemake
	$(BIN)/snakemake --cores all --quiet rules reason

test: lint
	$(BIN)/pytest

test-slurm: $(BIN)/snakemake
	$(BIN)/pytest -m 'slurm and not slow'

test-slow: $(BIN)/snakemake
	$(BIN)/pytest -m slow -s

test-gpu: $(BIN)/snakemake
	$(BIN)/pytest -m gpu tests/gpu

lint: $(BIN)/snakemake
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/snakemake --lint

$(BIN)/snakemake: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@
