"""Configuration, the requested cells, and the functions that the rules call. Runs in every job: imports nothing heavy."""

import re
import sys
from pathlib import Path

from snakemake.exceptions import WorkflowError

sys.path.insert(0, f"{workflow.basedir}/workflow/scripts")

from timmgate import cells, settings, suites

try:
    SETTINGS = settings.load(config)
    SUITE = suites.read(SETTINGS.suite, Path(workflow.basedir, "config", "suites"))
    MODELS = suites.select(SUITE, SETTINGS.models, SETTINGS.exclude)
except settings.ConfigError as error:
    raise WorkflowError(str(error)) from None

SPECS = cells.expand(SETTINGS, MODELS)


wildcard_constraints:
    device=SETTINGS.device,
    mode="|".join(map(re.escape, SETTINGS.modes)),
    model="[^/]+",


def accuracy_spec(wildcards):
    """Identity of a cell's accuracy check, as one dict of plain values: a cell is redone when it changes."""
    return SPECS["accuracy", wildcards.mode, wildcards.model].to_dict()


def compile_cache(wildcards):
    """Folder of a cell's compile cache."""
    if SETTINGS.compile_cache == "shared":
        return os.environ.get("TORCHINDUCTOR_CACHE_DIR", ".cache/inductor/shared")
    return f".cache/inductor/{wildcards.device}/{wildcards.mode}/{wildcards.model}"


def files(name):
    """One file of every requested cell."""
    return [f"results/{SETTINGS.device}/{mode}/{model}/{name}" for mode in SETTINGS.modes for model in MODELS]


def tables():
    """The tables of the device."""
    names = ("cells.parquet", "evidence.parquet", "failures.parquet", "failures.tsv", "summary.tsv")
    return [f"results/{SETTINGS.device}/{name}" for name in names]


def show_tables():
    """Print the tables in the terminal, once the workflow is done."""
    from rich.console import Console
    from timmgate.show import show

    show(Path("results", SETTINGS.device), Console())
