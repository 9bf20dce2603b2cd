"""Configuration, the requested cells, and the functions that the rules call. Runs in every job: imports nothing heavy."""

import gc
import json
import math
import os
import re
import sys
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, f"{workflow.basedir}/workflow/scripts")

from timmgate import module_environment
from timmgate.config import builds, cells, history_path, memory_estimate, registry, settings, shards, suites, validation
from timmgate.core.build import DEFAULT
from timmgate.core.checks import CHECKS
from timmgate.core.errors import ConfigError
from timmgate.core.spec import SEEDED_WEIGHTS
from timmgate.core.study import TIMEOUTS
from timmgate.supervisor import preflight
from timmgate.system import gpus
from timmgate.system.process_tree import RUN
from timmgate.tables.gate import baseline, outcome, quarantine
from timmgate.tables import request

# Hardly ever over all objects: of those of 10,000 jobs none can go, and looking costs a fifth of planning them.
gc.set_threshold(700, 10, 1000)
os.environ[RUN] = str(os.getpid())  # what jobs that we start here die with
# The environment may have the library of another checkout installed, which jobs would find first.
os.environ.update(module_environment())


def local_cores():
    """Cores that this run has for all its jobs; None in a run on a cluster and in its jobs."""
    return workflow.resource_settings.cores if workflow.is_main_process else None


def devices(device):
    """How many devices of a type there are to share the cores; other than GPUs of CUDA, as many as were counted last."""
    return len(gpus.names(device, preflight.devices(device)))


@contextmanager
def config_errors():
    """Have Snakemake say what is wrong with the configuration in a sentence, and not where in the code.

    The outcome of an earlier gate is then not that of the last request any more.
    """
    try:
        yield
    except ConfigError as error:
        earlier = Path("results", str(config.get("device")), outcome.NAME)
        if workflow.is_main_process and earlier.is_file():
            outcome.write(outcome.ExitCode.WRONG_REQUEST, [str(error)], earlier)
        raise WorkflowError(str(error)) from None


with config_errors():
    validation.refuse_quotes(workflow.config_settings.config)
    SETTINGS = settings.load(config, local_cores(), devices)
    FACTS = f".cache/builds/{SETTINGS.device}"
    NEEDED = builds.needed(SETTINGS)
    # What the main process found is what the jobs of a cluster go by: their nodes may differ.
    if workflow.is_main_process:
        BUILDS = builds.find_all(NEEDED, Path(".cache/builds"))
    else:
        BUILDS = {label: builds.load(Path(FACTS), label) for label in NEEDED}
    SUITE = suites.read(SETTINGS.suite, build=BUILDS.get(DEFAULT))
    MODELS = suites.select(SUITE, SETTINGS.models, SETTINGS.exclude)
    MODELS = shards.select(MODELS, SUITE.cost, SETTINGS.shard)
    if SETTINGS.history_path and workflow.is_main_process:
        history_path.refuse(Path(SETTINGS.history_path))
    CANDIDATE = BASELINE_OF_CANDIDATE = None  # what a comparison holds against its baseline instead of this folder's cells
    if SETTINGS.candidate:
        from timmgate.tables.comparison import candidate  # imports pyarrow, and few runs have one

        CANDIDATE = candidate.find(SETTINGS)
        BASELINE_OF_CANDIDATE = candidate.its_baseline(CANDIDATE, SETTINGS)

