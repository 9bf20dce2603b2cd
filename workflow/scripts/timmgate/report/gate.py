"""Prints what the gate found in the terminal."""

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from timmgate.core.build import names_builds
from timmgate.tables.gate import judgement

MOST = 20
"""Lines of a class that does not fail the gate."""


def show(judged: list[dict[str, Any]], console: Console) -> None:
    """Print a row per mode and check, a line for whatever fails the gate, for `MOST` of each class that is not as expected
    and does not fail it, and a last line with the outcome.
    """
    console.print(table(judged))
    shown = Counter[str]()
    for row in judged:
        if row["class"] in judgement.AS_EXPECTED:
            continue
        shown[row["class"]] += 1
        if row["class"] in judgement.FAILING or shown[row["class"]] <= MOST:
            console.print(line(row), soft_wrap=True)
    for name, number in shown.items():
        if name not in judgement.FAILING and number > MOST:
            console.print(f"{name}: {number - MOST} more, in gate.tsv", soft_wrap=True)
    console.print(judgement.sentence(judged), soft_wrap=True)


def table(judged: list[dict[str, Any]]) -> Table:
    """A rich table: cells of each check and mode, and of each build if there are several; a column for each class."""
    keys = (*(["build"] if names_builds(row["build"] for row in judged) else []), "mode", "check_name")
    counts = Counter((*(row[key] for key in keys), row["class"]) for row in judged)
    occurring = [name for name in (*judgement.CLASSES, *judgement.MOVES) if name in {name for *_, name in counts}]
    shown = Table(title="expected results")
    for key in keys:
        shown.add_column(key.removesuffix("_name"), overflow="fold")
    for column in ("cells", *occurring):
        shown.add_column(column, justify="right", overflow="fold")
    models: dict[tuple[str, ...], set[str]] = {}
    for row in judged:
        if row["mode"]:
            models.setdefault(tuple(row[key] for key in keys), set()).add(row["model"])
    for key, of_key in models.items():
        shown.add_row(*key, str(len(of_key)), *(str(counts[(*key, name)] or "") for name in occurring))
    return shown


def line(row: dict[str, Any]) -> Text:
    """Class, cell, check, both statuses, the reason, and the log if there is one."""
    statuses = None if row["status"] is None and row["class"] != "missing" else _statuses(row)
    remarks = [row["flaky"] and f"flaky: {row['flaky']}", row["reason"], row["log"] and f"log: {row['log']}"]
    colour = "bold red" if row["class"] in judgement.FAILING else "bold yellow"
    words = "; ".join(filter(None, [statuses, *remarks]))
    return Text.assemble((row["class"], colour), f" {judgement.place(row)} {words}")


def _statuses(row: dict[str, Any]) -> str:
    return f"expected {row['expected'] or 'pass'}, got {row['status'] or 'no result'}"
