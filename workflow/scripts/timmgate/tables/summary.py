"""The figures of each mode: counts of statuses, and means over the cells that count. Arrow in, Arrow out."""

from collections import Counter
from collections.abc import Sequence
from statistics import median
from typing import Any

import pyarrow as pa

from timmgate.core.conditions import condition_words
from timmgate.core.described import columns
from timmgate.core.schemas import PASSED, SHOWN_STATUS, STATUSES
from timmgate.supervisor import speedup
from timmgate.tables import parquet
from timmgate.tables.by_cell import requested

VERDICTS = ("faster", "same", "slower", "ambiguous")

SEED = 1337
"""Of the bootstrap over models."""

SCHEMA = parquet.schema(
    columns(
        "summary",
        [
            ("device", "string", "", "torch device type"),
            ("build", "string", "", "label of what compiled"),
            ("mode", "string", "", "name of the mode"),
            ("check_name", "string", "", "accuracy or performance; figures are those of the performance check"),
            ("cells", "int64", "", "number of requested cells"),
            ("passed", "int64", "", "number of them that passed the check"),
            ("counted", "int64", "", "number of cells that the figures are of (column `counted` of a cell)"),
            ("speedup", "float64", "", "geometric mean over the counted cells"),
            (
                "speedup_ci_low",
                "float64",
                "",
                "lower end of its 95 % interval (bootstrap over models); null for a single one",
            ),
            ("speedup_ci_high", "float64", "", "upper end of its 95 % interval"),
            ("speedup_clipped", "float64", "", "the same, a model that got slower counted as 1, as benchmarks/dynamo does"),
            ("speedup_clipped_ci_low", "float64", "", "lower end of its 95 % interval"),
            ("speedup_clipped_ci_high", "float64", "", "upper end of its 95 % interval"),
            ("compile_cold_s", "float64", "s", "median over the counted cells"),
            ("compile_warm_s", "float64", "s", "median over the counted cells"),
            ("compression_ratio", "float64", "", "geometric mean over the counted cells"),
            *((verdict, "int64", "", f"number of cells with the verdict {verdict}") for verdict in VERDICTS),
            ("graph_breaks", "int64", "", "sum over the counted cells"),
            *((status, "int64", "", f"number of cells with the status {status}") for status in STATUSES),
            ("conditions", "string", "", "what speedups depend on beside the program, in words"),
        ],
    )
)

FIGURES = ("verdict", "speedup", "compile_cold_s", "compile_warm_s", "compression_ratio", "graph_breaks")
"""Columns of a cell that the figures of a mode are made of."""

CONDITIONS = ("performance_threads", "allocator", "relocate")
"""Columns of a cell that say what its speedup depends on."""


def summary(cells: pa.Table, checks: Sequence[str]) -> pa.Table:
    """The requested cells, as `SCHEMA` says. `checks` are those that the last command requested."""
    modes: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    needed = ["device", "build", "mode", "counted", *(SHOWN_STATUS[check] for check in checks), *FIGURES, *CONDITIONS]
    for row in requested(cells).select(needed).to_pylist():
        modes.setdefault((row["device"], row["build"], row["mode"]), []).append(row)
    rows = [
        {
            **dict(zip(("device", "build", "mode"), key, strict=True)),
            "check_name": check,
            **_counts(of_mode, check),
            **(_figures([row for row in of_mode if row["counted"]]) if check == "performance" else {}),
        }
        for check in checks
        for key, of_mode in modes.items()
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def _counts(of_mode: list[dict[str, Any]], check: str) -> dict[str, int]:
    statuses = Counter(row[SHOWN_STATUS[check]] for row in of_mode)
    passed = sum(statuses[status] for status in PASSED)
    return {"cells": len(of_mode), "passed": passed, **{status: statuses[status] for status in STATUSES}}


def _figures(counted: list[dict[str, Any]]) -> dict[str, float | str | None]:
    known = {name: [row[name] for row in counted if row[name] is not None] for name in FIGURES}
    verdicts = Counter(known["verdict"])
    figures: dict[str, float | str | None] = {
        "counted": len(counted),
        **{verdict: verdicts[verdict] for verdict in VERDICTS},
    }
    told = (condition_words(*(row[name] for name in CONDITIONS)) for row in counted if row["performance_threads"])
    figures["conditions"] = "; ".join(dict.fromkeys(told)) or None
    figures["graph_breaks"] = sum(known["graph_breaks"]) if known["graph_breaks"] else None
    for name in ("compile_cold_s", "compile_warm_s"):
        figures[name] = median(known[name]) if known[name] else None
    if known["compression_ratio"]:
        figures["compression_ratio"] = speedup.geometric_mean(known["compression_ratio"], SEED)[0]
    for name, floor in (("speedup", None), ("speedup_clipped", 1.0)):
        if known["speedup"]:
            names = (name, f"{name}_ci_low", f"{name}_ci_high")
            mean = speedup.geometric_mean(known["speedup"], SEED, floor)
            figures.update(zip(names, mean if len(known["speedup"]) > 1 else (mean[0], None, None), strict=True))
    return figures
