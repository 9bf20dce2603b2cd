"""One job of the workflow: measure the checks of a cell, and have their rows written whatever becomes of them."""

import contextlib
import json
import math
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from timmgate.config import builds
from timmgate.config.memory_estimate import SUPERVISION_MB
from timmgate.core.build import BuildOptions
from timmgate.core.files import remove_scratch
from timmgate.core.outcome import Outcome
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Cell, Spec
from timmgate.supervisor import cell, journal, processes, stages
from timmgate.supervisor.preflight import devices, toolchain_folder
from timmgate.system.cgroups import memory_limit_bytes
from timmgate.system.process_tree import die_with_run, machine_memory_bytes
from timmgate.weights import record

SUPERVISION_BYTES = SUPERVISION_MB * 10**6

CACHES = Path(".cache", "inductor")
"""Folder with one for each cell, relative to the working directory."""

Write = Callable[[Spec, Outcome, RunOptions], None]
"""Writes the file of one check."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a job is told: the cell, the file of each check that is requested, and the policy.

    `weights` is the file that says where the weights lie, if they are not random. With no `attempts` left nothing is
    measured. `retry` is how often a rerun was requested.
    """

    cell: Cell
    files: Mapping[str, Path]
    run: RunOptions
    log: Path
    weights: Path | None = None
    attempts: int
    retry: int = 0

    @classmethod
    def of_snakemake(cls, snakemake: Any, build: BuildOptions) -> "Job":
        """The job of the rule `measure`, for a build with these options."""
        files = {check: Path(path) for check, path in snakemake.output.items()}
        limits, cell = snakemake.resources, Cell.from_dict(snakemake.params.cell)
        return cls(
            cell=cell,
            files=files,
            run=with_build(policy(snakemake), cell, build, Path(limits.shared_cache)),
            log=Path(snakemake.log[0]),
            weights=weights_file(snakemake),
            attempts=limits.attempts,
            retry=snakemake.params.retry,
        )

    def __str__(self) -> str:
        return f"{self.cell.mode}/{self.cell.model}"


def told(snakemake: Any, **own: Any) -> tuple[Cell, RunOptions, Path | None]:
    """What a job about one cell is told: the cell, how it is run with what is the job's `own`, and `weights_file`."""
    cell = Cell.from_dict(snakemake.params.cell)
    build = builds.load(Path(snakemake.resources.facts), cell.build)
    run = with_build(policy(snakemake, **own), cell, build.options, Path(snakemake.resources.shared_cache))
    return cell, run, weights_file(snakemake)


def policy(snakemake: Any, **own: Any) -> RunOptions:
    """The policy that a job of Snakemake is told, with the threads and the memory that it got, and what is its `own`."""
    limits = snakemake.resources
    got = {
        "threads": snakemake.threads,
        "memory_bytes": memory_bytes(limits.mem_mb if limits.get("mem_is_limit") else math.inf),
    }
    return replace(RunOptions.from_dict(json.loads(limits.run_options)), **got, **own)


def memory_bytes(job_mb: float) -> int:
    """What the processes of a measurement may take in a job that may take so much itself."""
    limit_bytes = min(job_mb * 10**6, memory_limit_bytes())
    return int(min(limit_bytes - SUPERVISION_BYTES, machine_memory_bytes()))


@contextlib.contextmanager
def scratch(run: RunOptions) -> Iterator[Path]:
    """An empty folder for a while, in the compile cache of a cell: what is compiled may be run there, and has room."""
    run.cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=run.cache) as folder:
        yield Path(folder)


def weights_file(snakemake: Any) -> Path | None:
    """The file that says where the weights lie; None if a job needs none, as they are drawn from the seed."""
    return Path(snakemake.input.weights) if snakemake.input.get("weights") else None


def with_build(run: RunOptions, cell: Cell, build: BuildOptions, shared_cache: Path) -> RunOptions:
    """The options of a cell of a build; `shared_cache` is the folder of all programs, unless each cell has its own."""
    return replace(
        run,
        cache=(shared_cache if run.shared_cache else CACHES.joinpath(*cell.key)).absolute(),
        toolchain=toolchain_folder(cell.device, cell.build).absolute(),
        build=build,
        devices=devices(cell.device, cell.build),
    )


def measure(job: Job, write: Write) -> None:
    """Measure and write, unless the job is asked to end; it exits with a message if there is nothing to write a row on."""
    die_with_run(signal.SIGTERM)
    try:
        _measure(job, write)
    except OSError as error:  # a full disk, as a rule: nothing to write a row on, and worth another attempt
        sys.exit(f"{job}: {error}")


def _measure(job: Job, write: Write) -> None:
    specs, folder = [job.cell.spec(check) for check in job.files], next(iter(job.files.values())).parent
    weights = record.read_optional(job.weights)
    run = replace(
        job.run,
        attempts=job.attempts,
        weights=weights.path if weights else None,
    )
    remove_scratch(folder)
    attempts = journal.Journal(folder / journal.NAME, job.retry, {spec.check: spec.identity() for spec in specs})
    if attempts.has_loss and not run.shared_cache:  # after a power failure its files may be empty
        shutil.rmtree(run.cache, ignore_errors=True)
    if attempts.error and not job.attempts:
        sys.exit(f"{job}: {attempts.error}")  # this was no loss: another run may well measure it
    with contextlib.closing(stages.of_cell(job.cell)) as stage, attempts.kept():
        if job.attempts and run.memory_bytes is not None and run.memory_bytes <= 0:
            has_mb = run.memory_bytes // 10**6 + SUPERVISION_MB
            raise OSError(f"the job has {has_mb} MB, but its supervisor alone takes {SUPERVISION_MB}")
        for spec, outcome in zip(specs, _outcomes(specs, run, weights, job.log, attempts, stage.tell), strict=True):
            write(spec, processes.with_further(spec, outcome, run, weights, job.log), run)


def _outcomes(
    specs: Sequence[Spec],
    run: RunOptions,
    weights: record.Weights | None,
    log: Path,
    attempts: journal.Journal,
    tell: cell.Tell,
) -> list[Outcome]:
    if failure := weights.failure() if weights else None:
        return cell.not_started(specs, failure, log, attempts)
    return cell.supervise(specs, run, log, attempts, tell)
