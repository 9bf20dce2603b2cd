"""The recipes of the README, typed as they stand there: each must be possible, and say what it would do."""

import importlib.util
import re
import shlex
import subprocess
from pathlib import Path

import pytest

import merged
import snakemake_server
from conftest import ROOT
from timmgate.core.spec import PROTOCOL
from timmgate.tables import parquet

BLOCKS = re.findall(r"^```\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
RECIPES = [block.splitlines() for block in BLOCKS if re.search(r"^snakemake ", block, flags=re.MULTILINE)]
HAS_SLURM = importlib.util.find_spec("snakemake_executor_plugin_slurm") is not None


def typed(line: str, project) -> str:
    """Run what a person types, in the project's folder and without measuring anything; what it prints."""
    program, *arguments = shlex.split(line, comments=True)
    if program != "snakemake":
        return subprocess.run(line, shell=True, cwd=project.folder, check=True, capture_output=True, text=True).stdout
    dry = [] if {"--unlock", "--dry-run"} & {*arguments} else ["--dry-run"]
    arguments = ["--snakefile", str(project.snakefile), *dry, *arguments]
    done = snakemake_server.started().run(arguments, project.folder, project.variables, project.patience_s)
    assert done.code == 0, done.printed
    return done.printed


@pytest.fixture
def folder(project) -> Path:
    """The project's folder, with what the recipes name."""
    (project.folder / "profiles").symlink_to(ROOT / "profiles")
    (project.folder / "mine.yaml").write_text("modes: [inference]\n")
    for file in ("earlier/results/cpu/cells.parquet", f"history/protocol={PROTOCOL}/month=2026-11/a.parquet"):
        (project.folder / file).parent.mkdir(parents=True)
        parquet.write(merged.cells([]), project.folder / file)
    return project.folder


@pytest.mark.parametrize("lines", RECIPES, ids=" && ".join)
@pytest.mark.usefixtures("folder")
def test_a_recipe_of_the_readme_can_be_typed(lines, project):
    if not HAS_SLURM:
        lines = [line for line in lines if "profiles/slurm" not in line]
    for line in [line for line in lines if not line.startswith(("make", "PYTHONPATH"))]:
        printed, is_planned = typed(line, project), line.startswith("snakemake") and "--unlock" not in line
        assert not is_planned or re.search(r"^(Job stats:|Nothing to be done)", printed, flags=re.MULTILINE)


@pytest.mark.usefixtures("folder")
def test_what_would_be_done_is_printed_with_the_number_of_cells(project):
    """The recipe for it is the only one that says --dry-run."""
    (line,) = [line for lines in RECIPES for line in lines if "--dry-run" in line]
    assert re.search(r"^measure +24$", typed(line, project), flags=re.MULTILINE)
