"""The benchmark of the workflow itself, at a size at which it says nothing but that it still runs."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[2]
STEPS = {"many ready", "real jobs", "dry run", "records", "tables", "nothing to do", "one cell", "gate", "export"}


@pytest.mark.slow
def test_the_benchmark_of_scale_measures_every_step_and_draws_them(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "scale.py", "--cells", "8", "--real", "1", "--output", tmp_path]
    subprocess.run(command, check=True)
    table = pd.read_csv(tmp_path / "scale.tsv", sep="\t")
    assert set(table["step"]) == STEPS
    assert {"snakemake", "merge", "flag", "gate", "export"} == set(table["process"])
    assert (table["cpu_s"] > 0).all()
    assert (table["peak_rss_mb"] > 10).all()
    assert table.set_index("step").loc["records", "cells"] == 8
    assert (tmp_path / "scale.svg").read_text().count("<svg") == 1
