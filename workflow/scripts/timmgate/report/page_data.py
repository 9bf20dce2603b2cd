"""What the report's page holds: columns of all cells, and details of the gravest. Tables in, plain values out.

Every text goes through `plain`, so that nothing invisible reorders or hides what a person reads.
"""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from timmgate.core import plain_text
from timmgate.core.checks import CHECKS
from timmgate.core.described import Column, columns
from timmgate.core.redact import redacted
from timmgate.core.schemas import FAILED, KEY, REASON_CLASSES, SHOWN_STATUS, STATUSES
from timmgate.core.spec import CellKey
from timmgate.tables import parquet, request
from timmgate.tables.by_cell import keys, of_cells
from timmgate.tables.failures import KINDS
from timmgate.tables.figures import RELATIVE

GRAVEST = 500
"""So many cells have their details in the page."""

TENSORS = 20
"""Of the compared tensors of such a cell, so many with the largest margins."""

LOG_LINES, LOG_BYTES = 40, 16_000
"""Of the log of a cell that failed, so many of the last lines, and of those at most so many bytes."""

DIGITS = 5
"""Significant ones of a float in the page."""

BOARD = (
    *KEY,
    *("requested", "stale", "counted", "suite", "weights", "backend", "precision", "training", "freezing", "channels_last"),
    *(
        "dynamic",
        "batch_size",
        "parameters",
        "accuracy",
        "accuracy_by_rule",
        "passed",
        "passed_by",
        "comparison",
        "reference",
        "leaves",
    ),
    *("leaves_failed", "worst_leaf", "margin", "top1_agreement", "performance", "verdict", "speedup", "speedup_ci_low"),
    *("speedup_ci_high", "noise_floor", "samples", "eager_ms", "compiled_ms", "images_per_s", "timed_output_ok"),
    *("timed_output_margin", "machine_drift", "compile_cold_s", "compile_cold_cpu_s", "compile_warm_s", "dynamo_s"),
    *("aot_autograd_s", "inductor_s", "codegen_s", "break_even_iterations", "eager_peak_bytes", "compiled_peak_bytes"),
    *("compression_ratio", "graph_breaks", "unique_graphs", "recompiles", "accuracy_wall_s", "performance_wall_s"),
    *("performance_started_at", "host", "device_name", "torch", "log", "command"),
)
"""Columns of `cells` that the page has for every cell, where there are such; those whose names begin with `strict`, too."""

STATES = {
    "failure": "a check failed, or what it found is wrong",
    "not_run": "there is no result",
    "warning": "all checks passed, and a figure is beyond its threshold",
    "skipped": "not judged, or the fault that was asked for does not apply",
    "pass": "everything that was asked for passed",
}
"""What became of a cell as a whole, in order of gravity."""

DERIVED = columns(
    "report",
    [
        ("state", "string", "", "what became of the cell as a whole: failure, not_run, warning, skipped or pass"),
        ("kinds", "string", "", "what is to be looked at, as in the table `failures`"),
        ("reason", "string", "", "the gravest of it in a sentence"),
        ("worst_eager_rmse", "float64", "", "root mean square error of eager against float64, of the worst leaf"),
        ("worst_compiled_rmse", "float64", "", "root mean square error of compiled against float64, of the worst leaf"),
        ("worst_allowed_error", "float64", "", "compiled's error that the dynamo rule allows, of the worst leaf"),
        ("eager_drift", "float64", "", "median eager time of the last third of the samples over that of the first third"),
        ("compiled_drift", "float64", "", "median compiled time of the last third of the samples over that of the first"),
        ("change", "float64", "", "relative change of compiled_ms over eager_ms against the other build, timed in turns"),
        ("change_ci_low", "float64", "", "lower end of its 95 % interval, over processes"),
        ("change_ci_high", "float64", "", "upper end of its 95 % interval"),
        ("change_verdict", "string", "", "slower or faster than the other build; same_or_unknown where neither is shown"),
    ],
)
"""Columns that only the page has."""

WORST = {"worst_eager_rmse": "eager_rmse", "worst_compiled_rmse": "compiled_rmse", "worst_allowed_error": "allowed_error"}
"""Columns of a cell that are those of its worst tensor."""

FINDING = ("cell", "severity", "kind", "check_name", "status", "reason", "reason_class")
"""What the page has of a row of `failures`; `cell` is the number of the cell, null for the whole run."""

Row = dict[str, Any]


