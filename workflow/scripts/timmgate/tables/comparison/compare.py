"""Two measurements of the same cells: what moved, by how much, and whether that is real. Arrow in, Arrow out.

Of two builds, times and memory come from processes that took turns (`pairs`). Of what was measured apart, at another time or
on another device, there is one measurement of a cell, or the median of a history, and its noise is how much all cells
differ. Statuses and margins come from the cells themselves. Only cells that both sides could be timed in are compared, at
the same batch size; the others are counted, with the reason.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from timmgate.core.described import columns
from timmgate.core.schemas import FAILED, PASSED, SHOWN_STATUS
from timmgate.core.statistics import CONFIDENCE
from timmgate.tables import parquet
from timmgate.tables.by_cell import requested
from timmgate.tables.comparison import moderated
from timmgate.tables.comparison.moderated import Test
from timmgate.tables.comparison.pairs import BY_BLOCK
from timmgate.tables.figures import COMPILE_COLD, COMPILED, EAGER, GRAPH_BREAKS, MEMORY, RELATIVE, Figure
from timmgate.tables.gate import deviations, measured_baseline
from timmgate.tables.gate.baseline import Measured
from timmgate.tables.gate.deviations import MANY_CELLS, SMALLEST_NOISE
from timmgate.tables.gate.measured_baseline import Baseline, ModeModel

LEVEL = 0.0005
"""Nominal chance of a false alarm of one figure of one cell. With few cells it is hardly known how much their noise differs,
and the chance is up to some four times as large: of 12 cells with 5 processes 0.05 % to 0.2 %, of 250 hardly more.
"""

LEVEL_OF_ONE_SIDE = 0.0001
"""The same of the time of eager or compiled alone, which has longer tails from process to process than their ratio has. Of
3,000 cells without a change, 8 turns each, 0.13 % had a verdict on compiled at 0.0005, and 0.07 % at this.
"""

SMALLEST = 0.03
"""Relative difference that a figure should have had the power to show."""

POWER = 0.95
"""Chance of finding it, from which on it counts as such."""

Row = dict[str, Any]


TESTED = (RELATIVE, COMPILED, EAGER, replace(COMPILE_COLD, column="compile_warm_cpu_s"), MEMORY)
"""Of `pairs`, whose processes find the compile caches filled."""

ALONE = (RELATIVE, COMPILED, EAGER, COMPILE_COLD, MEMORY)
"""The same of `cells`, for what was measured apart."""

ALWAYS_JUDGED = (RELATIVE, MEMORY)
"""Figures whose noise is known without many cells: of the others machines differ by more than `USUAL_NOISE`."""

SHOWN = ("compile_cold_cpu_s", "compile_warm_cpu_s", "margin", "strict_margin")
"""Columns of `cells` that are measured once, and so shown without a verdict."""

SCHEMA = parquet.schema(
    columns(
        "comparison",
        [
            ("device", "string", "", "torch device type"),
            ("before", "string", "", "label of the first build, or what the baseline is called"),
            ("after", "string", "", "label of the second build, or what the candidate is called"),
            ("mode", "string", "", "name of the mode"),
            ("model", "string", "", "timm model name"),
            ("figure", "string", "", "what is compared, by the name of its column, or the check with a status"),
            ("verdict", "string", "", "what changed; null where nothing is known to have, left_out where nothing could be"),
            (
                "value_before",
                "float64",
                "",
                "geometric mean over the processes, in the unit of the figure; of a history the median, of relative_time at "
                "today's speed of eager",
            ),
            ("value_after", "float64", "", "the same of the second"),
            (
                "change",
                "float64",
                "",
                "relative change of the second against the first, of what was timed side by side block by block; of a "
                "count the difference; of compiled_ms that was measured apart on one device, without what eager of all "
                "cells has in common; of relative_time against a history, without what the speed of eager makes of it",
            ),
            ("change_ci_low", "float64", "", "lower end of its 95 % interval"),
            ("change_ci_high", "float64", "", "upper end of its 95 % interval"),
            ("p", "float64", "", "chance of such a change if there is none"),
            ("processes", "int64", "", "pairs of processes that took turns; null of what was measured apart"),
            ("could_show", "bool", "", "a change of 3 % would have been found in 95 % of cases"),
            (
                "moved",
                "string",
                "",
                "of relative_time: compiled, eager, both, neither, or either: one of them, but not which",
            ),
            ("message", "string", "", "in words"),
        ],
    )
)


def compare(pairs: pa.Table, cells: pa.Table, before: str, after: str) -> pa.Table:
    """A row for each cell and figure, in the schema `SCHEMA`; of what was left out one row that says why.

    `pairs` are the processes of both builds, none where nothing was timed, and `cells` the merged cells.
    """
    measured = {(row["build"], row["mode"], row["model"]): row for row in cells.to_pylist()}
    timed: list[Row] = pairs.to_pylist()
    known = timed or requested(cells).to_pylist()
    processes: dict[ModeModel, dict[str, list[Row]]] = {
        (row["mode"], row["model"]): {before: [], after: []} for row in known
    }
    for row in timed:
        processes[row["mode"], row["model"]][row["build"]].append(row)
    reasons = {
        cell: _reason(sides, {build: measured.get((build, *cell), {}) for build in sides})
        for cell, sides in processes.items()
    }
    cohort = [cell for cell, reason in reasons.items() if reason is None]
    sides = {cell: (processes[cell][before], processes[cell][after]) for cell in cohort}
    found = {figure: _tests(figure, sides) for figure in TESTED}
    rows = []
    for cell, reason in reasons.items():
        one, two = (measured.get((build, *cell), {}) for build in (before, after))
        rows += _statuses(cell, one, two)
        if reason:
            rows.append(_row(cell, "performance", verdict="left_out", message=reason))
            continue
        moved = _moved(*(found[figure].get(cell) for figure in TESTED[:3]))
        for figure in TESTED:
            if test := found[figure].get(cell):
                rows.append(_tested(cell, figure, sides[cell], test, moved if figure is TESTED[0] else None))
        rows += [*_graph_breaks(cell, *(side[-1][GRAPH_BREAKS.column] for side in sides[cell])), *_shown(cell, one, two)]
    about = {"device": known[0]["device"] if known else None, "before": before, "after": after}
    return parquet.table([{**about, **row} for row in rows], SCHEMA)


def with_baseline(cells: pa.Table, builds: Mapping[str, str], measured: Measured, called: str) -> pa.Table:
    """The requested cells of each build against what was measured before.

    `builds` says what each is called, and `called` what the baseline is, as the user does.
    """
    asked = requested(cells)
    of_builds = {name: asked.filter(pc.equal(asked["build"], build)) for build, name in builds.items()}
    found = [apart(rows, measured_baseline.load(measured, rows), called, name) for name, rows in of_builds.items()]
    return pa.concat_tables([SCHEMA.empty_table(), *found])


def apart(cells: pa.Table, baseline: Baseline, before: str, after: str) -> pa.Table:
    """The same of `cells` of one build against what was measured before, at another time or on another device.

    Between devices everything differs, so that nothing is known of noise, and no change of a time or of memory has a
    verdict.
    """
    measured: list[Row] = cells.to_pylist()
    rows: list[Row] = []
    found = deviations.compare(measured, baseline)
    same_device = "device_name" not in baseline.ignored
    for row in measured:
        cell = row["mode"], row["model"]
        earlier = baseline.rows.get(cell, [])
        one = earlier[-1] if earlier else {}
        rows += (each for each in _statuses(cell, one, row) if (*cell, each["figure"]) not in baseline.others)
        if reason := found.incomparable.get(cell) or _untimed(row):
            rows.append(_row(cell, "performance", verdict="left_out", message=reason))
            continue
        known = [figure for figure in ALONE if cell in found.moves[figure.column]]
        judged = [figure for figure in known if figure in ALWAYS_JUDGED or len(found.moves[figure.column]) >= MANY_CELLS]
        tests = {figure: found.test(figure.column, cell) for figure in judged} if same_device else {}
        eager = found.test(EAGER.column, cell, found.eager) if EAGER in tests else None
        moved = _moved(tests.get(RELATIVE), tests.get(COMPILED), eager)
        for figure in known:
            move = found.moves[figure.column][cell]
            own = found.own(figure.column, cell)
            shown = _apart(cell, figure, figure.of(row) or 0.0, move, tests.get(figure), own if same_device else move)
            rows.append({**shown, "moved": moved if figure is ALONE[0] else None})
        breaks, more = row[GRAPH_BREAKS.column], found.moves[GRAPH_BREAKS.column].get(cell)
        rows += _graph_breaks(cell, None if more is None else breaks - more, breaks)
        rows += _shown(cell, one, row, without=[figure.column for figure in ALONE])
    device = cells["device"][0].as_py() if len(cells) else None
    return parquet.table([{"device": device, "before": before, "after": after, **row} for row in rows], SCHEMA)


def _untimed(row: Row) -> str | None:
    """Why a cell has no figures to compare; None if it has."""
    if row["performance"] not in PASSED:
        return f"it was not timed: {row['performance'] or 'not requested'} {row['performance_cause'] or ''}".rstrip()
    wrong = "computes something else" if row["timed_output_ok"] is False else _wrong(row)
    return wrong and f"it {wrong}"


def _wrong(row: Row) -> str | None:
    """What the accuracy check found of a cell; None if it passed, or if there was none."""
    return f"failed the accuracy check: {row['accuracy_by_rule']}" if row.get("passed") is False else None


def _apart(cell: ModeModel, figure: Figure, value: float, move: float, test: Test | None, own: float | None) -> Row:
    """The row of a figure that moved so far, and by `own` without what the machine did."""
    known: Row = {"value_before": value / math.exp(move), "value_after": float(value)}
    if test is None:
        return _row(cell, figure.column, **known, change=None if own is None else math.expm1(own))
    return _row(cell, figure.column, **known, **_judged(figure, test))


def _judged(figure: Figure, test: Test) -> Row:
    low, high = test.interval(CONFIDENCE)
    is_nothing = test.p > _level(figure) or abs(test.mean) <= SMALLEST_NOISE
    return {
        "verdict": None if is_nothing else figure.worse if test.mean > 0 else figure.better,
        "change": math.expm1(test.mean),
        "change_ci_low": math.expm1(low),
        "change_ci_high": math.expm1(high),
        "p": test.p,
        "could_show": test.has_power(math.log1p(SMALLEST), _level(figure), POWER),
    }


def _level(figure: Figure) -> float:
    return LEVEL_OF_ONE_SIDE if figure in (COMPILED, EAGER) else LEVEL


def _reason(sides: Mapping[str, Sequence[Row]], cells: Mapping[str, Row]) -> str | None:
    """Why a cell is left out, by the processes and the row of either build; None if it is compared."""
    for build, rows in sides.items():
        for row in rows:
            cell = cells[build]
            if cell.get("performance") == "not_run" or _differ(row["identity"], cell.get("performance_identity")):
                return f"{build} was timed with other software or options than today's"
            if row["status"] != "pass":
                return f"{build} was not timed: {row['status']} {row['cause'] or ''}".rstrip()
            if row["timed_output_ok"] is False:
                return f"{build} computes something else"
    if not any(sides.values()):
        return "it was not timed: not requested"
    if min(map(len, sides.values())) < 2:
        return "there are fewer than two processes of each build"
    before, after = (sorted({row["batch_size"] for row in rows}) for rows in sides.values())
    if before != after:
        return f"batch sizes differ: {before} and {after}"
    return next((f"{build} {wrong}" for build in sides if (wrong := _wrong(cells[build]))), None)


def _differ(one: str | None, other: str | None) -> bool:
    """Whether two identities are known and not the same."""
    return None not in (one, other) and one != other


def _tests(figure: Figure, sides: Mapping[ModeModel, tuple[Sequence[Row], Sequence[Row]]]) -> dict[ModeModel, Test]:
    """By cell, the test of the logarithm of after over before, of processes of the same turn."""
    logs = {
        cell: [math.log(ratio) for one, two in zip(*both, strict=False) if (ratio := _ratio(figure, one, two))]
        for cell, both in sides.items()
    }
    found = {}
    for by_block in (True, False):  # these scatter more: they have no variance in common
        cells = [cell for cell in logs if (_by_block(figure, sides[cell][1][0]) is not None) is by_block]
        tests = moderated.tests([logs[cell] for cell in cells], is_exact=figure is MEMORY)
        found.update({cell: test for cell, test in zip(cells, tests, strict=True) if test})
    return found


def _ratio(figure: Figure, one: Row, two: Row) -> float | None:
    """The second process over the first: by the blocks that both ran in turns, if they did."""
    if ratio := _by_block(figure, two):
        return ratio
    before, after = figure.of(one), figure.of(two)
    return after / before if before and after else None


def _by_block(figure: Figure, row: Row) -> float | None:
    return row.get(BY_BLOCK.get(figure.column, ""))


def _tested(
    cell: ModeModel, figure: Figure, both: tuple[Sequence[Row], Sequence[Row]], test: Test, moved: str | None
) -> Row:
    values = [np.exp(np.mean(np.log([value for value in map(figure.of, side) if value]))) for side in both]
    known = {"value_before": float(values[0]), "value_after": float(values[1]), "processes": min(map(len, both))}
    return _row(cell, figure.column, **known, **_judged(figure, test), moved=moved)


def _moved(relative: Test | None, compiled: Test | None, eager: Test | None) -> str | None:
    """Which side moved. Each by itself is less well known than their ratio."""
    if relative is None or compiled is None or eager is None:
        return None
    sides = compiled.p <= _level(COMPILED), eager.p <= _level(EAGER)
    if not any(sides):
        return "neither" if relative.p > _level(RELATIVE) else "either"
    return {(True, True): "both", (True, False): "compiled", (False, True): "eager"}[sides]


def _graph_breaks(cell: ModeModel, before: float | None, after: float | None) -> list[Row]:
    if before is None or after is None:
        return []
    verdict = None if before == after else GRAPH_BREAKS.worse if after > before else GRAPH_BREAKS.better
    values = {"value_before": float(before), "value_after": float(after), "change": float(after - before)}
    return [_row(cell, GRAPH_BREAKS.column, verdict=verdict, **values)]


def _shown(cell: ModeModel, one: Row, two: Row, without: Collection[str] = ()) -> list[Row]:
    """Figures that both sides have measured once."""
    return [
        _row(cell, name, value_before=one[name], value_after=two[name], change=two[name] / one[name] - 1)
        for name in SHOWN
        if name not in without and one.get(name) and two.get(name) is not None
    ]


def _statuses(cell: ModeModel, one: Row, two: Row) -> list[Row]:
    """A row for each check whose status differs."""
    rows = []
    for check, column in SHOWN_STATUS.items():
        before, after = one.get(column), two.get(column)
        if before and after and before != after and "not_run" not in (before, after):
            failed = (before in FAILED, after in FAILED)
            verdict = {(False, True): "new_failure", (True, False): "fixed"}.get(failed, "status")
            rows.append(_row(cell, check, verdict=verdict, message=f"{before} became {after}"))
    return rows


def _row(cell: ModeModel, figure: str, **known: Any) -> Row:
    return {"mode": cell[0], "model": cell[1], "figure": figure, **known}


def left_out(compared: Sequence[Row]) -> Counter[str]:
    """How many cells were left out for which reason."""
    return Counter(row["message"] for row in compared if row["verdict"] == "left_out")
