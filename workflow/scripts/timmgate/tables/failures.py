"""What an engineer should look at, out of the merged cells: failures, warnings and notes. Arrow in, Arrow out.

Only of what the last command requested. What concerns the run as a whole is one row without a model.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from timmgate.core.checks import GRAPH
from timmgate.core.described import columns
from timmgate.core.names import cell_name
from timmgate.core.run_options import RunOptions
from timmgate.core.schemas import REASON, REPEATED, SHOWN_STATUS
from timmgate.core.thresholds import Thresholds
from timmgate.tables import parquet, reasons
from timmgate.tables.by_cell import requested

SEVERITIES = ("failure", "warning", "note")

OF_RANDOM_WEIGHTS = {
    "random": "have random weights: a trained model may round otherwise",
    "random-timm": "have timm's initial weights, which hide most rounding errors of half precision and all of folding",
}
"""What is weak about results with weights that nothing was learned with."""


@dataclass(frozen=True)
class Kind:
    """A kind of row, what it means, and the statuses of a check that are of it."""

    name: str
    severity: str
    meaning: str
    statuses: tuple[str, ...] = ()


KINDS = {
    kind.name: kind
    for kind in (
        Kind("wrong", "failure", "the compiled model computes something else", ("fail_accuracy",)),
        Kind("crashed", "failure", "compiling the model or running it compiled failed", ("fail_to_run",)),
        Kind("timeout", "failure", "the time limit was reached", ("timeout",)),
        Kind("out_of_memory", "failure", "memory ran out", ("OOM", "eager_1st_run_OOM", "eager_2nd_run_OOM")),
        Kind(
            "eager_failed",
            "failure",
            "eager failed, differs from itself or is not finite: there is nothing to judge against",
            ("eager_1st_run_fail", "eager_2nd_run_fail", "eager_two_runs_differ", "eager_not_finite"),
        ),
        Kind("not_loaded", "failure", "the model could not be made", ("model_fail_to_load",)),
        Kind("infra_error", "failure", "something other than the model ended it", ("infra_error",)),
        Kind("not_measured", "failure", "there is no row", ("not_run",)),
        Kind("slower", "warning", "slower than eager, by `min_speedup`"),
        Kind("more_memory", "warning", "takes more memory than eager, by `min_compression_ratio`"),
        Kind("slow_compile", "warning", "compiles for longer than `max_compile_s`"),
        Kind("graph_breaks", "warning", "more graph breaks than `max_graph_breaks`"),
        Kind("recompiles", "warning", "more recompiles than `max_recompiles`"),
        Kind("drifted_machine", "warning", "the machine changed its speed during the timing, by `max_machine_drift`"),
        Kind(
            "disturbed_machine",
            "warning",
            "others used the machine during the timing, by `max_busy_cores`, or it slowed down",
        ),
        Kind("mixed_machines", "warning", "cells were measured on different devices, drivers or numbers of threads"),
        Kind("no_reference", "note", "float64 did not run: judged against eager, which is weaker evidence"),
        Kind("smaller_batch", "note", "timed with a smaller batch than requested, for lack of memory"),
        Kind("weak_evidence", "note", "random weights, comparison by cosine, or undecided null runs: a pass says less"),
        Kind("not_judged", "note", "not judged, by the suite's table"),
        Kind("several_hosts", "note", "cells were measured on several hosts"),
    )
}
"""By name, in order of gravity."""

KIND_OF_STATUS = {status: kind for kind in KINDS.values() for status in kind.statuses}

COLUMNS = columns(
    "failures",
    [
        ("severity", "string", "", "failure, warning or note"),
        ("kind", "string", "", "what is to be looked at"),
        ("device", "string", "", "torch device type"),
        ("build", "string", "", "label of what compiles; null for the whole run"),
        ("mode", "string", "", "name of the mode; null for the whole run"),
        ("model", "string", "", "timm model name; null for the whole run"),
        ("check_name", "string", "", "accuracy or performance; null for both"),
        ("status", "string", "", "status of the check"),
        ("stage", "string", "", "stage that the measurement ended in; null if it passed"),
        ("cause", "string", "", "of a failure as in `cells`; else the threshold, or the column that it is about"),
        ("reason", "string", "", "in one sentence, with the figures"),
        ("reason_class", "string", "", "of a failure, what kind of reason that is, as in `cells`"),
        *((name, kind, "", f"of a failure, {text}") for name, kind, text in REPEATED),
        ("worst_leaf", "string", "", "compared tensor with the largest margin, of a wrong model"),
        ("margin", "float64", "", "its error over the allowed error, 1 is the limit"),
        ("log", "string", "", "path of the log, relative to the working directory"),
        ("command", "string", "", "shell command that repeats the measurement by hand"),
    ],
)

SCHEMA = parquet.schema(COLUMNS)

COURSE = ("stage", "cause", *REASON, *(name for name, *_ in REPEATED))
"""Columns of a failed check that it has here as in `cells`."""

NAMED = 3
"""Cells that a note on many names."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Limit:
    """A figure of a cell, and the threshold that it is held against: below a `min_`, or above a `max_`."""

    kind: str
    column: str
    threshold: str
    figure: Callable[[Row], float | None] | None = None

    def excess(self, cell: Row, thresholds: Thresholds) -> float:
        """How far the figure is beyond the threshold, 0 if it is not or is not known."""
        figure, limit = (self.figure or (lambda row: row[self.column]))(cell), getattr(thresholds, self.threshold)
        if figure is None:
            return 0.0
        return float(max(0.0, limit - figure if self.threshold.startswith("min_") else figure - limit))


