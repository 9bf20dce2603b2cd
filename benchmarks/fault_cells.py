"""Does `snakemake power` say what a cell says? Trials of faults, drawn at random, are run again as ordinary cells.

    snakemake --cores 2 power --config suite=timm models=test_vit3,test_resnet modes=inference,training
    python benchmarks/fault_cells.py results/cpu/power.parquet            # 40 of them, in a folder for a while
    python benchmarks/fault_cells.py results/cpu/power.parquet --number 5 --directory again --cores 1

A trial shares reference, eager and null runs with all others of its model, and puts its fault into a graph that was captured
once; a cell has a process, a compilation and runs of its own. It prints a line for each that differs, and how many agree.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parents[1]
SNAKEMAKE = Path(sys.executable).with_name("snakemake")

Row = dict[str, Any]


def run(model: str, trials: list[Row], directory: Path, cores: int, suite: str) -> dict[str, Row]:
    """The rows of the cells of a model, a mode for each trial, by the name of that mode."""
    catalogue = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["mode_catalogue"]
    modes = {
        f"{row['mode']}-{number}": {**catalogue[row["mode"]], "backend": row["fault"]} for number, row in enumerate(trials)
    }
    config = {"suite": suite, "models": [model], "modes": list(modes), "mode_catalogue": modes, "checks": ["accuracy"]}
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "faults.yaml").write_text(json.dumps(config))
    options = ["--snakefile", ROOT / "Snakefile", "--directory", directory, "--cores", str(cores)]
    done = subprocess.run([SNAKEMAKE, *options, "--configfile", directory / "faults.yaml"], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stdout + done.stderr)
    return {row["mode"]: row for row in pq.read_table(directory / "results" / "cpu" / "cells.parquet").to_pylist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trials", type=Path, help="power.parquet")
    parser.add_argument("--number", type=int, default=40, help="how many are drawn")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="where to run; by default a folder for a while")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--suite", default="timm")
    asked = parser.parse_args()
    trials = pq.read_table(asked.trials).to_pylist()
    drawn = random.Random(asked.seed).sample(trials, min(asked.number, len(trials)))
    agree = 0
    with tempfile.TemporaryDirectory() as scratch:
        for model in dict.fromkeys(row["model"] for row in drawn):
            of_model = [row for row in drawn if row["model"] == model]
            cells = run(model, of_model, (asked.directory or Path(scratch)) / model, asked.cores, asked.suite)
            for number, row in enumerate(of_model):
                cell = cells[f"{row['mode']}-{number}"]
                by_trial = row["strict"], row["dynamo"]
                by_cell = cell["strict"] or "fail", cell["accuracy"] != "pass"
                agree += by_trial == by_cell
                if by_trial != by_cell:
                    told = f"trial {by_trial} margin {row['strict_margin']:.3g}, cell {by_cell} {cell['strict_margin']}"
                    print(f"{row['mode']} {model} {row['fault']}: {told} {cell['accuracy_message'] or ''}", flush=True)
    print(f"{agree} of {len(drawn)} agree")


if __name__ == "__main__":
    main()
