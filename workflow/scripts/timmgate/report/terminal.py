"""Prints the tables of a run in the terminal.

python -m timmgate.report.terminal results/cpu
"""

import sys
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from timmgate.core.build import names_builds
from timmgate.core.names import cell_name
from timmgate.core.schemas import PASSED, STATUSES
from timmgate.tables.failures import KINDS, SEVERITIES
from timmgate.tables.summary import VERDICTS

WORST = 3
"""Cells that the line of a kind of warning or note names."""

COLOURS = {"failure": "bold red", "warning": "bold yellow", "note": "bold"}

Figures = dict[str, Callable[[dict[str, Any]], str]]
"""Titles of columns, and what makes the text in it of a row of the summary."""


def show(results: Path, console: Console) -> None:
    """Print a table per check with a row per mode, and what to look at, from the files in the folder `results`."""
    types = {"build": str, "mode": str}
    summary = pd.read_csv(results / "summary.tsv", sep="\t", na_values=[""], keep_default_na=False, dtype=types)
    for check in summary["check_name"].unique():
        of_check = summary[summary["check_name"] == check]
        console.print(summary_table(check, of_check))
        if check == "performance":
            console.print(figures_table(headline(of_check), of_check, SPEEDUPS))
            console.print(figures_table("compiling", of_check, COSTS))
    for line in lines(pq.read_table(results / "failures.parquet").to_pylist()):
        console.print(line, soft_wrap=True)


def lines(found: list[dict[str, Any]]) -> list[Text]:
    """A line per failure, then a line per kind of warning, then one per kind of note; what is of the run has its own.

    Cells that are not measured yet share one.
    """
    shown = []
    for severity in SEVERITIES:
        rows = [row for row in found if row["severity"] == severity]
        for kind in dict.fromkeys(row["kind"] for row in rows):
            of_kind = [row for row in rows if row["kind"] == kind]
            of_cells = [row for row in of_kind if row["model"] is not None]
            shown += [run_line(row) for row in of_kind if row["model"] is None]
            if severity == "failure":
                shown += [failure_line(row) for row in of_cells if not _is_merely_not_run(row)]
                of_cells = list(filter(_is_merely_not_run, of_cells))
            if of_cells:
                shown.append(kind_line(of_cells))
    return shown


def _is_merely_not_run(row: dict[str, Any]) -> bool:
    """Whether there is nothing more to say of a cell than that."""
    return row["status"] == "not_run" and not row["reason"]


def failure_line(failure: dict[str, Any]) -> Text:
    """Status, cell, check, class of the reason and the reason, and the log if there is one."""
    reason = ": ".join(filter(None, (failure["reason_class"], failure["reason"])))
    log = f"log: {failure['log']}" if failure["log"] else None
    words = [f"{cell_name(failure)} {failure['check_name']}", reason, log]
    return Text.assemble((failure["status"], COLOURS["failure"]), " ", "  ".join(filter(None, words)))


def kind_line(of_cells: list[dict[str, Any]]) -> Text:
    """How many cells there are of a kind, what it means, and the worst of them with their figures."""
    first = of_cells[0]
    reasons = {cell_name(row): _first_line(row) for row in of_cells}
    worst = [f"{name} ({reason})" if reason else name for name, reason in islice(reasons.items(), WORST)]
    more = [f"and {len(reasons) - WORST} more"] if len(reasons) > WORST else []
    words = f"{len(reasons)} cell{'s' * (len(reasons) > 1)}: {KINDS[first['kind']].meaning}: {', '.join([*worst, *more])}"
    return Text.assemble((f"{first['severity']} {first['kind']}", COLOURS[first["severity"]]), " ", words)


def run_line(row: dict[str, Any]) -> Text:
    """What concerns the run as a whole."""
    return Text.assemble((f"{row['severity']} {row['kind']}", COLOURS[row["severity"]]), f" {_first_line(row)}")


def _first_line(row: dict[str, Any]) -> str:
    return next(iter((row["reason"] or row["cause"] or "").splitlines()), "")


def summary_table(check: str, summary: pd.DataFrame) -> Table:
    """A rich table: cells, passed, and the statuses of the others with their numbers."""
    keys = _keys(summary)
    table = _table(f"{check} on {', '.join(summary['device'].unique())}", keys, ("cells", "passed"))
    others = [status for status in STATUSES if status not in PASSED and summary[status].any()]
    if others:
        table.add_column("not passed", overflow="fold")
    for row in summary.to_dict("records"):
        counts = "\n".join(f"{row[status]} {status}" for status in others if row[status])
        table.add_row(*(row[key] for key in keys), str(row["cells"]), str(row["passed"]), *([counts] if others else []))
    return table


def headline(summary: pd.DataFrame) -> str:
    """The title of the speedups, with what they depend on as far as it is known."""
    found = "; ".join(summary["conditions"].dropna().unique())
    return f"speedup ({found})" if found else "speedup"


def figures_table(title: str, summary: pd.DataFrame, figures: Figures) -> Table:
    """A rich table of figures of each mode, and of each build if there are several."""
    keys = _keys(summary)
    table = _table(title, keys, figures)
    for row in summary.to_dict("records"):
        table.add_row(*(row[key] for key in keys), *(figure(row) for figure in figures.values()))
    return table


def _table(title: str, keys: Iterable[str], columns: Iterable[str]) -> Table:
    """One with columns for the keys and others for numbers; it fits 80 columns."""
    table = Table(title=title)
    for key in keys:
        table.add_column(key, overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _keys(summary: pd.DataFrame) -> list[str]:
    """The columns that tell the rows of a table apart: the build too if there are others than the default one."""
    return ["build", "mode"] if names_builds(summary["build"]) else ["mode"]


def _speedup(row: dict[str, Any], name: str) -> str:
    """A geometric mean over models, its interval, and how many models are in it."""
    share = f"{row['counted']:.0f} of {row['cells']}"
    if pd.isna(row[name]):
        return share
    interval = "" if pd.isna(row[f"{name}_ci_low"]) else f"\n[{row[f'{name}_ci_low']:.2f}, {row[f'{name}_ci_high']:.2f}]"
    return f"{row[name]:.2f}, {share}{interval}"


def _number(row: dict[str, Any], name: str, form: str) -> str:
    return "" if pd.isna(row[name]) else format(row[name], form)


SPEEDUPS: Figures = {
    "speedup": lambda row: _speedup(row, "speedup"),
    "clipped at 1": lambda row: _speedup(row, "speedup_clipped"),
    "faster/same/slower/?": lambda row: "/".join(_number(row, name, ".0f") for name in VERDICTS),
}
"""Titles and texts: geometric means over models with their 95 % intervals, and how many models have which verdict."""

COSTS: Figures = {
    "cold, s": lambda row: _number(row, "compile_cold_s", ".1f"),
    "warm, s": lambda row: _number(row, "compile_warm_s", ".1f"),
    "memory": lambda row: _number(row, "compression_ratio", ".2f"),
    "graph breaks": lambda row: _number(row, "graph_breaks", ".0f"),
}
"""Titles and texts: medians of seconds, eager's peak memory divided by compiled's, and the sum of graph breaks."""


if __name__ == "__main__":
    needed = ("summary.tsv", "failures.parquet")
    if len(sys.argv) != 2 or not all(Path(sys.argv[1], name).is_file() for name in needed):
        sys.exit(
            "name a folder that has tables, as python -m timmgate.tables makes them: "
            "python -m timmgate.report.terminal results/cpu"
        )
    show(Path(sys.argv[1]), Console())
