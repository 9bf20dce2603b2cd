"""Traces of one cell: how its process is started, and what is kept of what it leaves."""

import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.supervisor import job, study

MODULE = "timmgate.worker.trace"

SOURCES = {".py", ".cpp", ".cu", ".h", ".ttir", ".ttgir", ".llir", ".ptx"}
"""Ends of the names of generated code; the rest of a compile cache is what was made of it."""


def take(spec: Spec, run: RunOptions, weights: Path | None, folders: Mapping[str, Path], log: Path) -> None:
    """Fill the folder of each kind of trace. Whatever becomes of the process, what it left is kept."""
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    with job.scratch(run) as scratch:
        cache = scratch / "cache"
        variables = {"TORCH_TRACE": str(folders["dynamo"].absolute())} if "dynamo" in folders else {}
        build = replace(run.build, env={**run.build.env, **variables})
        run = replace(run, cache=cache, compile_cache="cell", build=build)
        profiler = str(folders["profiler"].absolute()) if "profiler" in folders else None
        try:
            study.rows(MODULE, spec, run, weights, log, run.timeout, profiler=profiler)
        except study.StudyError as error:  # as the cell may, which its row says too
            print(error, file=sys.stderr)
        if "code" in folders:
            keep_code(cache, folders["code"])


def keep_code(cache: Path, folder: Path) -> None:
    """Copy generated code out of a compile cache, in the folders that it lies in."""
    for path in cache.rglob("*"):
        if path.suffix in SOURCES and path.is_file():
            copy = folder / path.relative_to(cache)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)
