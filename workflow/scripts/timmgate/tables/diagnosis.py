"""What diagnoses came to: a row for each failed cell, and one for each trial."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa

from timmgate.core.schemas import DIAGNOSIS, KEY, SHOWN_STATUS, TRIALS
from timmgate.core.spec import Cell
from timmgate.diagnosis.candidates import failed_check
from timmgate.diagnosis.examination import MODULE_SEARCH, Examination
from timmgate.diagnosis.script import NAME
from timmgate.tables import parquet

SCHEMA = parquet.schema(DIAGNOSIS)
TRIALS_SCHEMA = parquet.schema(TRIALS)

Row = dict[str, Any]


def candidates(cells: pa.Table, checks: Sequence[str]) -> list[str]:
    """Of a table of cells, the requested ones that are worth a diagnosis, as build/mode/model."""
    rows = [row for row in cells.to_pylist() if row["requested"] and failed_check(row, checks)]
    return ["/".join(row[name] for name in KEY[1:]) for row in rows]


def trials(cell: Cell, examination: Examination) -> pa.Table:
    """A row for each trial, in the schema `TRIALS_SCHEMA`."""
    about = _about(cell)
    rows = [{**about, **row, "started_at": datetime.fromisoformat(row["started_at"])} for row in examination.trials]
    return parquet.table(rows, TRIALS_SCHEMA)


def summary(cell: Cell, check: str, row: Mapping[str, Any], examination: Examination) -> pa.Table:
    """The one row of a cell, in the schema `SCHEMA`; `row` is the cell's own of the check that failed."""
    finding, tried = examination.finding, examination.trials
    raised = (trial["raised_in"] for trial in tried if trial.get("raised_in") and trial["ended"] == "fail")
    search_s = sum(trial["wall_s"] for trial in tried if trial["variant"] != MODULE_SEARCH.name)
    place_s = sum(trial["wall_s"] for trial in tried if trial["variant"] == MODULE_SEARCH.name)
    reference_s = row[f"{check}_wall_s"]
    found = {
        "check_name": check,
        "status": row[SHOWN_STATUS[check]],
        "reason_class": row[f"{check}_reason_class"],
        "reason": row[f"{check}_reason"],
        "layer": finding.layer,
        "switch": finding.switch,
        "application": finding.application,
        "conditions": list(finding.conditions),
        **examination.place,
        "raised_in": next(raised, None),
        "trials": sum(trial["variant"] != MODULE_SEARCH.name for trial in tried),
        "layer_s": search_s,
        "place_s": place_s,
        "cost": (search_s + place_s) / reference_s if reference_s else None,
        "log": tried[0]["log"],
        "script": f"results/{cell.device}/{cell.build}/{cell.mode}/{cell.model}/repro/{NAME}",
        "module_script": examination.script and str(examination.script),
        "graph_script": examination.graph_script and str(examination.graph_script),
    }
    return parquet.table([_about(cell) | found], SCHEMA)


def _about(cell: Cell) -> Row:
    return {name: getattr(cell, name) for name in KEY}
