"""Prints the tables of a run in the terminal.

python -m timmgate.show results/cpu
"""

import sys
from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from timmgate.rows import PASSED, STATUSES


def show(results: Path, console: Console) -> None:
    """Print a row per mode and a line per failure, from summary.tsv and failures.tsv in the folder `results`."""
    console.print(summary_table(pd.read_csv(results / "summary.tsv", sep="\t")))
    for failure in pd.read_csv(results / "failures.tsv", sep="\t").fillna("").itertuples():
        cell = f"{failure.mode}/{failure.model}"
        reason = " ".join(filter(None, (failure.stage and f"in {failure.stage}:", failure.cause, failure.message)))
        line = f" {cell} {reason.splitlines()[0] if reason else ''}  log: {failure.log}"
        console.print(Text.assemble((failure.status, "bold red"), line), soft_wrap=True)


def summary_table(summary: pd.DataFrame) -> Table:
    """A rich table: cells, passed, and one column for each status that occurs and is not a pass."""
    occurring = [status for status in STATUSES if status not in PASSED and summary[status].sum()]
    table = Table(title=f"{', '.join(summary['check'].unique())} on {', '.join(summary['device'].unique())}")
    table.add_column("mode")
    for column in ("cells", "passed", *occurring):
        table.add_column(column, justify="right")
    for row in summary.to_dict("records"):
        counts = [str(row[status]) if row[status] else "" for status in occurring]
        table.add_row(row["mode"], str(row["cells"]), str(row["passed"]), *counts)
    return table


if __name__ == "__main__":
    show(Path(sys.argv[1]), Console())
