"""Runs that are right, judged: false alarms, and the statistics that the strict rule's multiplier is chosen from."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa

from timmgate.core.described import columns
from timmgate.tables import parquet
from timmgate.tables.repeats import wilson
from timmgate.tables.studies import common

QUANTILES = (0.5, 0.95, 0.99)

RUNS = parquet.schema(
    columns(
        "calibration",
        [
            *common.COLUMNS,
            ("seed", "int64", "", "seed of weights and images"),
            (
                "run",
                "string",
                "",
                "family of null runs, judged by those independent of it, or threads or a compiler, judged by all",
            ),
            ("ratio", "float64", "", "what the multiplier of a single leaf has to be for the run to pass"),
            ("worst_leaf", "string", "", "compared tensor that it is of"),
            ("worst_statistic", "string", "", "which statistic"),
            ("multiplier", "float64", "", "what it is"),
            ("strict", "string", "", "strict verdict"),
            ("leaves", "int64", "", "number of compared tensors"),
            ("undecided", "int64", "", "number of them that prove nothing"),
        ],
    )
)

SUMMARY = parquet.schema(
    columns(
        "calibration_summary",
        [
            ("precision", "string", "", "float32, bfloat16, float16 or amp"),
            ("training", "bool", "", "forward and backward pass, or inference"),
            ("run", "string", "", "family of null runs, threads or compiler"),
            ("runs", "int64", "", "number of runs"),
            ("clusters", "int64", "", "pairs of model and seed that they are of: runs of one pair are not independent"),
            ("false_alarms", "int64", "", "runs that fail"),
            ("false_alarms_ci_high", "float64", "", "upper end of the 95 % interval of clusters with one (Wilson)"),
            ("undecided", "int64", "", "runs that are undecided"),
            *((f"ratio_p{round(100 * share)}", "float64", "", f"quantile {share:g} of the ratio") for share in QUANTILES),
            ("ratio_max", "float64", "", "largest ratio"),
            ("multiplier", "float64", "", "what the ratio may be"),
        ],
    )
)


def table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Runs in the schema `RUNS`."""
    return parquet.table(list(rows), RUNS)


def summary(runs: pa.Table) -> pa.Table:
    """A row for each kind of mode and of run, in the schema `SUMMARY`."""
    groups: dict[tuple[str, bool, str], list[dict[str, Any]]] = {}
    for row in runs.to_pylist():
        groups.setdefault((row["precision"], row["training"], row["run"]), []).append(row)
    keys = ("precision", "training", "run")
    return parquet.table([dict(zip(keys, key, strict=True)) | _figures(rows) for key, rows in groups.items()], SUMMARY)


def _figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    clusters = {(row["model"], row["seed"]) for row in rows}
    alarmed = {(row["model"], row["seed"]) for row in rows if row["strict"] == "fail"}
    ratios = np.array([row["ratio"] for row in rows])
    return {
        "runs": len(rows),
        "clusters": len(clusters),
        "false_alarms": sum(row["strict"] == "fail" for row in rows),
        "false_alarms_ci_high": wilson(len(alarmed), len(clusters))[1],
        "undecided": sum(row["strict"] == "undecided" for row in rows),
        **{f"ratio_p{round(100 * share)}": float(np.quantile(ratios, share, method="higher")) for share in QUANTILES},
        "ratio_max": float(ratios.max()),
        "multiplier": rows[0]["multiplier"],
    }
