"""How long a sweep of accuracy and performance takes with an empty compile cache, and where the time goes.

    python benchmarks/sweep.py                       # six models, four modes, as many jobs as there are cores
    python benchmarks/sweep.py --models test_vit --modes inference --keep /tmp/sweep

Run it on an otherwise idle machine. It prints the seconds of the whole, the share of the cores that was busy, and the
seconds of each stage summed over cells, of which those of several cells go on at once.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[1]
MODELS = "test_vit,test_resnet,test_convnext,test_efficientnet,resnet18,mobilenetv2_100"
MODES = "inference,inference-amp,inference-freezing,training"
BATCH_SIZE = 8


def main() -> None:
    """Run the sweep in a folder of its own, which also has its own temporary files and so an empty compile cache."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--modes", default=MODES)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--keep", type=Path, help="folder to work in, kept afterwards; it must be empty")
    parser.add_argument("config", nargs="*", help="further configuration, key=value")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.keep or Path(scratch, "sweep")
        (folder / "tmp").mkdir(parents=True)
        wall_s, cpu_s = run(folder, options)
        print(report(pd.read_parquet(folder / "results" / "cpu" / "cells.parquet"), wall_s, cpu_s, options.cores))


def run(folder: Path, options: argparse.Namespace) -> tuple[float, float]:
    """Wall and processor seconds of the workflow with all its processes."""
    models = options.models.split(",")
    (folder / "sweep.tsv").write_text("\n".join(["model", *models]) + "\n")
    snakemake = [Path(sys.executable).with_name("snakemake"), "--snakefile", ROOT / "Snakefile", "--directory", folder]
    config = [f"modes={options.modes}", "suite=sweep.tsv", f"batch_size={BATCH_SIZE}", *options.config]
    command = [*snakemake, "--cores", str(options.cores), "--quiet", "all", "--config", *config]
    start = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "TMPDIR": str(folder / "tmp")})
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - start, used.ru_utime + used.ru_stime


def report(cells: pd.DataFrame, wall_s: float, cpu_s: float, cores: int) -> str:
    """The figures as text."""
    lines = [f"{wall_s:.0f} s, {cpu_s:.0f} CPU-s, {cpu_s / wall_s / cores:.0%} of {cores} cores busy, {len(cells)} cells"]
    for check in ("accuracy", "performance"):
        statuses = cells[check].value_counts(dropna=False)
        lines.append(f"\n{check}: {', '.join(f'{count} {status}' for status, count in statuses.items())}")
        prefix = f"{check}_"
        stages = [name for name in cells if name.startswith(prefix) and name.endswith("_s")]
        for name in stages:
            lines.append(f"  {name.removeprefix(prefix):12} {cells[name].sum():7.1f}   largest {cells[name].max():6.1f}")
    columns = ["mode", "model", "speedup", "speedup_ci_low", "speedup_ci_high", "verdict", "samples", "compile_cold_s"]
    lines.append("\n" + cells[[*columns, "compile_cold_cpu_s", "performance_timing_s"]].round(3).to_string(index=False))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
