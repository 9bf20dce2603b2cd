"""What is derived of each cell out of all tables: whether it passes and why not, whether it is stale, whether it counts."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from timmgate.config import settings
from timmgate.config.cells import Identities, identities
from timmgate.core.checks import CHECKS
from timmgate.core.schemas import OF_CHECK, OF_CHECKS, PASSED, REASON, REPEATED, SHOWN_STATUS
from timmgate.core.spec import CellKey
from timmgate.core.verdict import status_by_rule
from timmgate.tables import reasons, repeats
from timmgate.tables.by_cell import aligned, keys, of_cells

UNJUDGED = (None, "not_run", "not_applicable")
"""Statuses of an accuracy check that has neither passed nor failed."""

OF_BOTH = {column.name for column in OF_CHECKS} - set().union(*OF_CHECK.values())
"""Columns of the program, which several checks have."""


def in_order(
    rows: pa.Table,
    files: Collection[CellKey],
    requested: Sequence[CellKey],
    checks: Collection[str],
    identities: Identities,
    rule: str,
) -> pa.Table:
    """The requested cells in their order, then the others, with what is derived of each (`schemas.STATE`)."""
    cells = [*requested, *sorted({*files} - {*requested})]
    rows = aligned(rows, cells)
    asked = pa.array([True] * len(requested) + [False] * (len(cells) - len(requested)), pa.bool_())
    for check in CHECKS:
        status = pc.if_else(pc.equal(rows[check], "not_run"), None, rows[check])
        status = pc.if_else(pc.and_(asked, check in checks), pc.fill_null(status, "not_run"), status)
        rows = rows.set_column(rows.schema.get_field_index(check), rows.schema.field(check), status)
    stale = {check: _stale(rows, cells, check, identities) for check in CHECKS}
    pairs = zip(rows["accuracy"].to_pylist(), rows["strict"].to_pylist(), strict=True)
    statuses, rules = zip(*(status_by_rule(*pair, rule) for pair in pairs), strict=True) if cells else ((), ())
    accuracy = pa.array(statuses, pa.string())
    state = {
        "accuracy_by_rule": accuracy,
        "passed": pc.if_else(pc.is_in(accuracy, pa.array(UNJUDGED)), None, pc.is_in(accuracy, pa.array(PASSED))),
        "passed_by": pa.array(rules, pa.string()),
        "requested": asked,
        "stale": pa.array([_any(of_cell) for of_cell in zip(*stale.values(), strict=True)], pa.bool_()),
        "counted": _counted(rows, accuracy, stale),
    }
    for name, values in state.items():
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), values)
    return rows


def with_reasons(rows: pa.Table, folder: Path) -> pa.Table:
    """The cells with why their checks did not pass, by their rows and their evidence in `folder`."""
    passed = (pc.is_in(rows[status], pa.array(reasons.WITHOUT_REASON)) for status in SHOWN_STATUS.values())
    numbers = pc.indices_nonzero(pc.invert(reduce(pc.and_, passed))).to_pylist()
    some = rows.take(pa.array(numbers, pa.int64()))
    leaves = of_cells(folder / "evidence.parquet", keys(some), reasons.LEAF)
    repeated = of_cells(folder / "repeats.parquet", keys(some))
    found: list[dict[str, Any]] = [{} for _ in range(len(rows))]
    for number, cell, row in zip(numbers, keys(some), some.to_pylist(), strict=True):
        details, again = ([*table[cell].to_pylist()] if cell in table else [] for table in (leaves, repeated))
        found[number] = derived(row, CHECKS, details, again)
    for name in (f"{check}_{name}" for check in CHECKS for name in (*REASON, *(name for name, *_ in REPEATED))):
        field = rows.schema.field(name)
        values = pa.array([each.get(name) for each in found], field.type)
        rows = rows.set_column(rows.schema.get_field_index(name), field, values)
    return rows


def derived(
    row: Mapping[str, Any], checks: Iterable[str], leaves: Sequence[Mapping[str, Any]], again: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Why the checks of a cell did not pass, and how often they fail again: columns of its row, out of its other tables."""
    found: dict[str, Any] = {}
    for check in checks:
        found |= repeats.columns(row, check, again)
        found |= zip((f"{check}_{name}" for name in REASON), reasons.reason({**row, **found}, check, leaves), strict=True)
    return found