def page_data(folder: Path) -> Row:
    """Everything that the page shows of the tables in `folder`, which is results/{device}, as JSON has it.

    * `columns`: of each cell, with unit and meaning; `cells`: by name the values of each, as of `packed`.
    * `findings`: rows of `failures`.
    * `details`: by number of a cell, what more there is of the `GRAVEST`, as of `details`.
    * `meanings`: of the `columns` of all tables, `kinds`, `states`, `statuses` and `reason_classes`.
    """
    table = pq.read_table(folder / "cells.parquet")
    cells, findings = table.to_pylist(), pq.read_table(folder / "failures.parquet").to_pylist()
    numbers = {key: number for number, key in enumerate(keys(table))}
    for finding in findings:
        finding["cell"] = numbers.get(_key(finding))
    asked = request.load(folder)
    derive(cells, findings, asked.checks if asked else tuple(CHECKS), folder)
    shown = [each for each in board_columns(table.schema) if any(cell[each.name] is not None for cell in cells)]
    return {
        "columns": [vars(column) for column in shown],
        "cells": {column.name: packed([cell[column.name] for cell in cells]) for column in shown},
        "findings": [plain({name: finding[name] for name in FINDING}) for finding in findings],
        "details": details(cells, gravest(cells, findings), folder),
        "meanings": {
            "columns": _definitions(folder),
            "kinds": {kind.name: kind.meaning.replace("`", "") for kind in KINDS.values()},
            "states": STATES,
            "statuses": STATUSES,
            "reason_classes": REASON_CLASSES,
        },
    }


def board_columns(schema: pa.Schema) -> list[Column]:
    """The columns that the page has of every cell: those of `cells` in their order, then the derived ones."""
    shown = (each for each in schema if each.name in BOARD or each.name.startswith("strict"))
    return [_column(each) for each in (*shown, *parquet.schema(DERIVED))]


def plain(value: Any) -> Any:
    """A value as JSON has it; what a text hides is spelt out, as `\\u202e`; what is not finite is `inf`, `-inf`, `nan`."""
    if isinstance(value, str):
        return plain_text.plain(value)
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else str(value)
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def packed(values: Sequence[Any]) -> Any:
    """A column as JSON: its values; of texts, `words` and for each row the number of its word, or null."""
    values = plain(values)
    if not any(isinstance(value, str) for value in values):
        return values
    words = {word: number for number, word in enumerate(dict.fromkeys(value for value in values if value is not None))}
    return {"words": list(words), "codes": [None if value is None else words[value] for value in values]}


def derive(cells: Sequence[Row], findings: Iterable[Row], checks: Collection[str], folder: Path) -> None:
    """Add the columns of `DERIVED` to the cells. `checks` are those that the last command requested."""
    of_cell: dict[int, list[Row]] = {}
    for finding in findings:
        of_cell.setdefault(finding["cell"], []).append(finding)
    worst, drifts, changes = _worst_tensors(cells, folder), _drifts(folder), _changes(folder)
    unknown: Row = {column.name: None for column in DERIVED}
    for number, cell in enumerate(cells):
        found = of_cell.get(number, [])
        about = {
            "state": state(cell, found, checks if cell["requested"] else tuple(CHECKS)),
            "kinds": ", ".join(dict.fromkeys(each["kind"] for each in found)) or None,
            "reason": sentence(found[0]) if found else None,
        }
        cell.update(unknown | about)
        for known in (worst, drifts, changes):
            cell.update(known.get(_key(cell), {}))


def state(cell: Row, findings: Collection[Row], checks: Collection[str]) -> str:
    """The word of `STATES` for a cell, by these checks.

    One that was not requested has no findings, so statuses count as well; but not of one that waits to be measured once
    more: they are of what it was.
    """
    statuses = {cell.get(SHOWN_STATUS[check], cell[check]) for check in checks} - {None, "not_run"}
    waits = any(each["kind"] == "not_measured" for each in findings)
    if any(each["severity"] == "failure" and each["kind"] != "not_measured" for each in findings):
        return "failure"
    if waits or not statuses:
        return "not_run"
    if statuses & {*FAILED}:
        return "failure"
    if any(each["severity"] == "warning" for each in findings):
        return "warning"
    return "pass" if statuses == {"pass"} else "skipped"


def sentence(finding: Row) -> str:
    """What is to be looked at, in one sentence."""
    meaning = KINDS[finding["kind"]].meaning.replace("`", "")
    return f"{meaning}: {finding['reason']}" if finding["reason"] else meaning


def gravest(cells: Sequence[Row], findings: Iterable[Row]) -> list[int]:
    """Numbers of the `GRAVEST` cells: as `failures` orders them, then the others by state and margin."""
    listed = dict.fromkeys(finding["cell"] for finding in findings if finding["cell"] is not None)
    gravity = {name: number for number, name in enumerate(STATES)}
    others = [number for number in range(len(cells)) if number not in listed]
    others.sort(key=lambda number: (gravity[cells[number]["state"]], -(cells[number]["margin"] or 0.0)))
    return [*listed, *others][:GRAVEST]


def details(cells: Sequence[Row], numbers: Sequence[int], folder: Path) -> dict[int, Row]:
    """By number of a cell: `columns` that the board does not have, `leaves`, `samples` and `attempts` as lists of values by
    column, and `log`, the end of it. What there is nothing of is left out.
    """
    wanted = {_key(cells[number]): number for number in numbers}
    found: dict[int, Row] = {number: {"columns": _others(cells[number])} for number in numbers}
    for name, table in (("leaves", "evidence"), ("samples", "samples"), ("attempts", "attempts")):
        for key, rows in of_cells(folder / f"{table}.parquet", wanted).items():
            found[wanted[key]][name] = _values(worst_first(rows) if name == "leaves" else rows)
    for number in numbers:
        if cells[number]["state"] in ("failure", "not_run") and (end := log_end(folder, cells[number]["log"])):
            found[number]["log"] = end
    return found


