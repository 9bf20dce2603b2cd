"""Merged tables for tests."""

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

from timmgate.core.verdict import status_by_rule
from timmgate.tables import parquet


def cells(rows: Iterable[Mapping[str, Any]], rule: str = "strict") -> pa.Table:
    """The table `cells` of these rows, with the status that the rule gives."""
    known = []
    for row in rows:
        status, by = status_by_rule(row.get("accuracy"), row.get("strict"), rule)
        known.append({"accuracy_by_rule": status, "passed_by": by, **row})
    return parquet.table(known, parquet.SCHEMAS["cells"])
