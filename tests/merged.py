"""Merged tables for tests, with what the merge derives."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from timmgate.core.checks import CHECKS
from timmgate.core.schemas import REASON
from timmgate.core.spec import PROTOCOL
from timmgate.core.verdict import status_by_rule
from timmgate.tables import parquet, reasons


def cells(rows: Iterable[Mapping[str, Any]], rule: str = "strict") -> pa.Table:
    """The table `cells` of these rows, with the status by the rule and the reasons that follow from the rows alone."""
    known = []
    for row in rows:
        status, by = status_by_rule(row.get("accuracy"), row.get("strict"), rule)
        protocols = {f"{check}_protocol": PROTOCOL for check in CHECKS}
        known.append({"accuracy_by_rule": status, "passed_by": by, **protocols, **row})
    table = parquet.table(known, parquet.SCHEMAS["cells"])
    derived = [{f"{check}_{name}": value for check in CHECKS for name, value in of(row, check)} for row in table.to_pylist()]
    return parquet.table([{**names, **row} for names, row in zip(derived, known, strict=True)], table.schema)


def of(row: Mapping[str, Any], check: str) -> Iterable[tuple[str, str | None]]:
    """The columns of a check's reason."""
    return zip(REASON, reasons.reason(row, check), strict=True)
