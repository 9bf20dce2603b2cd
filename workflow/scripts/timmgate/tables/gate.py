"""How the results differ from what is expected, and which differences fail the gate. Arrow in, Arrow out."""

from collections import Counter
from typing import Any

import pyarrow as pa

from timmgate.core.schemas import PASSED
from timmgate.tables.baseline import Expectation, Expectations

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


def sentence(judged: list[dict[str, Any]]) -> str:
    """One sentence: whether the gate is passed, and what is not as expected."""
    counts = Counter(cell["class"] for cell in judged)
    unexpected = [f"{counts[name]} {name}" for name in CLASSES if counts[name] and name not in AS_EXPECTED]
    verdict = "The gate failed" if failed(judged) else "The gate passed"
    return f"{verdict}: {', '.join(unexpected) or 'everything is as expected'}."


def failed(judged: list[dict[str, Any]]) -> bool:
    """Whether any cell is in a class that fails the gate."""
    return any(cell["class"] in FAILING for cell in judged)


def reasons(judged: list[dict[str, Any]]) -> list[str]:
    """The outcome in one sentence, then a line per cell that fails the gate."""
    lines = (f"{cell['class']} {cell['mode']}/{cell['model']}" for cell in judged if cell["class"] in FAILING)
    return [sentence(judged), *lines]
