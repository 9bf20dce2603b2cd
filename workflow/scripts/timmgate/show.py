"""Prints the tables of a run in the terminal.

python -m timmgate.show results/cpu
"""

import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from timmgate.rows import PASSED, STATUSES


def show(results: Path, console: Console) -> None:
    """Print a row per mode and a line per failure, from summary.tsv and failures.parquet in the folder `results`."""
    summary = pd.read_csv(results / "summary.tsv", sep="\t", keep_default_na=False, dtype={"mode": str})
    console.print(summary_table(summary))
    for failure in pq.read_table(results / "failures.parquet").to_pylist():
        console.print(failure_line(failure), soft_wrap=True)


def failure_line(failure: dict[str, Any]) -> Text:
    """Status, cell, stage, cause, the first line of the message, and the log if there is one."""
    message = (failure["message"] or "").splitlines()[:1]
    reasons = filter(None, (failure["stage"] and f"in {failure['stage']}", failure["cause"], *message))
    log = [f"log: {failure['log']}"] if failure["log"] else []
    words = [f"{failure['mode']}/{failure['model']}", ": ".join(reasons), *log]
    return Text.assemble((failure["status"], "bold red"), " ", "  ".join(filter(None, words)))


def summary_table(summary: pd.DataFrame) -> Table:
    """A rich table: cells, passed, and one column for each status that occurs and is not a pass."""
    occurring = [status for status in STATUSES if status not in PASSED and summary[status].sum()]
    table = Table(title=f"{', '.join(summary['check'].unique())} on {', '.join(summary['device'].unique())}")
    table.add_column("mode", overflow="fold")
    for column in ("cells", "passed", *occurring):
        table.add_column(column, justify="right", overflow="fold")
    for row in summary.to_dict("records"):
        counts = [str(row[status]) if row[status] else "" for status in occurring]
        table.add_row(row["mode"], str(row["cells"]), str(row["passed"]), *counts)
    return table


if __name__ == "__main__":
    show(Path(sys.argv[1]), Console())
