# Every target makes the environment first if it is missing, or older than pyproject.toml or requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable

# File by file, as the tests of a file share what takes long to make.
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: run test test-unit test-slow test-gpu test-slurm lint lock

run: $(BIN)/snakemake
	$(BIN)/snakemake --cores all --quiet rules reason

test: lint
	$(PYTEST) $(TESTFLAGS)

test-unit: $(BIN)/snakemake
	$(PYTEST) tests/unit

test-slurm: $(BIN)/snakemake
	$(INSTALL) '.[dev,slurm]'
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

# The newest versions that pyproject.toml allows. It installs nothing: the next `make test` does, and tries them.
lock: $(BIN)/snakemake
	$(BIN)/pip install --quiet --disable-pip-version-check --dry-run --ignore-installed --report .venv/resolved.json --editable '.[dev,slurm]'
	$(BIN)/python -c "$$WRITE_LOCK"

define WRITE_LOCK
import json, pathlib
resolved = json.loads(pathlib.Path(".venv/resolved.json").read_text())["install"]
released = [each["metadata"] for each in resolved if not each["is_direct"]]
pins = [f"{each['name']}=={each['version'].split('+')[0]}" for each in released]
note = "# What the tests passed with: a constraints file for pip. `make lock` writes it."
pathlib.Path("requirements.lock").write_text("\n".join([note, *sorted(pins, key=str.lower), ""]))
endef
export WRITE_LOCK

$(BIN)/snakemake: pyproject.toml requirements.lock
	$(PYTHON) -m venv .venv
	$(INSTALL) '.[dev]'
	touch $@
