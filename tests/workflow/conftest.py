"""Real runs of the workflow in folders of their own, with a stand-in for the worker."""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

import snakemake_server
from conftest import PATIENCE_S, ROOT

SNAKEMAKE = Path(sys.executable).with_name("snakemake")

TABLES = {"merge", "flag", "all"}
"""Jobs of a run beside its measurements."""

MODELS = """\
# two models and what is special about them
model\tbatch_size\ttraining_tolerance\tfreezing_tolerance\treason
test_vit\t8\t0.02\t0.01\tto be changed
test_resnet\t8\t\t\t
"""
CONFIG = """\
suite: models.tsv
modes: [inference, special]
mode_catalogue:
  special: {training: true, channels_last: true}
"""


PYTHON = """\
#!/bin/sh
# The Python of an environment, in which the stand-in for the worker is installed as the worker.
case "$1 $2" in
    "-m timmgate.worker") shift 2; ACME_HOME={label} exec {python} {worker} "$@" ;;
esac
exec {python} "$@"
"""


def environment(folder: Path, label: str) -> Path:
    """Make an environment with the packages of the tests' own; its Python."""
    path = folder / label / "bin" / "python"
    path.parent.mkdir(parents=True)
    python, worker = shlex.quote(sys.executable), shlex.quote(str(ROOT / "tests" / "fake_worker.py"))
    path.write_text(PYTHON.format(label=label, python=python, worker=worker))
    path.chmod(0o755)
    return path


