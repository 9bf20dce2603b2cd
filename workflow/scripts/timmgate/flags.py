"""What is wrong in a table of cells: the list of failures, and the counts per mode. Arrow in, Arrow out."""

from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc

from timmgate.rows import PASSED, STATUSES

FAILURE_COLUMNS = ("stage", "cause", "message", "worst_leaf", "margin", "log", "command")


def failures(cells: pa.Table, check: str = "accuracy") -> pa.Table:
    """One row per cell whose status is not a pass: the cell, its status, where and why, and how to look into it."""
    failed = cells.filter(pc.invert(pc.is_in(cells[check], pa.array(PASSED))))
    columns = {"device": "device", "mode": "mode", "model": "model", check: "status"}
    for name in FAILURE_COLUMNS:
        columns[f"{check}_{name}" if f"{check}_{name}" in cells.column_names else name] = name
    table = failed.select(list(columns)).rename_columns(list(columns.values()))
    return table.add_column(3, "check", pa.array([check] * len(table), pa.string()))


def summary(cells: pa.Table, check: str = "accuracy") -> pa.Table:
    """One row per device and mode: cells, how many passed, and one column per status with its count."""
    groups = list(zip(cells["device"].to_pylist(), cells["mode"].to_pylist(), strict=True))
    statuses: dict[tuple[str, str], Counter[str]] = {group: Counter() for group in groups}
    for group, status in zip(groups, cells[check].to_pylist(), strict=True):
        statuses[group][status] += 1
    schema = pa.schema(
        [
            *((name, pa.string()) for name in ("device", "mode", "check")),
            *((name, pa.int64()) for name in ("cells", "passed", *STATUSES)),
        ]
    )
    counts = [
        {
            "device": device,
            "mode": mode,
            "check": check,
            "cells": count.total(),
            "passed": sum(count[status] for status in PASSED),
            **{status: count[status] for status in STATUSES},
        }
        for (device, mode), count in statuses.items()
    ]
    return pa.Table.from_pylist(counts, schema=schema)
