"""Rows of diagnoses, and how they read in the terminal."""

import io
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console

from specs import cell
from timmgate.core.diagnosis import LAYERS
from timmgate.diagnosis.examination import Examination
from timmgate.diagnosis.ladder import Finding
from timmgate.report import diagnosis as terminal
from timmgate.tables import diagnosis

CELL = cell(mode="inference", model="test_vit")
ROW = {
    "accuracy_by_rule": "fail_accuracy",
    "accuracy_wall_s": 10.0,
    "accuracy_reason": "it is wrong",
    "accuracy_reason_class": "compiler",
}
TRIAL = {"status": "fail_accuracy", "log": "a.log", "wall_s": 20.0, "cpu_s": 5.0, "started_at": "2026-11-29T02:00:00+00:00"}
EXAMINATION = Examination(
    Finding("lowerings", "without lowerings (bisector)", "erf", ("freezing",)),
    [
        {**TRIAL, "number": 0, "variant": "as it is", "ended": "fail", "strict_margin": 7.0},
        {**TRIAL, "number": 1, "variant": "eager", "ended": "pass", "status": "pass"},
        {**TRIAL, "number": 2, "variant": "places", "ended": None, "wall_s": 10.0},
    ],
    {"module": "head", "module_class": "Linear", "direction": "backward", "graph": "aten.erf.default", "graph_operators": 1},
    graph_script=Path("results/graph.py"),
)


def requested(model, accuracy, stage="compare", asked=True):
    about = {"device": "cpu", "build": "default", "mode": "inference", "model": model, "requested": asked}
    return about | {"accuracy_by_rule": accuracy, "accuracy_stage": stage}


def test_requested_cells_that_failed_are_candidates():
    rows = [
        requested("one", "fail_accuracy"),
        requested("two", "pass"),
        requested("three", "fail_to_run", "compile", asked=False),
        requested("four", "fail_to_run", "compile"),
    ]
    assert diagnosis.candidates(pa.Table.from_pylist(rows), ["accuracy"]) == [
        "default/inference/one", "default/inference/four"
    ]  # fmt: skip


def test_the_row_of_a_cell_has_finding_place_reason_and_cost():
    (row,) = diagnosis.summary(CELL, "accuracy", ROW, EXAMINATION).to_pylist()
    assert (row["layer"], row["application"], row["conditions"]) == ("lowerings", "erf", ["freezing"])
    assert (row["module"], row["direction"]) == ("head", "backward")
    assert (row["reason"], row["reason_class"]) == ("it is wrong", "compiler")
    assert (row["trials"], row["layer_s"], row["place_s"], row["cost"]) == (2, 40.0, 10.0, 5.0)
    assert row["script"] == "results/cpu/default/inference/test_vit/repro/repro.py"
    assert (row["module_script"], row["graph_script"]) == (None, "results/graph.py")
    assert (row["graph"], row["graph_operators"]) == ("aten.erf.default", 1)


def test_trials_are_rows_in_their_order():
    rows = diagnosis.trials(CELL, EXAMINATION).to_pylist()
    assert [(row["number"], row["variant"]) for row in rows] == [(0, "as it is"), (1, "eager"), (2, "places")]
    assert rows[0]["strict_margin"] == 7.0


def shown(rows):
    console = Console(file=io.StringIO(), width=1000)
    terminal.show(rows, console)
    return console.file.getvalue()


def test_a_line_says_what_was_found():
    (row,) = diagnosis.summary(CELL, "accuracy", ROW, EXAMINATION).to_pylist()
    told = shown([row])
    for words in (
        "lowerings inference/test_vit",
        "erf",
        "head (Linear, backward)",
        "graph: aten.erf.default",
        "only with freezing",
        "2 trials, 50 s",
    ):
        assert words in told
    assert "1 failed cell diagnosed: lowerings 1." in told


@pytest.mark.parametrize("layer", LAYERS)
def test_a_finding_of_a_layer_alone_can_be_told(layer):
    bare = Examination(Finding(layer), EXAMINATION.trials[:1])
    (row,) = diagnosis.summary(CELL, "accuracy", ROW, bare).to_pylist()
    assert f"{layer} inference/test_vit {LAYERS[layer]}. 1 trials" in shown([row])


def test_nothing_failed():
    assert "No requested cell failed" in shown([])
