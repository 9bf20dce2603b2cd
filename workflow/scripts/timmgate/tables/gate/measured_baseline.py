"""What was measured before, as a baseline of cells: their rows, and which of their statuses are to be expected. Arrow in."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from timmgate.core.checks import CHECKS
from timmgate.core.schemas import OF_CHECK, SHOWN_STATUS
from timmgate.core.verdict import status_by_rule
from timmgate.tables.figures import EAGER, FIGURES, GRAPH_BREAKS, comparable
from timmgate.tables.gate.baseline import Expectation, Expectations, Measured
from timmgate.tables.history import store

Row = dict[str, Any]
ModeModel = tuple[str, str]

IGNORED = {"device": ("device_name", "performance_threads", "allocator", "relocate")}
"""By kind of baseline, columns that may differ although figures are compared."""

IGNORED_OF_ANOTHER_BUILD = ("inductor_config",)
"""Of the options of the mode, those of a build are among them."""

CONDITIONS = {check: (f"{check}_protocol", "device_name", "weights", "options") for check in CHECKS}
"""By check, columns in which a cell must agree with the baseline's for a status there to be expected here."""

ABSENT = "the baseline has no such cell"

NEEDED = tuple(
    dict.fromkeys(
        [
            *("device", "build", "mode", "model", "accuracy", "strict", EAGER.column, "compile_warm_cpu_s"),
            *("margin", "strict_margin"),
            *(figure.column for figure in FIGURES),
            *(name for check in SHOWN_STATUS for name in (SHOWN_STATUS[check], f"{check}_started_at", *comparable(check))),
        ]
    )
)
"""Columns of a history that a baseline needs."""

UNKNOWN: Row = dict.fromkeys(NEEDED)
"""What an older table may lack."""


@dataclass(frozen=True)
class Baseline:
    """What was measured before: by mode and model, the rows of `cells`, the latest last.

    `ignored` are columns, and options of the mode, that may differ although figures are compared. `statuses` are those to
    expect where they are not the last row's. `others` says of cells of which a check was measured in another way, or not at
    all, why its status is not to be expected.
    """

    rows: Mapping[ModeModel, Sequence[Row]]
    ignored: tuple[str, ...] = ()
    statuses: Mapping[ModeModel, Row] = field(default_factory=dict)
    others: Mapping[tuple[str, str, str], str] = field(default_factory=dict)

    def expectations(self, wanted: Mapping[str, Collection[str]]) -> Expectations:
        """The statuses to expect, of these models by mode."""
        found: Expectations = {mode: {} for mode in wanted}
        for (mode, model), rows in self.rows.items():
            row = self.statuses.get((mode, model), rows[-1])
            statuses = {check: row[SHOWN_STATUS[check]] for check in CHECKS if (mode, model, check) not in self.others}
            known = [None if statuses.get(check) == "not_run" else statuses.get(check) for check in CHECKS]
            if model in wanted.get(mode, ()) and any(known):
                found[mode][model] = Expectation(known[0] or "pass", None, known[1])
        return found


def load(measured: Measured, cells: pa.Table) -> Baseline:
    """The rows of a baseline for `cells` of one build: those of the same build, unless `measured` is another one.

    Of a history, without the measurements that the table `cells` has itself.
    """
    ignored = IGNORED.get(measured.kind, ())
    if measured.kind != "history" and measured.name:
        ignored = (*ignored, *IGNORED_OF_ANOTHER_BUILD)
    if measured.kind == "history":
        rows = _of_history(measured, cells)
    else:
        table = pq.read_table(measured.path)
        if build := measured.name or _first(cells, "build"):
            table = table.filter(pc.equal(table["build"], build))
        rows = {(row["mode"], row["model"]): [UNKNOWN | row] for row in table.to_pylist()}
    _judge_as_today(cells, rows)
    others = _others(cells, rows, ignored)
    if measured.kind != "history":
        return Baseline(rows, ignored, {}, others)
    filled = {key: _filled(of_cell) for key, of_cell in rows.items()}
    return Baseline(filled, ignored, _settled(rows), others)


def _judge_as_today(cells: pa.Table, rows: Mapping[ModeModel, Sequence[Row]]) -> None:
    """Give each row the accuracy that it has by the rule which decided today: another `accuracy_rule` is no change."""
    for today in cells.select(["mode", "model", "passed_by"]).to_pylist():
        for row in rows.get((today["mode"], today["model"]), ()):
            if today["passed_by"] and row["accuracy"]:
                row["accuracy_by_rule"], _ = status_by_rule(row["accuracy"], row["strict"], today["passed_by"])