TIMM = next((each.version for each in distributions(name="timm")), None)  # where the workflow runs, which fetches weights
FIRST_BUILD = next(iter(SETTINGS.builds))
REQUEST = f".cache/preflight/{SETTINGS.device}/{{build}}.request.json"
PREFLIGHT_LOG = f"logs/{SETTINGS.device}/{{build}}/preflight.log"
OUTCOME = f"results/{SETTINGS.device}/outcome.json"
LOSSES = SETTINGS.run.attempts * len(SETTINGS.checks)  # so many supervisors of a cell may be killed before its row says so
CELLS = [(build, mode, model) for build in SETTINGS.builds for mode in SETTINGS.modes for model in MODELS]
SHARED_CACHE = os.environ.get("TORCHINDUCTOR_CACHE_DIR", ".cache/inductor/shared")
WEIGHTS = [] if SETTINGS.weights in SEEDED_WEIGHTS else f"weights/{SETTINGS.weights}/{{model}}.json"  # says where they lie
ASKED = []  # builds, whether they can measure
PREFLIGHT_MB = memory_estimate.SUPERVISION_MB + memory_estimate.processes_bytes(preflight.THREADS) // 10**6
MEASURING = ("measure", "pair", "repeat", "time_again", "examine", "fault_trials", "healthy_runs")
MEMORY_IS_KNOWN = bool(SETTINGS.run.memory) or None not in map(SUITE.size, MODELS)


wildcard_constraints:
    device=SETTINGS.device,
    build="|".join(map(re.escape, SETTINGS.builds)),
    mode="|".join(map(re.escape, SETTINGS.modes)),
    model="[^/]+",


def suite_table(wildcards):
    """The table of the suite. Raises WorkflowError for the suite that has none."""
    with config_errors():
        return suites.table(SETTINGS.suite)


def cell(wildcards, build=None):
    """Everything that defines a cell of a build; without one and without a wildcard for it, of the first."""
    label = build or wildcards.get("build", FIRST_BUILD)
    return cells.cell(SETTINGS, BUILDS[label], wildcards.mode, wildcards.model, MODELS[wildcards.model])


def identity(wildcards):
    """The same as a dict of plain values: a cell is measured again when one of them changes."""
    return cell(wildcards).to_dict()


def typed_models():
    """Names of models that somebody typed, which must exist."""
    return suites.typed(SUITE, MODELS, SETTINGS.models)


@cache
def all_expectations():
    """What the baseline expects; no rule's input, so that one that the workflow wrote is not made anew before it is compared with."""
    with config_errors():
        return baseline.load(SETTINGS, SUITE, Path(workflow.basedir, "config", "expected"))


@cache
def measured_baseline(any_device=False):
    """The measured tables that the gate or a comparison holds results against, which may be of `any_device`; None without."""
    with config_errors():
        return baseline.measured(SETTINGS, any_device=any_device)


def quarantined():
    """The entries of the quarantine."""
    if not SETTINGS.quarantine:
        return []
    with config_errors():
        known = registry.load(Path(".cache"), BUILDS[FIRST_BUILD])
        models = {*SUITE.models, *known.architectures, *known.tagged}
        return quarantine.load(Path(SETTINGS.quarantine), SETTINGS.catalogue[FIRST_BUILD], models, SETTINGS.all_builds)


def expectations():
    """What the baseline expects of this run."""
    return baseline.asked_for(all_expectations(), SETTINGS, SUITE, MODELS)


def measured_expectations():
    """What the baseline expects of this run. Raises WorkflowError where no accuracy is measured, which every row of it has,
    and for several builds, which the files do not tell apart.
    """
    if len(SETTINGS.builds) > 1:
        raise WorkflowError(f"update_expected writes the statuses of one build, but builds is {', '.join(SETTINGS.builds)}")
    if "accuracy" not in SETTINGS.checks:
        raise WorkflowError(f"update_expected writes statuses of accuracy, but checks is {', '.join(SETTINGS.checks)}")
    return expectations()


def asked_history():
    """The folder of the history. Raises WorkflowError where it cannot be asked what changed."""
    with config_errors():
        return str(history_path.to_ask(SETTINGS.history_path))


def runtime_min(timeouts):
    """Minutes that a cluster must give a job of so many time limits, so that the supervisor ends it and not the cluster.

    The margin is for what has no limit of its own: starting, and being paused while others are timed on the node.
    """
    return math.ceil(SETTINGS.run.timeout * timeouts / 60) + 15


def attempts_left(wildcards, attempt):
    """How often a measurement may be started: not at all in a job's last attempt, which only writes the row that says so."""
    return SETTINGS.run.attempts if attempt <= LOSSES else 0


