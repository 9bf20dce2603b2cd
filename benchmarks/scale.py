"""How the workflow itself grows with the number of cells: parsing, scheduling, and every step that makes tables.

    python benchmarks/scale.py                                  # 100, 1,000 and 10,000 cells; some 20 minutes
    python benchmarks/scale.py --cells 100 1000 --output /tmp/scale

No model is measured. For each number of cells there is a suite of so many models by eight modes, and the real commands run:

dry run         `snakemake --dry-run --quiet rules` with nothing done, which counts the jobs
real jobs       a real run with a stand-in for the worker (tests/fake_worker.py), of at most `--real` cells
many ready      the same with every cell ready to run, stopped after `--stop-s`: what the main process used beyond a dry run,
                per job that ended until then
records         `snakemake --touch` over files of all cells, which are synthetic: every job passes through the scheduler and
                is recorded as in a run, but has no process of its own
tables          a run that has nothing but the tables to make, and shows them
nothing to do   the same once more
one cell        the same for one model: a look at a part of what there is
gate, export    these targets

Of Snakemake's process it says what that one used without its children; of merge, flag, gate and export what the script's
process used. On a busy machine compare the CPU seconds. It prints a table, and writes scale.tsv and scale.svg.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import altair as alt
import pandas as pd
import psutil
import pyarrow as pa

from timmgate import module_environment
from timmgate.tables import parquet

ROOT = Path(__file__).parents[1]
DEVICE, BUILD, CHECK = "cpu", "default", "accuracy"
MODES = (
    *("inference", "inference-amp", "inference-bfloat16", "inference-freezing", "inference-amp-freezing"),
    *("inference-dynamic", "training", "training-amp"),
)

LEAVES = 200
"""Compared tensors of a cell, which are its rows of evidence."""

FAILING = 50
"""Every so many-th cell fails."""

LOOK_EVERY_S = 0.02
"""Time between two looks at the processes: so much of their ends may be missed."""


@dataclass
class Usage:
    """What one process used; `cpu_s` is without its children."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_rss_bytes: int = 0


