"""Prints the tables of a run in the terminal.

python -m timmgate.report.terminal results/cpu
"""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from timmgate.core.schemas import PASSED, STATUSES
from timmgate.tables import gate
from timmgate.tables.failures import VERDICTS


def show(results: Path, console: Console) -> None:
    """Print a table per check with a row per mode, and a line per failure, from the files in the folder `results`."""
    summary = pd.read_csv(results / "summary.tsv", sep="\t", na_values=[""], keep_default_na=False, dtype={"mode": str})
    for check in summary["check"].unique():
        of_check = summary[summary["check"] == check]
        console.print(summary_table(check, of_check))
        if check == "performance":
            console.print(costs_table(of_check))
    for failure in pq.read_table(results / "failures.parquet").to_pylist():
        console.print(failure_line(failure), soft_wrap=True)


def failure_line(failure: dict[str, Any]) -> Text:
    """Status, cell, check, stage, cause, the first line of the message, and the log if there is one."""
    message = (failure["message"] or "").splitlines()[:1]
    reasons = filter(None, (failure["stage"] and f"in {failure['stage']}", failure["cause"], *message))
    log = [f"log: {failure['log']}"] if failure["log"] else []
    words = [f"{failure['mode']}/{failure['model']} {failure['check']}", ": ".join(reasons), *log]
    return Text.assemble((failure["status"], "bold red"), " ", "  ".join(filter(None, words)))


def summary_table(check: str, summary: pd.DataFrame) -> Table:
    """A rich table: cells, passed, speedups of a performance check, and each status that occurs and is not a pass."""
    occurring = [status for status in STATUSES if status not in PASSED and summary[status].sum()]
    figures = SPEEDUPS if check == "performance" else {}
    table = Table(title=f"{check} on {', '.join(summary['device'].unique())}")
    table.add_column("mode", overflow="fold")
    for column in ("cells", "passed", *figures, *occurring):
        table.add_column(column, justify="right", overflow="fold")
    for row in summary.to_dict("records"):
        counts = [str(row[status]) if row[status] else "" for status in occurring]
        values = [figure(row) for figure in figures.values()]
        table.add_row(row["mode"], str(row["cells"]), str(row["passed"]), *values, *counts)
    return table


def costs_table(summary: pd.DataFrame) -> Table:
    """A rich table of what compiling costs and what it does to memory."""
    table = Table(title="compiling")
    table.add_column("mode", overflow="fold")
    for column in COSTS:
        table.add_column(column, justify="right", overflow="fold")
    for row in summary.to_dict("records"):
        table.add_row(row["mode"], *(figure(row) for figure in COSTS.values()))
    return table


def _speedup(row: dict[str, Any], name: str) -> str:
    """A geometric mean over models and its interval."""
    if pd.isna(row[name]):
        return ""
    return f"{row[name]:.2f}\n[{row[f'{name}_ci_low']:.2f}, {row[f'{name}_ci_high']:.2f}]"


def _number(row: dict[str, Any], name: str, form: str) -> str:
    return "" if pd.isna(row[name]) else format(row[name], form)


SPEEDUPS: dict[str, Callable[[dict[str, Any]], str]] = {
    "speedup": lambda row: _speedup(row, "speedup"),
    "clipped at 1": lambda row: _speedup(row, "speedup_clipped"),
    "faster\nsame\nslower\n?": lambda row: "/".join(_number(row, name, ".0f") for name in VERDICTS),
}
"""Titles and texts: geometric means over models with their 95 % intervals, and how many models have which verdict."""

COSTS: dict[str, Callable[[dict[str, Any]], str]] = {
    "cold, s": lambda row: _number(row, "compile_cold_s", ".1f"),
    "warm, s": lambda row: _number(row, "compile_warm_s", ".1f"),
    "memory": lambda row: _number(row, "compression_ratio", ".2f"),
    "graph breaks": lambda row: _number(row, "graph_breaks", ".0f"),
}
"""Titles and texts: medians of seconds, how many times more memory eager takes, and the sum of graph breaks."""


def show_gate(judged: list[dict[str, Any]], console: Console) -> None:
    """Print a row per mode, a line for every cell that is not as expected, and a last line with the outcome."""
    console.print(gate_table(judged))
    for cell in judged:
        if cell["class"] not in gate.AS_EXPECTED:
            console.print(gate_line(cell), soft_wrap=True)
    console.print(gate.sentence(judged), soft_wrap=True)


def gate_table(judged: list[dict[str, Any]]) -> Table:
    """A rich table: cells of each mode, and one column for each class that occurs."""
    counts = Counter((cell["mode"], cell["class"]) for cell in judged)
    occurring = [name for name in gate.CLASSES if name in {name for _, name in counts}]
    table = Table(title="expected results")
    table.add_column("mode", overflow="fold")
    for column in ("cells", *occurring):
        table.add_column(column, justify="right", overflow="fold")
    for mode in dict.fromkeys(cell["mode"] for cell in judged):
        of_mode = [counts[mode, name] for name in occurring]
        table.add_row(mode, str(sum(of_mode)), *(str(count or "") for count in of_mode))
    return table


def gate_line(cell: dict[str, Any]) -> Text:
    """Class, cell, both statuses, the first line of the reason, and the log if there is one."""
    statuses = f"expected {cell['expected'] or 'pass'}, got {cell['accuracy'] or 'no result'}"
    reason = " ".join(filter(None, (cell["cause"], cell["message"]))).splitlines()[:1]
    remarks = [cell["flaky"] and f"flaky: {cell['flaky']}", *reason, cell["log"] and f"log: {cell['log']}"]
    colour = "bold red" if cell["class"] in gate.FAILING else "bold yellow"
    words = "; ".join(filter(None, [statuses, *remarks]))
    return Text.assemble((cell["class"], colour), f" {cell['mode']}/{cell['model']} {words}")


if __name__ == "__main__":
    show(Path(sys.argv[1]), Console())