def _others(
    cells: pa.Table, rows: Mapping[ModeModel, Sequence[Row]], ignored: tuple[str, ...]
) -> dict[tuple[str, str, str], str]:
    """Why statuses of checks of cells are not to be expected.

    Of `rows`, what a check measured in another way is made unknown, if there is a row of it that was measured as today.
    """
    found = {}
    names = dict.fromkeys(name for of_check in CONDITIONS.values() for name in of_check)
    for today in cells.select(["mode", "model", *names]).to_pylist():
        key = today["mode"], today["model"]
        for check in CHECKS:
            measured = [row for row in rows.get(key, ()) if row[SHOWN_STATUS[check]] is not None]
            others = [(row, unlike) for row in measured if (unlike := _unlike(check, today, row, ignored))]
            if len(others) < len(measured):
                for row, _ in others:
                    row.update(dict.fromkeys(OF_CHECK[check] & row.keys()))
            elif others:
                found[(*key, check)] = in_words(today, *others[-1])
            else:
                found[(*key, check)] = "it was not measured in the baseline" if key in rows else ABSENT
    return found


def _unlike(check: str, row: Row, before: Row, ignored: tuple[str, ...]) -> list[str]:
    """The `CONDITIONS` of a check in which two rows differ; of what one of them does not know nothing is said."""
    known = [name for name in CONDITIONS[check] if None not in (row[name], before[name])]
    return differences(row, before, ignored, known)


def _of_history(measured: Measured, cells: pa.Table) -> dict[ModeModel, list[Row]]:
    where = (pc.field("device") == _first(cells, "device")) & (pc.field("build") == _first(cells, "build"))
    if measured.name:
        where &= pc.field("run") == measured.name
    starts = [f"{check}_started_at" for check in CHECKS]
    own = {
        (row["mode"], row["model"], name, row[name])
        for row in cells.select(["mode", "model", *starts]).to_pylist()
        for name in starts
    }
    entries = store.read(Path(measured.path), NEEDED, where)
    found: dict[ModeModel, list[Row]] = {}
    for row in entries.to_pylist():
        key = row["mode"], row["model"]
        for check in CHECKS:
            name = f"{check}_started_at"
            if (*key, name, row[name]) in own:
                row |= dict.fromkeys(OF_CHECK[check] & row.keys())
        if any(row[name] for name in starts):
            found.setdefault(key, []).append(row)
    return {key: sorted(rows, key=lambda row: max(row[name] for name in starts if row[name])) for key, rows in found.items()}


def _settled(history: Mapping[ModeModel, Sequence[Row]]) -> dict[ModeModel, Row]:
    """Of each cell and check the last status that came twice in succession, or the last: a failure that came once is new."""
    return {
        key: {name: last_twice([row[name] for row in rows if row[name] is not None]) for name in SHOWN_STATUS.values()}
        for key, rows in history.items()
    }


def last_twice(values: Sequence[Any]) -> Any:
    """The last value that came twice in succession, else the last; None if there are none. What came once may be chance."""
    twice = [value for value, following in pairwise(values) if value == following]
    return [None, *values, *twice][-1]


def _first(cells: pa.Table, name: str) -> Any:
    """The value of a column that is the same in all rows; None without rows."""
    return cells[name][0].as_py() if len(cells) else None


def _filled(rows: list[Row]) -> list[Row]:
    """Rows of one cell, the last one filled from earlier ones, as a run may measure one check alone.

    The earlier row that its timing came from is left out, and says what that was timed with.
    """
    latest = {name: next((row[name] for row in reversed(rows) if row[name] is not None), None) for name in rows[-1]}
    start = latest["performance_started_at"]
    if timed := next((row for row in rows if start is not None and row["performance_started_at"] == start), None):
        latest |= {name: timed[name] for name in (*comparable("performance"), GRAPH_BREAKS.column)}  # both checks have these
    return [*(row for row in rows[:-1] if row["performance_started_at"] != start), latest]


def in_words(row: Row, before: Row, names: Sequence[str]) -> str:
    """What these columns are in two rows."""
    return "; ".join(f"{name} is {row[name]}, in the baseline {before[name]}" for name in names)


def differences(
    row: Row, before: Row, ignored: tuple[str, ...], names: Sequence[str] = comparable("performance")
) -> list[str]:
    """Of these columns, those in which two rows differ and must not."""
    looked_at = (name for name in names if name not in ignored)
    return [name for name in looked_at if _condition(row, name, ignored) != _condition(before, name, ignored)]


def _condition(row: Row, name: str, ignored: tuple[str, ...]) -> Any:
    """The value of a column; of options those that may not differ. Threads change times on a CPU alone."""
    if name.endswith("_threads") and row["device"] != "cpu":
        return None
    if name != "options" or row[name] is None:
        return row[name]
    return {option: value for option, value in json.loads(row[name]).items() if option not in ignored}