def worst_first(leaves: pa.Table) -> pa.Table:
    """The `TENSORS` with the largest margins by either rule; one that is no number is larger than any."""
    rules = [leaves[name].to_pylist() for name in ("margin", "strict_margin")]
    margins = [max(map(_size, of_leaf)) for of_leaf in zip(*rules, strict=True)]
    return leaves.take(sorted(range(len(margins)), key=lambda row: -margins[row])[:TENSORS])


def _size(margin: float | None) -> float:
    return 0.0 if margin is None else math.inf if math.isnan(margin) else margin


def log_end(folder: Path, log: str | None) -> str | None:
    """The last lines of a log, whose path is relative to the working directory of the results; None if it is gone."""
    if log is None:
        return None
    try:
        with (folder.absolute().parents[1] / log).open("rb") as file:
            start = max(0, file.seek(0, 2) - LOG_BYTES)
            file.seek(start)
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    return str(plain(redacted("\n".join(text.splitlines()[-LOG_LINES:]))))


def _key(row: Row) -> CellKey:
    device, build, mode, model = (row[name] for name in KEY)
    return device, build, mode, model


def _others(cell: Row) -> Row:
    board = {*BOARD, *(column.name for column in DERIVED)}
    return {name: plain(value) for name, value in cell.items() if name not in board and value is not None}


def _values(rows: pa.Table) -> Row:
    """By name, the values of the columns that have any, but those of the key."""
    return {
        name: plain(column.to_pylist())
        for name, column in zip(rows.column_names, rows.columns, strict=True)
        if name not in KEY and column.null_count < len(rows)
    }


def _worst_tensors(cells: Iterable[Row], folder: Path) -> dict[CellKey, Row]:
    """The columns `WORST` by cell."""
    leaves = {_key(cell): cell["worst_leaf"] for cell in cells if cell["worst_leaf"] is not None}
    path, needed = folder / "evidence.parquet", [*KEY, "leaf", *WORST.values()]
    rows = pq.read_table(path, columns=needed, filters=pc.field("leaf").isin(pa.array({*leaves.values()}, pa.string())))
    worst = [leaves.get(key) == leaf for key, leaf in zip(keys(rows), rows["leaf"].to_pylist(), strict=True)]
    rows = rows.filter(pa.array(worst, pa.bool_()))
    errors = rows.select(list(WORST.values())).rename_columns(list(WORST)).to_pylist()
    return dict(zip(keys(rows), errors, strict=True))


def _drifts(folder: Path) -> dict[CellKey, Row]:
    """By cell, how the times of both sides changed from the first third of the samples to the last."""
    rows = pq.read_table(folder / "samples.parquet", columns=[*KEY, "process", "eager_s", "compiled_s"]).to_pandas()
    rows = rows[rows.pop("process").fillna(0) == 0]  # from one to the next it is no drift
    of_cells = rows.groupby(list(KEY), sort=False)["eager_s"]
    place, size = of_cells.cumcount(), of_cells.transform("size")
    thirds = (rows[part].groupby(list(KEY)).median() for part in (place < size // 3, place >= size - size // 3))
    first, last = thirds
    ratios = (last / first).rename(columns={"eager_s": "eager_drift", "compiled_s": "compiled_drift"})
    return dict(zip(ratios.index, ratios.to_dict("records"), strict=True))


def _changes(folder: Path) -> dict[CellKey, Row]:
    """By cell of the later of two builds, timed in turns, what a comparison says of its compiled time over eager's."""
    return {
        (row["device"], row["after"], row["mode"], row["model"]): {
            **{name: row[name] for name in ("change", "change_ci_low", "change_ci_high")},
            "change_verdict": row["verdict"] or "same_or_unknown",
        }
        for row in comparison(folder)
        if row["figure"] == RELATIVE.column and row["processes"] is not None
    }


def comparison(folder: Path) -> list[Row]:
    """The rows of what compared two builds; none where that was not done, or is older than the cells."""
    path = folder / "comparison.parquet"
    if not path.is_file() or path.stat().st_mtime_ns < (folder / "cells.parquet").stat().st_mtime_ns:
        return []
    return [dict(row) for row in pq.read_table(path).to_pylist()]


def _column(field: pa.Field) -> Column:
    about = {name.decode(): text.decode() for name, text in (field.metadata or {}).items()}
    return Column(field.name, str(field.type), about.get("unit", ""), about.get("description", ""), about.get("group", ""))


def _definitions(folder: Path) -> dict[str, str]:
    """By name, what a column of any of the tables means, with its unit."""
    names = ("attempts", "samples", "evidence", "cells")
    found = [*(_column(field) for name in names for field in pq.read_schema(folder / f"{name}.parquet")), *DERIVED]
    return {each.name: f"{each.description}{f' ({each.unit})' if each.unit else ''}" for each in found}
