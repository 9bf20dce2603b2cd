"""How the results differ from what is expected, and which differences fail the gate. Arrow in, Arrow out."""

from collections import Counter
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table
from rich.text import Text

from timmgate.expected import Expectation, Expectations
from timmgate.rows import PASSED

PASSING = (*PASSED, "eager_variation")
"""Statuses that count as passed, as on PyTorch's dashboard; the last one is a word of older files."""

CLASSES = {
    "pass": "passes, as expected",
    "expected_failure": "fails with the expected status",
    "new_pass": "passes, and was expected to fail",
    "flaky": "is not as expected, and the expectations say that it may vary",
    "new_failure": "fails, and was expected to pass",
    "changed_failure": "fails with another status than expected",
    "missing": "there is no result, and one was expected or requested",
}
"""Every cell is in one of these. A cell without an expectation is expected to pass."""

AS_EXPECTED = ("pass", "expected_failure")

FAILING = ("new_failure", "changed_failure", "missing")
"""The classes that fail the gate. An improvement does not: it shows in the table until the expectations are updated."""

COLUMNS = ("mode", "model", "class", "expected", "accuracy", "flaky", "cause", "message", "log")


def classify(expectation: Expectation | None, status: str | None) -> str:
    """The class of one cell; `status` is None where there is no row."""
    expected, flaky = expectation or Expectation("pass")
    if status in (None, "not_run"):
        return "missing"
    if status in PASSING and expected in PASSING:
        return "pass"
    if status == expected:
        return "expected_failure"
    if flaky:
        return "flaky"
    if status in PASSING:
        return "new_pass"
    return "new_failure" if expected in PASSING else "changed_failure"


def judge(cells: pa.Table, expectations: Expectations) -> pa.Table:
    """One row per cell that is in the results or expected, the results first, with its class and what is known of both."""
    needed = cells.select(["mode", "model", "accuracy", "accuracy_cause", "accuracy_message", "log"])
    results = {(row["mode"], row["model"]): row for row in needed.to_pylist()}
    expected = {(mode, model): each for mode, models in expectations.items() for model, each in models.items()}
    judged = []
    for mode, model in [*results, *(cell for cell in expected if cell not in results)]:
        result, expectation = results.get((mode, model), {}), expected.get((mode, model))
        judged.append(
            {
                "mode": mode,
                "model": model,
                "class": classify(expectation, result.get("accuracy")),
                "expected": expectation and expectation.status,
                "accuracy": result.get("accuracy"),
                "flaky": expectation and expectation.flaky,
                "cause": result.get("accuracy_cause"),
                "message": result.get("accuracy_message"),
                "log": result.get("log"),
            }
        )
    return pa.Table.from_pylist(judged, schema=pa.schema([(name, pa.string()) for name in COLUMNS]))


def updated(cells: pa.Table, expectations: Expectations, asked_for: Expectations) -> dict[str, pa.Table]:
    """By mode, the expectations renewed, in the form that they are read in: every result is what is expected from now on.

    What this run was not asked for stays, and so do the reasons of flaky models. `asked_for` is the part of `expectations`
    that it was asked for: what has no result there goes, unless it only was not run.
    """
    renewed: dict[str, dict[str, Expectation]] = {}
    for row in cells.select(["mode", "model", "accuracy"]).to_pylist():
        mode, model, status = row.values()
        old = expectations.get(mode, {})
        if mode not in renewed:
            renewed[mode] = {name: each for name, each in old.items() if name not in asked_for[mode]}
        flaky = old[model].flaky if model in old else None
        if status != "not_run":
            renewed[mode][model] = Expectation(status, flaky)
        elif model in old:
            renewed[mode][model] = old[model]
    return {mode: _as_file(models) for mode, models in renewed.items()}


def _as_file(models: dict[str, Expectation]) -> pa.Table:
    names = sorted(models)
    columns = {"name": names, "accuracy": [models[name].status for name in names]}
    reasons = [models[name].flaky for name in names]
    return pa.table({**columns, "flaky": reasons} if any(reasons) else columns)


def show(judged: list[dict[str, Any]], console: Console) -> None:
    """Print a row per mode, a line for every cell that is not as expected, and a last line with the outcome."""
    console.print(counts_table(judged))
    for cell in judged:
        if cell["class"] not in AS_EXPECTED:
            console.print(line(cell), soft_wrap=True)
    console.print(outcome(judged), soft_wrap=True)


def counts_table(judged: list[dict[str, Any]]) -> Table:
    """A rich table: cells of each mode, and one column for each class that occurs."""
    counts = Counter((cell["mode"], cell["class"]) for cell in judged)
    occurring = [name for name in CLASSES if name in {name for _, name in counts}]
    table = Table(title="expected results")
    table.add_column("mode", overflow="fold")
    for column in ("cells", *occurring):
        table.add_column(column, justify="right", overflow="fold")
    for mode in dict.fromkeys(cell["mode"] for cell in judged):
        of_mode = [counts[mode, name] for name in occurring]
        table.add_row(mode, str(sum(of_mode)), *(str(count or "") for count in of_mode))
    return table


def line(cell: dict[str, Any]) -> Text:
    """Class, cell, both statuses, the first line of the reason, and the log if there is one."""
    statuses = f"expected {cell['expected'] or 'pass'}, got {cell['accuracy'] or 'no result'}"
    reason = " ".join(filter(None, (cell["cause"], cell["message"]))).splitlines()[:1]
    remarks = [cell["flaky"] and f"flaky: {cell['flaky']}", *reason, cell["log"] and f"log: {cell['log']}"]
    colour = "bold red" if cell["class"] in FAILING else "bold yellow"
    words = "; ".join(filter(None, [statuses, *remarks]))
    return Text.assemble((cell["class"], colour), f" {cell['mode']}/{cell['model']} {words}")


def outcome(judged: list[dict[str, Any]]) -> str:
    """One sentence: whether the gate is passed, and what is not as expected."""
    counts = Counter(cell["class"] for cell in judged)
    unexpected = [f"{counts[name]} {name}" for name in CLASSES if counts[name] and name not in AS_EXPECTED]
    verdict = "The check failed" if failed(judged) else "The check passed"
    return f"{verdict}: {', '.join(unexpected) or 'everything is as expected'}."


def failed(judged: list[dict[str, Any]]) -> bool:
    """Whether any cell is in a class that fails the gate."""
    return any(cell["class"] in FAILING for cell in judged)
