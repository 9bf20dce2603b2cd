"""What the gate catches: trials of faults to counts by precision, family, effect and rule."""

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import pyarrow as pa

from timmgate.core.described import columns
from timmgate.tables import parquet
from timmgate.tables.repeats import wilson
from timmgate.tables.studies import common

RULES = ("strict", "dynamo", "cosine")

EFFECTS = (0.0, 1.0, 3.0)
"""Faults of more than the first effect, and of at least the others: all that are not equivalent, and those that matter."""

CURVE = (0.0, 0.3, 1.0, 3.0, 10.0, 100.0, 1000.0, math.inf)
"""Limits of the ranges of effect that the curve of detection has a point for."""

ALL = "all"
"""Family of all faults together."""

TRIALS = parquet.schema(
    columns(
        "trials",
        [
            *common.COLUMNS,
            ("fault", "string", "", "the fault with its size and place, as a backend is named"),
            ("family", "string", "", "family of the fault"),
            ("size", "string", "", "size of the fault; null if it has none"),
            ("place", "string", "", "where in the graph it is; null if it has no place"),
            ("backward", "bool", "", "it is in the backward pass alone"),
            ("effect", "float64", "", "largest change of a compared tensor over eager's own error; 0 changes nothing"),
            ("dynamo", "bool", "", "caught by the rule of benchmarks/dynamo"),
            ("cosine", "bool", "", "caught by its cosine mode"),
            ("strict", "string", "", "strict verdict: fail has caught it"),
            ("strict_margin", "float64", "", "largest statistic over its limit, with the first seed"),
            ("strict_worst_leaf", "string", "", "compared tensor that it is of"),
            ("strict_of_seeds", "list<string>", "", "the verdict with each seed that was tried"),
            ("error", "string", "", "what the run raised; then it is caught by every rule"),
        ],
    )
)

SUMMARY = parquet.schema(
    columns(
        "power",
        [
            ("precision", "string", "", "float32, bfloat16, float16 or amp"),
            ("training", "bool", "", "forward and backward pass, or inference"),
            ("weights", "string", "", "where the weights come from"),
            ("family", "string", "", "family of the faults, or all"),
            ("effect_from", "float64", "", "of faults with at least this effect"),
            ("effect_below", "float64", "", "and less than this; infinite is no limit"),
            ("rule", "string", "", "strict, dynamo or cosine"),
            ("caught", "int64", "", "faults that the rule caught"),
            ("applicable", "int64", "", "faults that apply to the model and change anything"),
            ("share", "float64", "", "caught over applicable"),
            ("share_ci_low", "float64", "", "lower end of its 95 % interval (Wilson)"),
            ("share_ci_high", "float64", "", "upper end of its 95 % interval (Wilson)"),
        ],
    )
)

Row = dict[str, Any]


def table(rows: Iterable[Row]) -> pa.Table:
    """Trials in the schema `TRIALS`."""
    return parquet.table(list(rows), TRIALS)


def summary(trials: pa.Table) -> pa.Table:
    """How many faults each rule catches, in the schema `SUMMARY`.

    For every kind of mode and weights, families first from an effect of 0, 1 and 3 on, then all of them in narrow ranges of
    effect: the curve of detection. A mutant that is equivalent is not counted.
    """
    rows = [row for row in trials.to_pylist() if row["effect"] > 0]
    groups = list(dict.fromkeys((row["precision"], row["training"], row["weights"]) for row in rows))
    found = []
    for group in groups:
        some = [row for row in rows if (row["precision"], row["training"], row["weights"]) == group]
        about = dict(zip(("precision", "training", "weights"), group, strict=True))
        families = [ALL, *dict.fromkeys(row["family"] for row in some)]
        ranges = [(family, low, math.inf) for family in families for low in EFFECTS]
        ranges += [(ALL, low, high) for low, high in pairwise(CURVE)]
        found += [about | counts for each in dict.fromkeys(ranges) for counts in _counts(some, *each)]
    return parquet.table(found, SUMMARY)


def _counts(rows: list[Row], family: str, low: float, high: float) -> Iterator[Row]:
    chosen = [row for row in rows if family in (ALL, row["family"]) and low <= row["effect"] and _below(row["effect"], high)]
    for rule in RULES:
        caught = sum(row[rule] in (True, "fail") for row in chosen)
        counts = {"caught": caught, "applicable": len(chosen)}
        yield {"family": family, "effect_from": low, "effect_below": high, "rule": rule, **counts, **_share(**counts)}


def _below(effect: float, high: float) -> bool:
    return effect < high or math.isinf(high)


def _share(caught: int, applicable: int) -> dict[str, float]:
    if not applicable:
        return {}
    low, high = wilson(caught, applicable)
    return {"share": caught / applicable, "share_ci_low": low, "share_ci_high": high}
