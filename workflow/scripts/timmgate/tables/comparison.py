"""Two builds, cell by cell: what moved, by how much, and whether that is real. Arrow in, Arrow out.

Times and memory come from processes that took turns (`tables.pairs`), statuses and margins from the cells themselves. Only
cells that both builds could be timed in are compared, at the same batch size; the others are counted, with the reason.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from timmgate.core.described import columns
from timmgate.core.schemas import FAILED, SHOWN_STATUS
from timmgate.core.statistics import CONFIDENCE
from timmgate.tables import moderated, parquet
from timmgate.tables.moderated import Test

LEVEL = 0.001
"""Chance of a false alarm of one figure of one cell."""

SMALLEST = 0.03
"""Relative difference that a figure should have had the power to show."""

POWER = 0.95
"""Chance of finding it, from which on it counts as such."""

Row = dict[str, Any]
Cell = tuple[str, str]


@dataclass(frozen=True)
class Figure:
    """A column of `pairs` of which less is better, and the words for a change to more and to less."""

    column: str
    more: str
    less: str


TESTED = (
    Figure("compiled_ms", "slower", "faster"),
    Figure("eager_ms", "eager_slower", "eager_faster"),
    Figure("compile_warm_cpu_s", "slower_compile", "faster_compile"),
    Figure("compiled_peak_bytes", "more_memory", "less_memory"),
)

COUNTED = Figure("graph_breaks", "more_graph_breaks", "fewer_graph_breaks")
"""A count has no chance in it: one more is a change."""

SHOWN = ("compile_cold_cpu_s", "margin", "strict_margin")
"""Columns of `cells` that are measured once, and so shown without a verdict."""

SCHEMA = parquet.schema(
    columns(
        "comparison",
        [
            ("device", "string", "", "torch device type"),
            ("before", "string", "", "label of the first build"),
            ("after", "string", "", "label of the second build"),
            ("mode", "string", "", "name of the mode"),
            ("model", "string", "", "timm model name"),
            ("figure", "string", "", "what is compared, by the name of its column, or the check with a status"),
            ("verdict", "string", "", "what changed; null where nothing is known to have, left_out where nothing could be"),
            ("value_before", "float64", "", "geometric mean over the processes, in the unit of the figure"),
            ("value_after", "float64", "", "the same of the second build"),
            ("change", "float64", "", "relative change of the second build against the first; of a count the difference"),
            ("change_ci_low", "float64", "", "lower end of its 95 % interval, over processes"),
            ("change_ci_high", "float64", "", "upper end of its 95 % interval"),
            ("p", "float64", "", "chance of such a change if there is none (moderated t)"),
            ("processes", "int64", "", "pairs of processes"),
            ("could_show", "bool", "", "a change of 3 % would have been found in 95 % of cases"),
            ("moved", "string", "", "of compiled_ms: compiled, eager, both or neither"),
            ("message", "string", "", "in words"),
        ],
    )
)


def compare(pairs: pa.Table, cells: pa.Table, before: str, after: str) -> pa.Table:
    """A row for each cell and figure, in the schema `SCHEMA`; of what was left out one row that says why."""
    processes: dict[Cell, dict[str, list[Row]]] = {}
    for row in pairs.to_pylist():
        processes.setdefault((row["mode"], row["model"]), {before: [], after: []})[row["build"]].append(row)
    reasons = {cell: _reason(sides, before, after) for cell, sides in processes.items()}
    cohort = [cell for cell, reason in reasons.items() if reason is None]
    sides = {cell: (processes[cell][before], processes[cell][after]) for cell in cohort}
    found = {figure: _tests(figure, sides) for figure in TESTED}
    measured = {(row["build"], row["mode"], row["model"]): row for row in cells.to_pylist()}
    rows = []
    for cell, reason in reasons.items():
        one, two = (measured.get((build, *cell), {}) for build in (before, after))
        rows += _statuses(cell, one, two)
        if reason:
            rows.append(_row(cell, "performance", verdict="left_out", message=reason))
            continue
        moved = _moved(*(found[figure].get(cell) for figure in TESTED[:2]))
        for figure in TESTED:
            if test := found[figure].get(cell):
                rows.append(_tested(cell, figure, sides[cell], test, moved if figure is TESTED[0] else None))
        rows += [*_counted(cell, *sides[cell]), *_shown(cell, one, two)]
    about = {"device": pairs["device"][0].as_py() if len(pairs) else None, "before": before, "after": after}
    return parquet.table([{**about, **row} for row in rows], SCHEMA)


def _reason(sides: Mapping[str, Sequence[Row]], before: str, after: str) -> str | None:
    """Why a cell is left out; None if it is compared."""
    for build in (before, after):
        for row in sides[build]:
            if row["status"] != "pass":
                return f"{build} was not timed: {row['status']} {row['cause'] or ''}".rstrip()
            if row["timed_output_ok"] is False:
                return f"{build} computes something else"
    if min(len(sides[before]), len(sides[after])) < 2:
        return "there are fewer than two processes of each build"
    sizes = [sorted({row["batch_size"] for row in sides[build]}) for build in (before, after)]
    return None if sizes[0] == sizes[1] else f"batch sizes differ: {sizes[0]} and {sizes[1]}"


def _tests(figure: Figure, sides: Mapping[Cell, tuple[Sequence[Row], Sequence[Row]]]) -> dict[Cell, Test]:
    """By cell, the test of the logarithm of after over before, of processes of the same turn."""
    logs = {
        cell: [
            math.log(two[figure.column] / one[figure.column])
            for one, two in zip(*both, strict=False)
            if one[figure.column] and two[figure.column]
        ]
        for cell, both in sides.items()
    }
    tests = moderated.tests(list(logs.values()))
    return {cell: test for cell, test in zip(logs, tests, strict=True) if test}


def _tested(cell: Cell, figure: Figure, both: tuple[Sequence[Row], Sequence[Row]], test: Test, moved: str | None) -> Row:
    low, high = test.interval(CONFIDENCE)
    values = [np.exp(np.mean(np.log([row[figure.column] for row in side if row[figure.column]]))) for side in both]
    verdict = None if test.p > LEVEL else figure.more if test.mean > 0 else figure.less
    return _row(
        cell,
        figure.column,
        verdict=verdict,
        value_before=float(values[0]),
        value_after=float(values[1]),
        change=math.expm1(test.mean),
        change_ci_low=math.expm1(low),
        change_ci_high=math.expm1(high),
        p=test.p,
        processes=min(map(len, both)),
        could_show=test.has_power(math.log1p(SMALLEST), LEVEL, POWER),
        moved=moved,
    )


def _moved(compiled: Test | None, eager: Test | None) -> str | None:
    if compiled is None or eager is None:
        return None
    return {(True, True): "both", (True, False): "compiled", (False, True): "eager", (False, False): "neither"}[
        compiled.p <= LEVEL, eager.p <= LEVEL
    ]


def _counted(cell: Cell, one: Sequence[Row], two: Sequence[Row]) -> list[Row]:
    before, after = (side[-1][COUNTED.column] for side in (one, two))
    if before is None or after is None:
        return []
    verdict = None if before == after else COUNTED.more if after > before else COUNTED.less
    values = {"value_before": float(before), "value_after": float(after), "change": float(after - before)}
    return [_row(cell, COUNTED.column, verdict=verdict, **values)]


def _shown(cell: Cell, one: Row, two: Row) -> list[Row]:
    """Figures that both builds have measured once."""
    return [
        _row(cell, name, value_before=one[name], value_after=two[name], change=two[name] / one[name] - 1)
        for name in SHOWN
        if one.get(name) and two.get(name) is not None
    ]


def _statuses(cell: Cell, one: Row, two: Row) -> list[Row]:
    """A row for each check whose status differs."""
    rows = []
    for check, column in SHOWN_STATUS.items():
        before, after = one.get(column), two.get(column)
        if before and after and before != after:
            failed = (before in FAILED, after in FAILED)
            verdict = {(False, True): "new_failure", (True, False): "fixed"}.get(failed, "status")
            rows.append(_row(cell, check, verdict=verdict, message=f"{before} became {after}"))
    return rows


def _row(cell: Cell, figure: str, **known: Any) -> Row:
    return {"mode": cell[0], "model": cell[1], "figure": figure, **known}


def left_out(compared: Sequence[Row]) -> Counter[str]:
    """How many cells were left out for which reason."""
    return Counter(row["message"] for row in compared if row["verdict"] == "left_out")