def _cores_that_were_lacking(row: Row) -> float | None:
    """Cores that others used; beside an accelerator, whose host has cores for all its cells, those that left it none."""
    busy: float | None = row["machine_busy_cores"]
    cores: int | None = row["machine_cores"]
    return busy - (cores - 1) if busy is not None and cores and row["device"] != "cpu" else busy


LIMITS = (
    # An interval that reaches over 1 does not say that it is slower.
    Limit("slower", "speedup", "min_speedup", lambda row: row["speedup"] if (row["speedup_ci_high"] or 1) < 1 else None),
    Limit("more_memory", "compression_ratio", "min_compression_ratio"),
    Limit("slow_compile", "compile_cold_s", "max_compile_s"),
    Limit("graph_breaks", "graph_breaks", "max_graph_breaks"),
    Limit("recompiles", "recompiles", "max_recompiles"),
    Limit(
        "drifted_machine",
        "machine_drift",
        "max_machine_drift",
        lambda row: row["machine_drift"] and max(row["machine_drift"], 1 / row["machine_drift"]),
    ),
    Limit("disturbed_machine", "machine_busy_cores", "max_busy_cores", _cores_that_were_lacking),
)

GRAPH_COLUMNS = {column.name for column in GRAPH}
"""Columns of `LIMITS`, among others, that every check has."""

DISTURBANCES = {
    "machine_throttles": "times a core was slowed down for its heat",
    "machine_stalls": "times the control group had used up its quota of time",
    "machine_swapped_pages": "pages were swapped",
}
"""Columns of events that should not happen while samples are taken, and words for a number of them."""

MACHINE = ("device_name", "driver")
"""Columns in which the cells of one machine agree; also the threads of each check."""


def failures(
    cells: pa.Table, checks: Sequence[str], thresholds: Thresholds, accuracy_rule: str = RunOptions.accuracy_rule
) -> pa.Table:
    """Rows in order of gravity, and those of a kind from the worst to the least, in the schema `SCHEMA`.

    `checks` are those that the last command requested, and `accuracy_rule` is its key.
    """
    rows = requested(cells).to_pylist()
    limits = {check: [limit for limit in LIMITS if _is_of(limit, check, checks)] for check in checks}
    found = [each for row in rows for check in checks for each in _of_check(row, check, limits[check], thresholds)]
    found += [(0.0, row) for row in _of_run(rows, checks, accuracy_rule)]
    gravity = {name: number for number, name in enumerate(KINDS)}
    found.sort(key=lambda pair: (gravity[pair[1]["kind"]], -pair[0]))
    return parquet.table([row for _, row in found], SCHEMA)


def _is_of(limit: Limit, check: str, checks: Sequence[str]) -> bool:
    """Whether a figure is looked at in a check: the performance check has all, and another what it counts if it is alone."""
    return check == "performance" or ("performance" not in checks and limit.column in GRAPH_COLUMNS)


def _of_check(cell: Row, check: str, limits: Sequence[Limit], thresholds: Thresholds) -> Iterator[tuple[float, Row]]:
    """What is to be looked at in one check of a cell, each with how bad it is."""
    if kind := KIND_OF_STATUS.get(cell[SHOWN_STATUS[check]]):
        yield _failure(cell, check, kind)
    if check == "accuracy" and cell["comparison"] == "cosine" and cell["reference"] == "none":
        yield 0.0, _row("no_reference", cell, check, cause="reference_error", reason=cell["reference_error"])
    for limit in limits:
        if excess := limit.excess(cell, thresholds):
            threshold = f"{limit.threshold}={getattr(thresholds, limit.threshold):g}"
            yield excess, _row(limit.kind, cell, check, cause=threshold, reason=_figure(cell, limit.column))
    if check != "performance":
        return
    for column, words in DISTURBANCES.items():
        if cell[column]:
            yield 0.0, _row("disturbed_machine", cell, check, cause=column, reason=f"{cell[column]} {words}")
    ran, wanted = cell["performance_batch_size"], cell["batch_size_requested"]
    if ran and wanted and ran < wanted and cell["performance"] == "pass":
        yield 0.0, _row("smaller_batch", cell, check, cause="batch_size", reason=f"{ran} images instead of {wanted}")