def duration(wildcards):
    """How long a cell takes, relative to others: training compiles about twice as much as inference."""
    return SUITE.cost.get(wildcards.model, 1.0) * (2 if SETTINGS.modes[wildcards.mode].training else 1)


def memory_of(wildcards, threads, checks, times):
    """Memory in MB of a job with so many threads that takes so many times what these checks of a cell may take."""
    if SETTINGS.run.memory:
        return memory_estimate.SUPERVISION_MB + 1000 * SETTINGS.run.memory
    specs = [cell(wildcards).spec(check) for check in checks]
    measured_bytes = memory_estimate.memory_bytes(specs, SUITE.size(wildcards.model), threads)
    return memory_estimate.SUPERVISION_MB + times * measured_bytes // 10**6


def memory_mb(wildcards, threads, attempt):
    """Memory of a job in MB; twice as much once its supervisor was killed, for it may have been too little."""
    return memory_of(wildcards, threads, SETTINGS.checks, min(attempt, 2))


def memory_of_pair_mb(wildcards, threads, attempt):
    """The same of a job that has two workers at once."""
    return 2 * memory_mb(wildcards, threads, attempt) - memory_estimate.SUPERVISION_MB


def memory_left_mb(wildcards, threads, attempt):
    """The same of a measurement, whose last attempt only writes the row."""
    return memory_mb(wildcards, threads, attempt) if attempts_left(wildcards, attempt) else memory_estimate.SUPERVISION_MB


WORKER_RESOURCES = {
    "run_options": SETTINGS.run.to_json(),
    "mem_mb": memory_mb,
    "mem_is_limit": int(MEMORY_IS_KNOWN),
    "shared_cache": SHARED_CACHE,
    "facts": FACTS,
    "gpu": int(SETTINGS.device == "cuda"),
}
"""Resources of every job that runs a model: policy, and not identity, so that changing them redoes nothing. `gpu` is for cluster
executors: on one machine measurements share GPUs by themselves."""


def cell_file(build, mode, model, check):
    """The file of a check of one cell."""
    return f"results/{SETTINGS.device}/{build}/{mode}/{model}/{check}.parquet"


def cell_rows(wildcards):
    """By check, the rows of all requested cells. A function, as only the rules that are asked for need the many names."""
    return {check: [cell_file(*cell, check) for cell in CELLS] for check in SETTINGS.checks}


def all_results(wildcards):
    """What every run that measures leaves: rows by check, tables, what of them is in the history, and what is asked for
    beside. The rows are named so that a target without files of its own measures a deleted one again, although the tables
    exist.
    """
    # Without the list of failed cells Snakemake does not see that the tables lack their repeats.
    failed = [f"results/{SETTINGS.device}/confirm/failed.json"] if SETTINGS.run.repeats else []
    beside = {"failed": failed, "tables": tables(), "recorded": RECORDED, "traces": traces(wildcards)}
    return {**cell_rows(wildcards), **beside}


def compared_baseline():
    """What a comparison holds cells against; None where it is two builds."""
    return BASELINE_OF_CANDIDATE or measured_baseline(any_device=True)


def compared_results(wildcards):
    """What a comparison needs: what this folder measures, but for one of a candidate with its baseline."""
    if CANDIDATE:
        return {}
    return {**all_results(wildcards), "pairs": pair_files(wildcards), "cells": f"results/{SETTINGS.device}/cells.parquet"}


def compared_builds():
    """What the builds are called that are compared with a baseline, else the two that are compared.

    Raises WorkflowError if there are not two.
    """
    if CANDIDATE:
        return CANDIDATE.builds
    if measured := compared_baseline():
        itself = measured.name if measured.kind == "build" else None
        return {build: build for build in SETTINGS.builds if build != itself}
    if SETTINGS.baseline:
        missing = "has no measured tables" if Path(SETTINGS.baseline).exists() else "does not exist"
        raise WorkflowError(
            f"baseline: {SETTINGS.baseline!r} {missing}; compare needs the results of an earlier run, as in "
            "baseline=../monday/results, or two builds and baseline=null"
        )
    if len(SETTINGS.builds) != 2:
        raise WorkflowError(
            "compare needs two builds, as in builds=release,nightly, or one and what was measured before, as in "
            f"baseline=../monday/results; builds is {', '.join(SETTINGS.builds)}"
        )
    return {build: build for build in SETTINGS.builds}


