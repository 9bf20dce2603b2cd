"""What is wrong in a table of cells: the list of failures, and the figures per mode. Arrow in, Arrow out."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from timmgate.core.schemas import PASSED, STATUSES
from timmgate.supervisor import speedup

FAILURE_COLUMNS = ("stage", "cause", "message", "worst_leaf", "margin", "log", "command")

VERDICTS = ("faster", "same", "slower", "ambiguous")

SEED = 1337
"""Of the bootstrap over models."""

SUMMARY = pa.schema(
    [
        *((name, pa.string()) for name in ("device", "mode", "check")),
        *((name, pa.int64()) for name in ("cells", "passed")),
        *((name, pa.float64()) for name in ("speedup", "speedup_ci_low", "speedup_ci_high")),
        *((name, pa.float64()) for name in ("speedup_clipped", "speedup_clipped_ci_low", "speedup_clipped_ci_high")),
        *((name, pa.float64()) for name in ("compile_cold_s", "compile_warm_s", "compression_ratio")),
        *((name, pa.int64()) for name in (*VERDICTS, "graph_breaks", *STATUSES)),
    ]
)
"""One row per mode and check. Speedups are geometric means over models with a 95 % interval; the clipped ones count a model
that got slower as 1, as benchmarks/dynamo does. Compile times are medians, the compression ratio is a geometric mean.
"""


FIGURES = ("verdict", "speedup", "compile_cold_s", "compile_warm_s", "compression_ratio", "graph_breaks")
"""Columns of a cell that the summary of a mode is made of."""


def failures(cells: pa.Table, checks: Sequence[str]) -> pa.Table:
    """One row per check of a cell that did not pass: its status, where and why, and how to look into it."""
    return pa.concat_tables([_failures(cells, check) for check in checks])


def _failures(cells: pa.Table, check: str) -> pa.Table:
    failed = cells.filter(pc.invert(pc.is_in(cells[check], pa.array(PASSED))))
    columns = {"device": "device", "mode": "mode", "model": "model", check: "status"}
    for name in FAILURE_COLUMNS:
        columns[f"{check}_{name}" if f"{check}_{name}" in cells.column_names else name] = name
    table = failed.select(list(columns)).rename_columns(list(columns.values()))
    return table.add_column(3, "check", pa.array([check] * len(table), pa.string()))


def summary(cells: pa.Table, checks: Sequence[str]) -> pa.Table:
    """One row per device, mode and check, as `SUMMARY` says."""
    modes: dict[tuple[str, str], list[dict[str, Any]]] = {}
    needed = ["device", "mode", *checks, *FIGURES]
    for row in cells.select(needed).to_pylist():
        modes.setdefault((row["device"], row["mode"]), []).append(row)
    lines = []
    for check in checks:
        for (device, mode), of_mode in modes.items():
            statuses = Counter(row[check] for row in of_mode)
            lines.append(
                {
                    "device": device,
                    "mode": mode,
                    "check": check,
                    "cells": statuses.total(),
                    "passed": sum(statuses[status] for status in PASSED),
                    **{status: statuses[status] for status in STATUSES},
                    **(_figures(of_mode) if check == "performance" else {}),
                }
            )
    return pa.Table.from_pylist(lines, schema=SUMMARY)


def _figures(of_mode: list[dict[str, Any]]) -> dict[str, float]:
    known = {name: [row[name] for row in of_mode if row[name] is not None] for name in FIGURES}
    verdicts = Counter(known["verdict"])
    figures = {verdict: verdicts[verdict] for verdict in VERDICTS}
    figures["graph_breaks"] = sum(known["graph_breaks"])
    for name in ("compile_cold_s", "compile_warm_s"):
        figures[name] = median(known[name]) if known[name] else None
    if known["compression_ratio"]:
        figures["compression_ratio"] = speedup.geometric_mean(known["compression_ratio"], SEED)[0]
    for name, floor in (("speedup", None), ("speedup_clipped", 1.0)):
        if known["speedup"]:
            columns = (name, f"{name}_ci_low", f"{name}_ci_high")
            figures.update(zip(columns, speedup.geometric_mean(known["speedup"], SEED, floor), strict=True))
    return figures