def of_checks(cells: pa.Table, checks: Collection[str]) -> pa.Table:
    """The cells, as if only these checks had been measured: rows of others may be of an earlier program."""
    unknown = set().union(*({*OF_CHECK[check], SHOWN_STATUS[check]} for check in SHOWN_STATUS if check not in checks))
    for number, field in enumerate(cells.schema):
        if field.name in unknown:
            cells = cells.set_column(number, field, pa.nulls(len(cells), field.type))
    return cells


def without_stale(cells: pa.Table, checks: Collection[str], identities: Identities) -> tuple[pa.Table, int]:
    """The cells, where a requested check that was measured with another identity than today's is `not_run`; and how many.

    So it is while a run goes on: the file of an earlier one lies there until the job that makes it anew begins. And where
    Snakemake has no record of how a file was made, as of one that was copied: it does not make it anew.
    """
    asked, found = pc.fill_null(cells["requested"], False), 0
    for check in checks:
        is_stale = pc.and_(asked, pa.array(map(bool, _stale(cells, keys(cells), check, identities)), pa.bool_()))
        found += pc.sum(is_stale).as_py() or 0
        known = {check: "not_run", SHOWN_STATUS[check]: "not_run"} | ({"counted": False} if check == "performance" else {})
        for name in {*OF_CHECK[check], *OF_BOTH, *known}:
            number, field = cells.schema.get_field_index(name), cells.schema.field(name)
            cells = cells.set_column(
                number, field, pc.if_else(is_stale, pa.scalar(known.get(name), field.type), cells[name])
            )
    return cells, found


def measured_today(path: Path, checks: Collection[str], config: Mapping[str, Any], facts: Path) -> tuple[pa.Table, int]:
    """The cells of a table, as `without_stale` leaves them by this configuration and what `facts` says of the builds."""
    return without_stale(pq.read_table(path), checks, identities(settings.load(dict(config)), facts))


def said_of_stale(number: int) -> str:
    """A sentence on so many results that `without_stale` took away."""
    what = "of other software or options than today's, and count as missing"
    return f"results that are {what}: {number}; --forcerun measure makes them anew"


def _stale(rows: pa.Table, cells: Sequence[CellKey], check: str, identities: Identities) -> list[bool | None]:
    """Of each cell, whether its row of a check was measured with another identity than today's; None without one of both."""
    measured = rows[f"{check}_identity"].to_pylist()
    today = [identities(cell, check) if identity else None for cell, identity in zip(cells, measured, strict=True)]
    return [None if each is None else each != identity for each, identity in zip(today, measured, strict=True)]


def _any(of_checks: Iterable[bool | None]) -> bool | None:
    known = [each for each in of_checks if each is not None]
    return any(known) if known else None


def _counted(rows: pa.Table, accuracy: pa.Array, stale: Mapping[str, Sequence[bool | None]]) -> pa.ChunkedArray:
    """Whether a cell's speedup is in the means: timed, and neither its accuracy nor its timed output was found wrong.

    An accuracy that was not measured, or that is of an identity before that of the timing, says nothing of what was timed.
    """
    timed = pc.and_(pc.equal(rows["performance"], "pass"), pc.fill_null(rows["timed_output_ok"], True))
    is_earlier = [bool(one) and not other for one, other in zip(stale["accuracy"], stale["performance"], strict=True)]
    unknown = pc.or_(pc.is_in(accuracy, pa.array([None, "not_run"])), pa.array(is_earlier, pa.bool_()))
    return pc.fill_null(pc.and_(timed, pc.or_(unknown, pc.is_in(accuracy, pa.array(PASSED)))), False)