def _failure(cell: Row, check: str, kind: Kind) -> tuple[float, Row]:
    course = {name: cell[f"{check}_{name}"] for name in COURSE}
    if kind.name != "wrong":
        return 0.0, _row(kind.name, cell, check, **course)
    if check == "accuracy":
        by_null_runs = reasons.by_null_runs(cell)
        leaf = {"worst_leaf": reasons.deciding_leaf(cell), "margin": cell["strict_margin" if by_null_runs else "margin"]}
        course |= {"cause": "null runs"} if by_null_runs else {}
    else:
        leaf = {"margin": cell["timed_output_margin"]}
    margin = leaf["margin"] or 0.0
    return math.inf if math.isnan(margin) else margin, _row(kind.name, cell, check, **course, **leaf)


def _figure(cell: Row, column: str) -> str:
    """A figure in words."""
    words = f"{column} {cell[column]:.3g}"
    if column == "speedup":
        return f"{words} [{cell['speedup_ci_low']:.3g}, {cell['speedup_ci_high']:.3g}]"
    reasons = "; ".join(dict.fromkeys(cell["graph_break_reasons"] or ())) if column == "graph_breaks" else ""
    return f"{words}: {reasons}" if reasons else words


def _row(kind: str, cell: Row, check: str | None, **known: Any) -> Row:
    about = {name: cell.get(name) for name in ("device", "build", "mode", "model", "log", "command")}
    status = cell.get(SHOWN_STATUS[check]) if check else None
    return {"severity": KINDS[kind].severity, "kind": kind, **about, "check_name": check, "status": status, **known}


def _of_run(cells: list[Row], checks: Sequence[str], accuracy_rule: str) -> Iterator[Row]:
    """What is said once, however many cells it concerns."""
    measured = [cell for cell in cells if any(cell[check] not in (None, "not_run") for check in checks)]
    if not measured:
        return
    run = {"device": measured[0]["device"]}

    def of_cells(kind: str, check: str | None, cause: str, some: list[Row], words: str) -> Iterator[Row]:
        if some:
            names = f": {_named(some)}" if len(some) < len(measured) else ""
            yield _row(kind, run, check, cause=cause, reason=f"{len(some)} of {len(measured)} cells {words}{names}")

    for weights, words in OF_RANDOM_WEIGHTS.items():
        some = [cell for cell in measured if cell["weights"] == weights]
        yield from of_cells("weak_evidence", None, "weights", some, words)
    cosine = [
        cell
        for cell in measured
        if cell["comparison"] == "cosine" and cell["reference"] != "none" and cell["passed_by"] != "strict"
    ]
    if "accuracy" in checks:
        yield from of_cells("weak_evidence", "accuracy", "comparison", cosine, "are compared by cosine similarity")
    undecided = [cell for cell in measured if cell["strict"] == "undecided"]
    if "accuracy" in checks:
        words = "are undecided by null runs, and are judged by the dynamo rule"
        yield from of_cells("weak_evidence", "accuracy", "strict", undecided, words)
        without = [cell for cell in measured if cell["strict"] is None and cell["strict_error"] is not None]
        words = "have no null runs, as strict_error says, and are judged by the dynamo rule"
        yield from of_cells("weak_evidence", "accuracy", "strict_error", without, words)
        if accuracy_rule != "dynamo":
            by_dynamo = (cell for cell in measured if cell["passed_by"] == "dynamo" and cell["leaves"] is not None)
            older = [cell for cell in by_dynamo if cell["strict"] is None and cell["strict_error"] is None]
            words = "were measured by the dynamo rule, without null runs; --forcerun measure makes them"
            yield from of_cells("weak_evidence", "accuracy", "accuracy_rule", older, words)
    if "performance" in checks:
        unjudged = [cell for cell in measured if cell["timed_reference"] == "none"]
        words = "have an eager output at the timed batch size that is not finite, so that compiled's is not judged"
        yield from of_cells("weak_evidence", "performance", "timed_reference", unjudged, words)
    for check in checks:
        skipped = [cell for cell in measured if cell[SHOWN_STATUS[check]] == "pass_due_to_skip"]
        yield from of_cells("not_judged", check, "pass_due_to_skip", skipped, "are not judged")
    yield from _mixtures("mixed_machines", run, measured, [*MACHINE, *(f"{check}_threads" for check in checks)])
    yield from _mixtures("several_hosts", run, measured, ["host"])


def _mixtures(kind: str, run: Row, cells: list[Row], names: list[str]) -> Iterator[Row]:
    """One row if the cells differ in any of these columns, with the number of cells of each value."""
    mixed = []
    for name in names:
        counts = Counter(cell[name] for cell in cells if cell[name] is not None)
        if len(counts) > 1:
            mixed.append(f"{name} is {', '.join(f'{value} in {count}' for value, count in counts.most_common())}")
    if mixed:
        yield _row(kind, run, None, cause=", ".join(each.split()[0] for each in mixed), reason="; ".join(mixed))


def _named(cells: list[Row]) -> str:
    names = [cell_name(cell) for cell in cells[:NAMED]]
    return ", ".join([*names, "..."] if len(cells) > NAMED else names)
