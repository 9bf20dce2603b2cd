"""Every model of both dashboard suites loads and runs forward and backward. Writes every_model.tsv in pytest's folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from timmgate.config import suites

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MODELS = {
    model: suite
    for suite in ("dashboard-2024", "dashboard-2026")
    for model in suites.read(suite, ROOT / "config" / "suites").models
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    rows = []
    yield rows
    path = tmp_path_factory.getbasetemp() / "every_model.tsv"
    pd.DataFrame(rows).to_csv(path, sep="\t", index=False, float_format="%.2f")
    print(f"\n{path}")


@pytest.mark.parametrize("model", MODELS)
def test_a_model_loads_and_runs_forward_and_backward(model, table):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "workflow" / "scripts")}
    command = [sys.executable, HERE / "one_model.py", MODELS[model], model]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    table.append(json.loads(done.stdout.splitlines()[-1]))
    assert table[-1]["parameters"] > 0
