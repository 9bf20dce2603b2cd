"""The recipes of the README, typed as they stand there: each must be possible, and say what it would do."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from timmgate.core.spec import PROTOCOL

BLOCKS = re.findall(r"^```\n(.*?)^```$", (ROOT / "README.md").read_text(), flags=re.DOTALL | re.MULTILINE)
RECIPES = [block.splitlines() for block in BLOCKS if re.search(r"^snakemake ", block, flags=re.MULTILINE)]
HAS_SLURM = importlib.util.find_spec("snakemake_executor_plugin_slurm") is not None


def typed(line: str, project) -> str:
    """What a person types, in the project's folder and without measuring anything."""
    dry = [] if "--unlock" in line or "--dry-run" in line else ["--dry-run"]
    return re.sub(r"^snakemake", " ".join(["snakemake", "--snakefile", str(project.snakefile), *dry]), line)


@pytest.fixture
def folder(project) -> Path:
    """The project's folder, with what the recipes name."""
    (project.folder / "profiles").symlink_to(ROOT / "profiles")
    (project.folder / "mine.yaml").write_text("modes: [inference]\n")
    for file in ("earlier/results/cpu/cells.parquet", f"history/protocol={PROTOCOL}/month=2026-11/a.parquet"):
        (project.folder / file).parent.mkdir(parents=True)
        (project.folder / file).touch()
    return project.folder


@pytest.mark.parametrize("lines", RECIPES, ids=" && ".join)
def test_a_recipe_of_the_readme_can_be_typed(lines, folder, project):
    if any("profiles/slurm" in line for line in lines) and not HAS_SLURM:
        lines = [line for line in lines if "profiles/slurm" not in line]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, **project.worker.environment, "PATH": path}
    for line in [line for line in lines if not line.startswith(("make", "PYTHONPATH"))]:
        done = subprocess.run(typed(line, project), shell=True, cwd=folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        if "--dry-run" in typed(line, project):
            assert re.search(r"^(Job stats:|Nothing to be done)", done.stdout + done.stderr, flags=re.MULTILINE)


def test_what_would_be_done_is_printed_with_the_number_of_cells(folder, project):
    """The recipe for it is the only one that says --dry-run."""
    (line,) = [line for lines in RECIPES for line in lines if "--dry-run" in line]
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    done = subprocess.run(typed(line, project), shell=True, cwd=folder, env=environment, capture_output=True, text=True)
    assert re.search(r"^measure +24$", done.stdout + done.stderr, flags=re.MULTILINE)