class Project:
    """A working directory with a suite of so many models that they make `cells` cells or a few more, and nothing done."""

    def __init__(self, folder: Path, cells: int):
        self.folder = folder
        self.models = [f"model_{number:05}.of_some_tag" for number in range(-(-cells // len(MODES)))]
        self.cells = [(DEVICE, BUILD, mode, model) for mode in MODES for model in self.models]
        folder.mkdir(parents=True)
        (folder / "scale.tsv").write_text("\n".join(["model", *self.models]) + "\n")

    def snakemake(
        self, *options: str, failing: bool | None = False, stop_s: float | None = None, **config: str
    ) -> dict[str, Usage]:
        """Run Snakemake: what each of its processes used, as `run` says. Keywords are further configuration."""
        program = [str(Path(sys.executable).with_name("snakemake")), "--snakefile", str(ROOT / "Snakefile"), "--cores", "2"]
        values = {"suite": "scale.tsv", "modes": ",".join(MODES), "checks": CHECK, **config}
        return self.run(
            *program,
            *options,
            "--config",
            *(f"{key}={value}" for key, value in values.items()),
            failing=failing,
            stop_s=stop_s,
        )

    def run(self, *command: str, failing: bool | None = False, stop_s: float | None = None) -> dict[str, Usage]:
        """Run a command: what its own process used, as "main", and those of scripts, as merge and flag; prints go to a file.

        After `stop_s` seconds it is told to start nothing new. Raises RuntimeError if the command fails, or does not
        although it should; with None either will do.
        """
        worker = shlex.join([sys.executable, str(ROOT / "tests" / "fake_worker.py")])
        environment = {**module_environment(), "TIMMGATE_WORKER": worker, "COLUMNS": "200"}
        with (self.folder / "printed.txt").open("w") as printed:
            process = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=printed, stderr=printed)
            usages = watch(process, stop_s)
        if failing is not None and bool(process.returncode) != failing:
            raise RuntimeError(f"{shlex.join(command)} gave {process.returncode}: {self.printed()[-2000:]}")
        return usages

    def printed(self) -> str:
        """What the last command printed."""
        return (self.folder / "printed.txt").read_text()

    def write_results(self) -> None:
        """Files such as measurements of all cells leave behind, with `LEAVES` rows of evidence each."""
        results = {status: accuracy(status) for status in ("pass", "fail_accuracy")}
        for number, cell in enumerate(self.cells):
            row = of_cell(results["fail_accuracy" if number % FAILING == 0 else "pass"], cell)
            parquet.write(row, self.folder / "results" / Path(*cell) / f"{CHECK}.parquet")


def watch(process: subprocess.Popen, stop_s: float | None = None) -> dict[str, Usage]:
    """Wait for a process, terminate it if need be, and say what it and the scripts below it used, each by itself."""
    started, main, known, usages = time.perf_counter(), psutil.Process(process.pid), {}, {"main": Usage()}
    while True:
        ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        update(usages["main"], main)
        usages["main"].wall_s = time.perf_counter() - started
        if ended:
            process.wait()
            return usages
        if stop_s is not None and usages["main"].wall_s > stop_s:
            process.terminate()
            stop_s = None
        for child in children(main):
            # Asked again while it has none: until a new process runs the script, it looks like the one it was forked from.
            if name := known.get(child) or script(child):
                known[child] = name
                update(usages.setdefault(name, Usage()), child)
        time.sleep(LOOK_EVERY_S)


def children(process: psutil.Process) -> list[psutil.Process]:
    """Those of a process that may be about to end."""
    try:
        return process.children()
    except psutil.Error:
        return []


def script(process: psutil.Process) -> str | None:
    """The name of the script that the process runs for Snakemake, which copies it to .snakemake/scripts/tmpXXXX.NAME.py."""
    try:
        found = re.search(r"\.snakemake/scripts/tmp\w+\.(\w+)\.py", " ".join(process.cmdline()))
    except psutil.Error:
        return None
    return found and found[1]


def update(usage: Usage, process: psutil.Process) -> None:
    """Take over what the process has used so far; one that has vanished leaves the usage as it was.

    The resident set is the process's own high-water mark: `ru_maxrss` would be at least that of the process it came from.
    """
    try:
        times, status = process.cpu_times(), Path("/proc", str(process.pid), "status").read_text()
        usage.wall_s = time.time() - process.create_time()
    except (psutil.Error, OSError):
        return
    usage.cpu_s = times.user + times.system
    if found := re.search(r"VmHWM:\s+(\d+) kB", status):  # a process that has ended and was not waited for has none
        usage.peak_rss_bytes = max(usage.peak_rss_bytes, int(found[1]) * 1024)


def accuracy(status: str) -> pa.Table:
    """The row of a cell without its key, with the columns that a real one fills."""
    row = {"suite": "scale", "backend": "inductor", "training": False, "precision": "float32", "options": "{}" * 150}
    row |= {"batch_size": 8, "input_size": [3, 224, 224], "parameters": 25_000_000, "weights": "random", "torch": "2.9.0"}
    row |= {"accuracy": status, "leaves": LEAVES, "leaves_failed": 0, "worst_leaf": "gradient.layer.0", "margin": 0.5}
    row |= {"accuracy_identity": "f" * 64, "accuracy_wall_s": 12.5, "command": "python -m timmgate.worker " * 20}
    if status != "pass":
        row |= {"accuracy_stage": "compare", "accuracy_cause": "comparison", "accuracy_message": "1 of 200 tensors differ"}
    return parquet.table([{**row, parquet.DETAILS: evidence()}], parquet.FILE_SCHEMAS[CHECK])


def evidence() -> list[dict[str, object]]:
    """The compared tensors of a cell."""
    columns = [field.name for field in parquet.SCHEMAS["evidence"] if field.type == pa.float64()]
    return [
        {
            "leaf": f"gradient.stages.{leaf}.weight",
            "kind": "gradient",
            "shape": [64, leaf],
            "dtype": "float32",
            "numel": leaf,
        }
        | {name: 1e-6 * (leaf + number / 7) for number, name in enumerate(columns)}
        for leaf in range(LEAVES)
    ]


def of_cell(table: pa.Table, cell: tuple[str, ...]) -> pa.Table:
    """The table with the key of a cell."""
    for number, value in enumerate(cell):
        table = table.set_column(number, table.schema.field(number), pa.repeat(value, len(table)))
    return table


def measure(folder: Path, cells: int, real: int, stop_s: float) -> list[dict[str, object]]:
    """One line per step and process, for one number of cells."""
    lines = []

    def add(project: Project, step: str, usages: dict[str, Usage], jobs: int | None = None) -> None:
        for process, usage in usages.items():
            if process in ("main", "merge", "flag", "gate", "export"):
                lines.append(line(project, step, process, usage, jobs if process == "main" else None))
                print(*lines[-1].values(), sep="\t", file=sys.stderr)

    few = Project(folder / "real", min(cells, real))
    add(few, "real jobs", few.snakemake("--quiet", "all"), jobs=len(few.cells))
    project = Project(folder / "all", cells)
    planned = project.snakemake("--dry-run", "--quiet", "rules")
    add(project, "dry run", planned)
    add(project, "many ready", *many_ready(project, planned["main"].cpu_s, stop_s))
    project.write_results()
    records = project.snakemake("--touch", "--forcerun", "measure", "--until", "measure", "--quiet", "all")
    add(project, "records", records, jobs=len(project.cells))
    add(project, "tables", project.snakemake("--quiet", "progress", "rules"))
    add(project, "nothing to do", project.snakemake())
    if "Nothing to be done" not in project.printed():
        raise RuntimeError(f"there was something to be done: {project.printed()[-2000:]}")
    add(project, "one cell", project.snakemake("--quiet", "progress", "rules", models=project.models[0]))
    add(project, "gate", project.snakemake("gate", "--quiet", "all", failing=True))
    add(project, "export", project.snakemake("export", "--quiet", "all"))
    return lines


def many_ready(project: Project, planning_cpu_s: float, stop_s: float) -> tuple[dict[str, Usage], int]:
    """What scheduling used while all cells were ready, without planning, and how many of them ended."""
    usages = project.snakemake("--quiet", "all", "--until", "measure", failing=None, stop_s=planning_cpu_s + stop_s)
    usages["main"].cpu_s -= planning_cpu_s
    return {"main": usages["main"]}, max(1, len(list(project.folder.glob(f"results/**/{CHECK}.parquet"))))


def line(project: Project, step: str, process: str, usage: Usage, jobs: int | None) -> dict[str, object]:
    """A row of the table; CPU per job only where the process ran jobs."""
    return {
        "cells": len(project.cells),
        "step": step,
        "process": "snakemake" if process == "main" else process,
        "wall_s": round(usage.wall_s, 2),
        "cpu_s": round(usage.cpu_s, 2),
        "peak_rss_mb": round(usage.peak_rss_bytes / 1e6),
        "cpu_ms_per_job": jobs and round(1e3 * usage.cpu_s / jobs, 1),
    }


def plot(table: pd.DataFrame, path: Path) -> None:
    """CPU seconds and peak memory by the number of cells, on logarithmic axes, a line per step and process."""
    table = table.assign(what=table["step"] + ": " + table["process"])
    base = alt.Chart(table).mark_line(point=True)
    cells = alt.X("cells:Q", scale=alt.Scale(type="log"))
    panels = [
        base.encode(cells, alt.Y(f"{column}:Q", scale=alt.Scale(type="log"), title=title), alt.Color("what:N", title=None))
        for column, title in (("cpu_s", "CPU, s"), ("peak_rss_mb", "peak RSS, MB"))
    ]
    alt.hconcat(*panels).save(path)


def main() -> None:
    """Measure every number of cells in folders that are removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, nargs="+", default=[100, 1_000, 10_000])
    parser.add_argument("--real", type=int, default=500, help="largest number of cells that are really run")
    parser.add_argument("--stop-s", type=float, default=60.0, help="seconds of scheduling with all cells ready")
    parser.add_argument("--output", type=Path, default=Path(), help="folder for scale.tsv and scale.svg")
    options = parser.parse_args()
    lines = []
    for cells in options.cells:
        with tempfile.TemporaryDirectory() as folder:
            lines += measure(Path(folder), cells, options.real, options.stop_s)
    table = pd.DataFrame(lines)
    options.output.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.output / "scale.tsv", sep="\t", index=False)
    plot(table, options.output / "scale.svg")
    print(table.to_string(index=False, na_rep=""))


if __name__ == "__main__":
    main()