@dataclass
class Project:
    """A working directory, the workflow that runs in it, and the fake worker that the workflow starts.

    Only accuracy is checked unless the configuration says otherwise. `last` is how the last `run` has ended.
    """

    folder: Path
    worker: Any
    snakefile: Path = ROOT / "Snakefile"
    config: dict[str, object] = field(default_factory=dict)
    configfile: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    executor: tuple[str | Path, ...] = ("--cores", "2")
    patience_s: float = 2 * PATIENCE_S
    last: snakemake_server.Ended | None = None

    def command(self, *options: str | Path, **config: object) -> list[str | Path]:
        """The command line; keywords become --config, on top of the project's own."""
        files = ["--configfile", self.configfile] if self.configfile else []
        values = [f"{key}={value}" for key, value in {"checks": "accuracy", **self.config, **config}.items()]
        where = ["--snakefile", self.snakefile, "--directory", self.folder, *self.executor]
        return [SNAKEMAKE, *where, *options, *files, *(["--config", *values] if values else [])]

    @property
    def variables(self) -> dict[str, str]:
        """The environment that snakemake gets."""
        return {**os.environ, **self.worker.environment, **self.environment, "COLUMNS": "200"}

    def start(self, *options: str | Path, **config: object) -> subprocess.Popen:
        """Start snakemake in a session of its own, with everything it prints in one pipe."""
        return subprocess.Popen(
            self.command(*options, **config),
            cwd=self.folder,
            env=self.variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )

    def run(self, *options: str | Path, code: int = 0, **config: object) -> str:
        """Run snakemake, which must end with the exit code `code`; what it printed.

        Its Python has started before: what a start alone reads, such as PYTHONPATH, concerns the jobs; else use `start`.
        """
        arguments = self.command(*options, **config)[1:]
        self.last = snakemake_server.started().run(arguments, self.folder, self.variables, self.patience_s)
        assert self.last.code == code, self.last.printed
        return self.last.printed

    def planned(self, *options: str | Path, **config: object) -> set[str]:
        """What a dry run would do: "mode/model" for measurements, the rule's name for all else."""
        jobs = re.split(r"^(?:local)?rule ", self.run("--dry-run", *options, **config), flags=re.MULTILINE)[1:]
        cells = [re.search(r"mode=(\S+), model=(\S+)", job) for job in jobs]
        return {"/".join(cell.groups()) if cell else job.split(":")[0] for job, cell in zip(jobs, cells, strict=True)}

    def file(self, cell: str, check: str = "accuracy", device: str = "cpu", build: str = "default") -> Path:
        """The file of a check of a cell, which is "mode/model"."""
        return self.folder / "results" / device / build / cell / f"{check}.parquet"

    def table(self, name: str = "cells", device: str = "cpu") -> list[dict]:
        """The rows of results/{device}/{name}.parquet."""
        return pq.read_table(self.folder / "results" / device / f"{name}.parquet").to_pylist()

    def statuses(self, device: str = "cpu", check: str = "accuracy") -> dict[str, str]:
        """Cell, as "mode/model", to its status."""
        return {f"{row['mode']}/{row['model']}": row[check] for row in self.table(device=device)}

    def files(self) -> set[str]:
        """All files of the folder but Snakemake's own and those that the project was set up with."""
        own = {
            ".snakemake",
            ".cache",
            "models.tsv",
            "mine.yaml",
            self.worker.journal.name,
            f"{self.worker.journal.name}.hung",
        }
        paths = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return {str(path) for path in paths if path.parts[0] not in own}

    def scratch(self) -> list[str]:
        """Files that are being written, or that a writer which was killed has left."""
        return [file for file in sorted(self.files()) if re.search(r"/\.[^/]+\.\d+$", file)]

    def processes(self) -> list[psutil.Process]:
        """The processes that work in the folder."""

        def is_ours(process: psutil.Process) -> bool:
            try:
                return process.cwd() == str(self.folder) and process.status() != psutil.STATUS_ZOMBIE
            except psutil.Error:
                return False

        return list(filter(is_ours, psutil.process_iter()))

    def signal(self, number: int) -> None:
        """Send a signal to these processes, as far as they do not end before."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def wait_for_end(self) -> None:
        """Return when nothing of a run lives any more."""
        _, alive = psutil.wait_procs(self.processes(), timeout=PATIENCE_S)
        assert not alive
        self.worker.wait_for_end()


@pytest.fixture(scope="session")
def new_project(new_fake_worker, installed, build_cache):
    """Makes a project in a folder, where the digests of the installed sources are known."""

    def make(folder: Path, **fields: Any) -> Project:
        (folder / ".cache" / "builds").mkdir(parents=True, exist_ok=True)
        shutil.copy(build_cache / "digests.json", folder / ".cache" / "builds")
        return Project(folder, new_fake_worker(folder / "journal.jsonl"), **fields)

    return make


@pytest.fixture
def project(new_project, tmp_path) -> Project:
    """Nothing has run in it yet."""
    return new_project(tmp_path)


@pytest.fixture(scope="session")
def finished_small(new_project, tmp_path_factory) -> Project:
    """A finished run of two modes and two models, with a suite and a configuration of the user's own. Change nothing."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "models.tsv").write_text(MODELS)
    (folder / "mine.yaml").write_text(CONFIG)
    project = new_project(folder, configfile=Path("mine.yaml"))
    project.run()
    return project


@pytest.fixture(scope="session")
def copy_of(new_project):
    """Copies a project that has run to a folder, where the worker passes everything and has not been started."""

    def copy(project: Project, folder: Path) -> Project:
        shutil.copytree(project.folder, folder, dirs_exist_ok=True)
        (folder / project.worker.journal.name).unlink(missing_ok=True)
        kept = {"configfile": project.configfile, "environment": {**project.environment}, "config": {**project.config}}
        return new_project(folder, **kept)

    return copy


@pytest.fixture
def finished(finished_small, copy_of, tmp_path) -> Project:
    """A copy of `finished_small` to change: modes inference and special, models test_vit and test_resnet."""
    return copy_of(finished_small, tmp_path)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of the workflow itself."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy2(ROOT / "Snakefile", folder)
    for name in ("workflow", "config", "profiles"):
        shutil.copytree(ROOT / name, folder / name)
    return folder
