"""Prints what the gate found in the terminal."""

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from timmgate.tables import gate


def show(judged: list[dict[str, Any]], console: Console) -> None:
    """Print a row per mode and check, a line for whatever is not as expected, and a last line with the outcome."""
    console.print(table(judged))
    for row in judged:
        if row["class"] not in gate.AS_EXPECTED:
            console.print(line(row), soft_wrap=True)
    console.print(gate.sentence(judged), soft_wrap=True)


def table(judged: list[dict[str, Any]]) -> Table:
    """A rich table: cells of each mode and check, and one column for each class that occurs."""
    counts = Counter((row["mode"], row["check_name"], row["class"]) for row in judged)
    occurring = [name for name in (*gate.CLASSES, *gate.MOVES) if name in {name for *_, name in counts}]
    shown = Table(title="expected results")
    for column in ("mode", "check"):
        shown.add_column(column, overflow="fold")
    for column in ("cells", *occurring):
        shown.add_column(column, justify="right", overflow="fold")
    for mode, check in dict.fromkeys((row["mode"], row["check_name"]) for row in judged if row["mode"]):
        of_mode = [counts[mode, check, name] for name in occurring]
        cells = sum(counts[mode, check, name] for name in gate.CLASSES)
        shown.add_row(mode, check, str(cells), *(str(count or "") for count in of_mode))
    return shown


def line(row: dict[str, Any]) -> Text:
    """Class, cell, check, both statuses, the first line of the reason, and the log if there is one."""
    statuses = None if row["status"] is None and row["class"] != "missing" else _statuses(row)
    reason = " ".join(filter(None, (row["cause"], row["message"]))).splitlines()[:1]
    remarks = [row["flaky"] and f"flaky: {row['flaky']}", *reason, row["log"] and f"log: {row['log']}"]
    colour = "bold red" if row["class"] in gate.FAILING else "bold yellow"
    words = "; ".join(filter(None, [statuses, *remarks]))
    return Text.assemble((row["class"], colour), f" {gate.place(row)} {words}")


def _statuses(row: dict[str, Any]) -> str:
    return f"expected {row['expected'] or 'pass'}, got {row['status'] or 'no result'}"
