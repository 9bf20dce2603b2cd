"""How long a sweep of accuracy and performance takes with an empty compile cache, and where the time goes.

    python benchmarks/sweep.py                       # six models, four modes, as many jobs as there are cores, both rules
    python benchmarks/sweep.py --models test_vit --modes inference --rules dynamo --keep /tmp/sweep

Run it on an otherwise idle machine. It prints the seconds of the whole, the share of the cores that was busy, and the
seconds of each stage summed over cells, of which those of several cells go on at once. With several rules of accuracy each
has a sweep, one after the other, and the last line says how much longer than the first one each took.
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
RULES = ["dynamo", "strict"]
"""Of accuracy: the work that PyTorch's own suite does, and the default."""
BATCH_SIZE = 8


def main() -> None:
    """Run each sweep in a folder of its own, which also has its own temporary files and so an empty compile cache."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--modes", default=MODES)
    parser.add_argument("--cores", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--rules", nargs="+", default=RULES, help="values of accuracy_rule, each of which makes a sweep")
    parser.add_argument("--keep", type=Path, help="folder to work in, kept afterwards; it must be empty")
    parser.add_argument("config", nargs="*", help="further configuration, key=value")
    options = parser.parse_args()
    took_s = {}
    with tempfile.TemporaryDirectory() as scratch:
        for rule in options.rules:
            folder = (options.keep or Path(scratch, "sweep")) / rule
            (folder / "tmp").mkdir(parents=True)
            took_s[rule], cpu_s = run(folder, options, rule)
            cells = pd.read_parquet(folder / "results" / "cpu" / "cells.parquet")
            print(f"{rule}: {report(cells, took_s[rule], cpu_s, options.cores)}\n", flush=True)
    first, *later = options.rules
    for rule in later:
        print(f"{rule} / {first} {took_s[rule] / took_s[first]:.3f}")


def run(folder: Path, options: argparse.Namespace, rule: str) -> tuple[float, float]:
    """Wall and processor seconds of the workflow with all its processes."""
    models = options.models.split(",")
    (folder / "sweep.tsv").write_text("\n".join(["model", *models]) + "\n")
    snakemake = [Path(sys.executable).with_name("snakemake"), "--snakefile", ROOT / "Snakefile", "--directory", folder]
    what = [f"modes={options.modes}", "suite=sweep.tsv", f"batch_size={BATCH_SIZE}", f"accuracy_rule={rule}"]
    command = [*snakemake, "--cores", str(options.cores), "--quiet", "all", "--config", *what, *options.config]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "TMPDIR": str(folder / "tmp")})
    wall_s, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall_s, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


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
