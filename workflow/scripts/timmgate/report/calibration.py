"""Prints how near runs that are right come to the strict limit."""

import pyarrow as pa
from rich.console import Console
from rich.table import Table

RATIOS = ("ratio_p50", "ratio_p95", "ratio_p99", "ratio_max", "multiplier")


def show(summary: pa.Table, console: Console) -> None:
    """A row for each kind of mode and of run."""
    table = Table(title="runs that are right")
    for name in ("precision", "pass", "run"):
        table.add_column(name)
    for name in ("runs", "alarms", "undecided", "median", "95 %", "99 %", "most", "limit"):
        table.add_column(name, justify="right")
    for row in summary.to_pylist():
        counts = (str(row[name]) for name in ("runs", "false_alarms", "undecided"))
        ratios = (f"{row[name]:.3g}" for name in RATIOS)
        table.add_row(row["precision"], "training" if row["training"] else "inference", row["run"], *counts, *ratios)
    console.print(table)
