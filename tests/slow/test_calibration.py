"""The clock on real models with no compiler at all: intervals hold 1.00 and no difference is found."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_intervals_of_nothing_hold_one_and_nothing_is_faster_or_slower(tmp_path):
    snakemake = [Path(sys.executable).with_name("snakemake"), "--snakefile", ROOT / "Snakefile", "--directory", tmp_path]
    config = ["checks=performance", "modes=inference-nothing,training-nothing", "batch_size=8"]
    cells = []
    for _ in range(2):
        subprocess.run([*snakemake, "--cores", "2", "--quiet", "all", "--forceall", "--config", *config], check=True)
        cells.append(pd.read_parquet(tmp_path / "results" / "cpu" / "cells.parquet"))
    cells = pd.concat(cells)
    print(cells[["mode", "model", "speedup", "speedup_ci_low", "speedup_ci_high", "verdict"]].to_string())
    assert len(cells) == 24
    assert cells.eval("speedup_ci_low <= 1 <= speedup_ci_high").sum() >= 20, "95 % of 24, less three standard deviations"
    assert cells["verdict"].isin(["faster", "slower"]).sum() <= 1