def pair_files(wildcards):
    """What two builds measured in turns, a file for each cell; none where they are compared with a baseline, or not timed."""
    builds = compared_builds()
    if compared_baseline() or "performance" not in SETTINGS.checks:
        return []
    before, after = builds
    folder = f"results/{SETTINGS.device}/pairs/{before}..{after}"
    return [f"{folder}/{mode}/{model}.parquet" for mode in SETTINGS.modes for model in MODELS]


def rows_of_both(wildcards):
    """The rows of a cell that both builds have."""
    labels = wildcards.before, wildcards.after
    return [cell_file(label, wildcards.mode, wildcards.model, check) for label in labels for check in SETTINGS.checks]


def repeats(wildcards):
    """The repeats of each cell that failed, once it is known which these are; none unless they are asked for."""
    cells = named(checkpoints.failed_cells) if SETTINGS.run.repeats else []
    numbers = range(1, SETTINGS.run.repeats + 1)
    return [f"results/{SETTINGS.device}/confirm/{cell}/{number}.parquet" for cell in cells for number in numbers]


def timed_again(wildcards):
    """Fresh timings of each cell that may have got worse, once it is known which; none with `confirm=0`."""
    is_wanted = SETTINGS.run.retimings and measured_baseline() and "performance" in SETTINGS.checks
    cells = named(checkpoints.suspects) if is_wanted else []
    return [f"results/{SETTINGS.device}/confirm/timed/{cell}.parquet" for cell in cells]


def contents_of(*tables):
    """Which files measured tables are, but for this run's own. As inputs, older ones of one name would not count."""
    files = []
    for measured in tables:
        if measured and measured.kind != "build":
            path = Path(measured.path)
            files += history_path.files(path) if measured.kind == "history" else [path]
    return [(str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files]


def suspect(wildcards):
    """What is known of a cell that may have got worse; nothing where it is not known yet whether any has."""
    suspects = Path(f"results/{wildcards.device}/confirm/suspects.json")
    cells = json.loads(suspects.read_text()) if suspects.is_file() else {}
    return cells.get(f"{wildcards.build}/{wildcards.mode}/{wildcards.model}")


def named(checkpoint):
    """The cells that a checkpoint names, as build/mode/model, once it is done."""
    return json.loads(Path(checkpoint.get(device=SETTINGS.device).output[0]).read_text())


def rows_of_cell(wildcards):
    """The rows of one cell."""
    return [cell_file(wildcards.build, wildcards.mode, wildcards.model, check) for check in SETTINGS.checks]


def diagnosed(wildcards, table):
    """A table of the diagnosis of each cell that failed."""
    return [f"results/{SETTINGS.device}/diagnosis/{cell}/{table}.parquet" for cell in named(checkpoints.candidates)]


def scripts_and_traces_of_candidates(wildcards):
    """The script of each cell that failed, and what the key `trace` asks for."""
    kept = ["repro/repro.py", *(f"trace/{kind}" for kind in SETTINGS.trace)]
    return [f"results/{SETTINGS.device}/{cell}/{each}" for cell in named(checkpoints.candidates) for each in kept]


def scripts(wildcards):
    """The script of each requested cell."""
    return [f"results/{SETTINGS.device}/{'/'.join(each)}/repro/repro.py" for each in CELLS]


def traces(wildcards):
    """What is asked for of each requested cell beside its rows."""
    folders = [f"results/{SETTINGS.device}/{'/'.join(each)}/trace" for each in CELLS]
    return [f"{folder}/{kind}" for folder in folders for kind in SETTINGS.trace]


def tables():
    """The tables of the device."""
    merged = [
        f"{name}.parquet"
        for name in ("cells", "attempts", "repeats", *(check.details for check in CHECKS.values()), "failures")
    ]
    return [f"results/{SETTINGS.device}/{name}" for name in (*merged, "failures.tsv", "summary.tsv")]
