"""How the results differ from what is expected, and which differences fail the gate. Arrow in, Arrow out.

Of what the last command requested, each of these checks of every cell.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from timmgate.core.described import columns
from timmgate.core.names import cell_name
from timmgate.core.schemas import PASSED, REASON, SHOWN_STATUS
from timmgate.core.thresholds import Thresholds
from timmgate.tables import parquet
from timmgate.tables.by_cell import requested
from timmgate.tables.gate import deviations, measured_baseline
from timmgate.tables.gate.baseline import ANY, PASSING, Expectation, Expectations, Measured
from timmgate.tables.gate.confirmation import Suspect
from timmgate.tables.gate.measured_baseline import Baseline
from timmgate.tables.gate.outcome import ExitCode
from timmgate.tables.gate.quarantine import Entry
from timmgate.tables.reasons import by_eager

Row = dict[str, Any]

CLASSES = {
    "pass": "passes, as expected: `pass`, `pass_due_to_skip`, `not_applicable` and `eager_variation` of older files are one",
    "expected_failure": "fails with the expected status",
    "new_pass": "passes, and was expected to fail. The check of benchmarks/dynamo fails here",
    "flaky": "is not as expected, and the expectations or the quarantine say that it may vary",
    "one_off": "is not as expected, but was in every fresh process that `confirm` asks for",
    "new_failure": "fails, and was expected to pass",
    "changed_failure": "fails with another status than expected",
    "missing": "has no result, or one of other software or options than today's, and one was expected or requested",
}
"""Every check of a cell is in one of these. A cell without an expectation is expected to pass."""

MOVES = {
    "slower": "`relative_time`: compiled takes longer against eager of the same process, by `max_slowdown`",
    "faster": "`relative_time`: compiled takes less time against eager, by as much",
    "slower_compile": "`compile_cold_cpu_s`: compiling takes more processor time, by `max_compile_growth`",
    "faster_compile": "`compile_cold_cpu_s`: compiling takes less, by as much",
    "more_memory": "`compiled_allocated_bytes`: an iteration takes more memory, by `max_memory_growth`",
    "less_memory": "`compiled_allocated_bytes`: an iteration takes less, by as much",
    "more_graph_breaks": "`graph_breaks`: more of them",
    "fewer_graph_breaks": "`graph_breaks`: fewer of them",
    "eager_slower": (
        "`eager_ms`: the median over all cells, by `max_slowdown`, in one row without a model: the ground below the "
        "compiler; or `relative_time` of a cell where eager alone moved"
    ),
    "eager_faster": "the same, of less time",
    "noisy": "`relative_time`: so many cells moved that 10 % and more is taken for noise, in one row without a model",
    "not_confirmed": "any of these was beyond its limit, but is not in the fresh processes that `confirm` asks for",
    "not_comparable": (
        "no such cell in the baseline, or of another device, weights, options or protocol; in performance also of another "
        "batch size, or on a CPU number of threads, `allocator` or `relocate`, or not timed there. With a figure as "
        "`cause`, that one alone, which is not known any more"
    ),
}
"""Against measured tables, a row more for each of these."""

AS_EXPECTED = ("pass", "expected_failure")

UNJUDGED = (None, "not_run", "pass_due_to_skip")
"""Statuses of a check that there is nothing to compare of."""

FAILING = ("new_failure", "changed_failure", "missing", "slower", "slower_compile", "more_memory", "more_graph_breaks")
"""The classes that fail the gate. An improvement does not: it shows in the table until the expectations are updated."""

SCHEMA = parquet.schema(
    columns(
        "gate",
        [
            ("build", "string", "", "label of what compiled"),
            ("mode", "string", "", "name of the mode"),
            ("model", "string", "", "timm model name; null for what concerns all cells"),
            ("check_name", "string", "", "accuracy or performance"),
            ("class", "string", "", "how it differs from what is expected; config/expected/README.md has the words"),
            ("expected", "string", "", "status that was expected; null of a figure that moved"),
            ("status", "string", "", "status that was measured; null of a figure that moved"),
            ("flaky", "string", "", "why a difference does not fail the gate, or since when it does again"),
            ("cause", "string", "", "of a failure as in `cells`; else the column of the figure that moved"),
            ("reason", "string", "", "in one sentence, with the figures"),
            ("reason_class", "string", "", "of a failure, what kind of reason that is, as in `cells`"),
            ("log", "string", "", "path of the log, relative to the working directory"),
        ],
    )
)


def classify(expectation: Expectation | None, check: str, status: str | None) -> str:
    """The class of one check of a cell; `status` is None where there is no row."""
    expectation = expectation or Expectation("pass")
    expected = expectation.of(check)
    if status in (None, "not_run"):
        return "missing"
    if status in PASSING and expected in (*PASSING, ANY):
        return "pass"
    if expected in (status, ANY):
        return "expected_failure"
    if expectation.flaky:
        return "flaky"
    if status in PASSING:
        return "new_pass"
    return "new_failure" if expected in PASSING else "changed_failure"


def confirmed(name: str, recurrence: str | None) -> str:
    """The class of a check that was measured again in fresh processes, where they may all have passed."""
    return "one_off" if name in ("new_failure", "changed_failure") and recurrence == "one_off" else name


def judge(cells: pa.Table, expectations: Expectations, checks: Sequence[str]) -> pa.Table:
    """One row per requested check of a cell that is in the results or expected, with its class and what is known of both.

    The same is expected of every build. The results come first, and the checks of a cell stand together.
    """
    course = [f"{check}_{name}" for check in checks for name in ("cause", "recurrence", *REASON)]
    statuses = [SHOWN_STATUS[check] for check in checks]
    rows = requested(cells).select(["build", "mode", "model", *statuses, *course, "log"]).to_pylist()
    results = {(row["build"], row["mode"], row["model"]): row for row in rows}
    expected = {(mode, model): each for mode, models in expectations.items() for model, each in models.items()}
    builds = dict.fromkeys(row["build"] for row in rows) or (None,)
    judged = []
    for build, mode, model in dict.fromkeys([*results, *((build, *cell) for build in builds for cell in expected)]):
        result, expectation = results.get((build, mode, model), {}), expected.get((mode, model))
        for check in checks:
            judged.append(
                {
                    "build": build,
                    "mode": mode,
                    "model": model,
                    "check_name": check,
                    "class": confirmed(
                        classify(expectation, check, result.get(SHOWN_STATUS[check])), result.get(f"{check}_recurrence")
                    ),
                    "expected": expectation and expectation.of(check),
                    "status": result.get(SHOWN_STATUS[check]),
                    "flaky": expectation and expectation.flaky,
                    **{name: result.get(f"{check}_{name}") for name in ("cause", *REASON)},
                    "log": result.get("log"),
                }
            )
    return table(judged)


def against(
    cells: pa.Table,
    checks: Sequence[str],
    expectations: Expectations,
    measured: Measured | None,
    thresholds: Mapping[str, Any],
    models: Mapping[str, Collection[str]],
    timed_again: Sequence[Row] = (),
    times: int = 0,
    evidence: Path | None = None,
) -> list[Row]:
    """`judge`, and where the baseline is `measured` tables, their statuses instead of expectations, and their figures too.

    Each build is compared by itself. `models` are by mode those that this run was asked for. `timed_again` are rows of
    `pairs` of cells whose figures had moved, from up to `times` fresh processes of each. `evidence` is the table of the
    compared tensors, out of which, with that of the baseline, follows what is due to eager alone.
    """
    if measured is None:
        expected: list[Row] = judge(cells, expectations, checks).to_pylist()
        return expected
    judged: list[Row] = []
    moved: list[Row] = []
    for build in requested(cells)["build"].unique():
        of_build = cells.filter(pc.equal(cells["build"], build))
        before = measured_baseline.load(measured, of_build)
        rows: list[Row] = judge(of_build, before.expectations(models), checks).to_pylist()
        moved += _not_comparable(rows, before)
        judged += list(with_eager_of(measured, rows, of_build, evidence)) if evidence else rows
        if "performance" in checks:
            fresh: dict[tuple[str, str], list[Row]] = {}
            for row in timed_again:
                if row["build"] == build.as_py():
                    fresh.setdefault((row["mode"], row["model"]), []).append(row)
            rows = requested(of_build).to_pylist()
            moved += deviations.deviations(rows, before, Thresholds(**thresholds), fresh, times)
    return [*_with_failures(judged, moved), *(row for row in moved if row["class"] != "new_failure")]


def _not_comparable(judged: Iterable[Row], before: Baseline) -> Iterator[Row]:
    """A row for each check that has a result, but none in the baseline to compare it with.

    Not of a timing, whose figures are compared with that of the baseline.
    """
    for row in judged:
        reason = before.others.get((row["mode"], row["model"], row["check_name"]))
        if reason and row["status"] not in UNJUDGED and (row["check_name"] == "accuracy" or row["status"] not in PASSED):
            about = {name: row[name] for name in ("build", "mode", "model", "check_name", "log")}
            yield {**about, "class": "not_comparable", "reason": reason}


def _with_failures(judged: Iterable[Row], moved: Iterable[Row]) -> Iterator[Row]:
    """The rows, where a performance check that failed in fresh processes is one that failed."""
    failed_again = {_cell(row): row for row in moved if row["class"] == "new_failure"}
    for row in judged:
        yield row | failed_again.get(_cell(row), {}) if row["check_name"] == "performance" else row


def suspects(cells: pa.Table, measured: Measured, thresholds: Mapping[str, Any], times: int) -> dict[str, Suspect]:
    """Of the requested cells those, as build/mode/model, that have figures for up to `times` fresh processes to confirm."""
    found: dict[str, Suspect] = {}
    for build in requested(cells)["build"].unique().to_pylist():
        of_build = cells.filter(pc.equal(cells["build"], build))
        before = measured_baseline.load(measured, of_build)
        some = deviations.suspects(requested(of_build).to_pylist(), before, Thresholds(**thresholds), times)
        found |= {f"{build}/{mode}/{model}": suspect for (mode, model), suspect in some.items()}
    return found


def with_eager_of(measured: Measured, judged: Iterable[Row], cells: pa.Table, evidence: Path) -> Iterator[Row]:
    """The rows of one build, where failures that are due to a better eager than the baseline's say so in their reason.

    That is a failure by the dynamo rule whose error the baseline's eager, farther from float64, would have allowed. A
    history has no evidence.
    """
    before = Path(measured.path).with_name(evidence.name)
    failed = {
        (row["build"], row["mode"], row["model"]): row["worst_leaf"]
        for row in requested(cells).to_pylist()
        if row["accuracy_by_rule"] == "fail_accuracy" and row["passed_by"] == "dynamo"
    }
    has_both = measured.kind != "history" and evidence.is_file() and before.is_file()
    today, then = (_leaves(evidence, failed, None), _leaves(before, failed, measured.name)) if has_both else ({}, {})
    for row in judged:
        cell = _cell(row)
        is_new = row["class"] == "new_failure" and row["check_name"] == "accuracy" and cell in today and cell in then
        yield row | (by_eager(row, today[cell], then[cell]) if is_new else {})


def _leaves(path: Path, wanted: Mapping[tuple[str | None, str, str], str], build: str | None) -> dict[Any, Row]:
    """By cell, the row of its wanted tensor in a table of evidence, if it can be read; of another build, if one is named."""
    names = list({*wanted.values()})
    try:
        rows = pq.read_table(path, filters=pc.field("leaf").isin(names)).to_pylist() if names else []
    except (pa.ArrowException, OSError):  # a copy that broke off: it would have been a remark
        return {}
    by_cell = {(row["build"], row["mode"], row["model"], row["leaf"]): row for row in rows}
    found = {cell: by_cell.get((build or cell[0], *cell[1:], leaf)) for cell, leaf in wanted.items()}
    return {cell: row for cell, row in found.items() if row}


def outcome(judged: Sequence[Row]) -> ExitCode:
    """That nothing could be compared, of which most likely the request is the reason; or a regression; or neither."""
    is_whole = [row for row in judged if row["class"] == "not_comparable" and not row.get("cause")]
    incomparable = {(*_cell(row), row["check_name"]) for row in is_whole}
    known = {(*_cell(row), row["check_name"]) for row in judged if row.get("status") not in UNJUDGED}
    if known and known <= incomparable:
        return ExitCode.WRONG_REQUEST
    return ExitCode.REGRESSION if failed(judged) else ExitCode.AS_EXPECTED


def _cell(row: Row) -> tuple[str | None, str, str]:
    return row["build"], row["mode"], row["model"]


def table(judged: Iterable[Row]) -> pa.Table:
    """Rows in the schema `SCHEMA`."""
    return pa.Table.from_pylist(list(judged), schema=SCHEMA)


def quarantined(judged: Iterable[Row], entries: Sequence[Entry], today: date) -> Iterator[Row]:
    """The rows, where those that would fail the gate are flaky for as long as an entry of the quarantine says so."""
    for row in judged:
        covering = [
            entry
            for entry in entries
            if row["model"] and entry.covers(row["mode"], row["model"], row["check_name"], row["build"])
        ]
        if not covering or row["class"] not in FAILING or row["class"] == "missing":
            yield row
            continue
        last = max(covering, key=lambda entry: entry.until)
        if last.until >= today.isoformat():
            yield {**row, "class": "flaky", "flaky": f"{row['class']}, in quarantine for {last.issue} until {last.until}"}
        else:
            yield {**row, "flaky": f"its quarantine for {last.issue} ended on {last.until}"}


def updated(
    cells: pa.Table, expectations: Expectations, asked_for: Expectations, checks: Sequence[str]
) -> dict[str, pa.Table]:
    """By mode, the expectations renewed, in the form that they are read in: every result is what is expected from now on.

    What this run was not asked for stays, and so do the reasons of flaky models. `asked_for` is the part of `expectations`
    that it was asked for: what has no result there goes, unless it only was not run.
    """
    renewed: dict[str, dict[str, Expectation]] = {}
    statuses = [SHOWN_STATUS[check] for check in checks]
    for row in requested(cells).select(["mode", "model", *statuses]).rename_columns(["mode", "model", *checks]).to_pylist():
        mode, model = row["mode"], row["model"]
        old = expectations.get(mode, {})
        if mode not in renewed:
            renewed[mode] = {name: each for name, each in old.items() if name not in asked_for[mode]}
        if found := _found(row, old.get(model)):
            renewed[mode][model] = found
    return {mode: _as_file(models) for mode, models in renewed.items()}


def _found(row: dict[str, Any], old: Expectation | None) -> Expectation | None:
    """What is expected from now on of a model; what was not run stays as it was, and None is nothing."""
    status = {check: None if row.get(check) == "not_run" else row.get(check) for check in ("accuracy", "performance")}
    accuracy = status["accuracy"] or (old and old.accuracy)
    if accuracy is None:
        return None
    performance = old and old.performance if status["performance"] is None else status["performance"]
    new = Expectation(accuracy, old and old.flaky)
    is_expected = performance is None or classify(new, "performance", performance) in AS_EXPECTED
    return new if is_expected else new._replace(performance=performance)


def _as_file(models: dict[str, Expectation]) -> pa.Table:
    names = sorted(models)
    columns = {"name": names, "accuracy": [models[name].accuracy for name in names]}
    for column in ("performance", "flaky"):
        values = [getattr(models[name], column) for name in names]
        if any(values):
            columns[column] = pa.array(values, pa.string())
    return pa.table(columns)


def sentence(judged: list[dict[str, Any]]) -> str:
    """One sentence: whether the gate is passed, and what is not as expected."""
    counts = Counter(row["class"] for row in judged)
    unexpected = [f"{counts[name]} {name}" for name in (*CLASSES, *MOVES) if counts[name] and name not in AS_EXPECTED]
    if outcome(judged) == ExitCode.WRONG_REQUEST:
        other = "of another device, another request, an older workflow, or a history that begins now"
        return f"Nothing was compared: no cell is comparable with the baseline. Is it {other}?"
    verdict = "The gate failed" if failed(judged) else "The gate passed"
    return f"{verdict}: {', '.join(unexpected) or 'everything is as expected'}."


def failed(judged: Iterable[Row]) -> bool:
    """Whether anything is in a class that fails the gate."""
    return any(row["class"] in FAILING for row in judged)


def place(row: Row) -> str:
    """Cell and check of a row."""
    return f"{cell_name(row) if row['model'] else 'all cells'} {row['check_name']}"


def reasons(judged: list[dict[str, Any]]) -> list[str]:
    """The outcome in one sentence, then a line for whatever fails the gate."""
    failing = (row for row in judged if row["class"] in FAILING)
    lines = (f"{row['class']} {place(row)}" for row in failing)
    return [sentence(judged), *lines]
