# Every target makes the environment first if it is missing, or older than pyproject.toml or requirements.lock.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable

# File by file, as the tests of a file share what takes long to make.
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# Options of snakemake, as in make run ARGS='--config device=cuda'; with all cores, unless they say with how many.
ARGS :=
CORES := $(if $(filter -c% -j% --cores% --jobs%,$(ARGS)),,--cores all)

LINT := lint-ruff lint-snakefmt lint-snakemake lint-imports lint-mypy

.PHONY: run report gate run-gate test test-unit test-worker test-slow test-gpu test-slurm lint lock $(LINT)

run: $(BIN)/snakemake
	$(BIN)/snakemake $(CORES) $(ARGS)

report: $(BIN)/snakemake
	$(BIN)/snakemake $(CORES) report $(ARGS)

# make gate ARGS='--cores 4 --config device=cuda' ends with 0 as expected, 1 a regression, 2 a wrong request or machine.
# Of itself make ends with 2 whatever a recipe ends with, and with 1 only under --question, where lines with a + run all the
# same, and a line without one means that there is something to do.
ALWAYS := +@
ifneq (,$(findstring n,$(firstword -$(MAKEFLAGS))))
ALWAYS :=
else ifeq ($(MAKECMDGOALS),gate)
MAKEFLAGS += --question
endif
EXIT_CODE := $(BIN)/.gate

gate: run-gate
	$(if $(filter 1,$(shell cat $(EXIT_CODE) 2>&1)),@false)
	$(ALWAYS)exit $$(cat $(EXIT_CODE))

run-gate:
	$(ALWAYS)MAKEFLAGS= $(MAKE) --no-print-directory $(BIN)/snakemake
	$(ALWAYS)$(BIN)/python -m timmgate.tables.gate.outcome $(CORES) $(ARGS); echo $$? > $(EXIT_CODE)

test: lint
	$(PYTEST) $(TESTFLAGS)

test-unit: $(BIN)/snakemake
	$(PYTEST) tests/unit --ignore tests/unit/worker -m 'not compiles and not slow and not gpu and not slurm'

test-worker: $(BIN)/snakemake
	$(PYTEST) tests/unit/worker -m 'not compiles and not slow and not gpu and not slurm'

test-slurm: $(BIN)/snakemake
	$(INSTALL) '.[dev,slurm]'
	$(BIN)/pytest -m 'slurm and not slow'

test-slow: $(BIN)/snakemake
	$(BIN)/pytest -m slow -s

test-gpu: $(BIN)/snakemake
	$(BIN)/pytest -m gpu tests/gpu

lint: $(BIN)/snakemake
	+@$(MAKE) --no-print-directory --jobs --output-sync $(LINT)

lint-ruff:
	$(BIN)/ruff check
	$(BIN)/ruff format --check

lint-snakefmt:
	$(BIN)/snakefmt --check Snakefile workflow

lint-snakemake:
	$(BIN)/snakemake --lint

lint-imports:
	$(BIN)/lint-imports --no-logo

lint-mypy:
	$(BIN)/mypy

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
