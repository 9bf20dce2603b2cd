"""Failed checks that were measured again in fresh processes: their rows, and how often each fails."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from timmgate.core.outcome import Outcome
from timmgate.core.redact import shortened
from timmgate.core.schemas import FAILED, KEY, REPEATED, SHOWN_STATUS
from timmgate.core.spec import Spec
from timmgate.core.verdict import status_by_rule
from timmgate.tables import parquet, retries

FOLDER = "confirm"
"""Of results/{device}, with the files of repeats."""

Row = Mapping[str, Any]


def failed_cells(files: Mapping[str, Iterable[str]], rule: str) -> list[str]:
    """The cells that failed in a check, as `build/mode/model`; `files` are by check those of its rows."""
    cells: dict[str, dict[str, str]] = {}
    for check, paths in files.items():
        for path in paths:
            cells.setdefault("/".join(Path(path).parts[-4:-1]), {})[check] = path
    return list(dict.fromkeys(cell for cell, *_ in retries.failed(cells, ["failed"], rule)))


def failed_checks(row: Row, checks: Iterable[str]) -> list[str]:
    """Those that failed, by a row of `cells`."""
    return [check for check in checks if row[SHOWN_STATUS[check]] in FAILED]


def table(cell: Row, number: int, repeated: Iterable[tuple[Spec, Outcome]], rule: str) -> pa.Table:
    """What became of the checks of a cell, which is a row of `cells`, in the fresh process of this number."""
    rows = []
    for spec, outcome in repeated:
        result = outcome.result
        status: str | None = outcome.verdict.status
        if spec.check == "accuracy":
            status, _ = status_by_rule(outcome.verdict.status, result.columns.get("strict"), rule)
        rows.append(
            {
                **{name: cell[name] for name in KEY},
                "check_name": spec.check,
                "number": number,
                "status": status,
                "stage": result.stage,
                "cause": outcome.verdict.cause,
                "message": shortened(outcome.verdict.message),
                "repeated_at": cell[f"{spec.check}_started_at"],
                "began_at": result.started_at,
                "wall_s": outcome.wall_s,
            }
        )
    return parquet.table(rows, parquet.SCHEMAS["repeats"])


def columns(cell: Row, check: str, rows: Iterable[Row]) -> dict[str, Any]:
    """The columns `schemas.REPEATED` of a check of a cell, out of the rows of its repeats.

    What was repeated before the cell was measured anew says nothing of it, and neither does what something else ended.
    """
    statuses = list(_statuses(cell[f"{check}_started_at"], cell[SHOWN_STATUS[check]], check, rows))
    if not statuses:
        return {f"{check}_{name}": None for name, *_ in REPEATED}
    failed = sum(status in FAILED for status in statuses)
    low, high = wilson(failed, len(statuses))
    recurrence = "deterministic" if failed == len(statuses) else "flaky" if failed else "one_off"
    values = len(statuses), failed, low, high, recurrence
    return {f"{check}_{name}": value for (name, *_), value in zip(REPEATED, values, strict=True)}


def _statuses(started_at: datetime | None, status: str, check: str, rows: Iterable[Row]) -> Iterator[str]:
    for row in rows:
        is_foreign = row["status"] == "infra_error" and status != "infra_error"
        if row["check_name"] == check and row["repeated_at"] == started_at and not is_foreign:
            yield row["status"]


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95 % interval of a share."""
    from scipy.stats import binomtest  # takes a second to import, and most runs repeat nothing

    interval = binomtest(successes, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
