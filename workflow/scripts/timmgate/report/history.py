"""Prints in the terminal what changed in a history."""

from itertools import groupby
from typing import Any

from rich.console import Console
from rich.text import Text

from timmgate.tables.figures import EAGER, FIGURES

MOST = 20
"""Cells of a class that have a line each."""

WORSE = {EAGER.worse, "new_failure", "changed_failure", *(figure.worse for figure in FIGURES)}


def show(found: list[dict[str, Any]], extent: str, console: Console) -> None:
    """Print a line for each change of a suite, then for those of cells, by class; and how many there are."""
    console.print(extent, soft_wrap=True)
    suites, cells = ([row for row in found if (row["model"] is None) == is_suite] for is_suite in (True, False))
    for row in suites:
        console.print(line(row), soft_wrap=True)
    for name, rows in groupby(sorted(cells, key=lambda row: row["class"]), key=lambda row: row["class"]):
        of_class = list(rows)
        for row in of_class[:MOST]:
            console.print(line(row), soft_wrap=True)
        if len(of_class) > MOST:
            console.print(f"{name}: {len(of_class) - MOST} more cells", soft_wrap=True)
    console.print(f"{len(suites)} change{'s' * (len(suites) != 1)} of suites, {len(cells)} of cells.", soft_wrap=True)


def line(row: dict[str, Any]) -> Text:
    """Class, cell or suite, what changed and by how much, since when, and the versions."""
    place = "/".join(filter(None, (row["build"], row["mode"], row["model"])))
    if row["model"] is None:
        place += f", {row['models']} models of {row['suite']}"
    what = f"{row['figure']} {row['before']} -> {row['after']}" if row["before"] is not None else row["figure"]
    if row["change"] is not None:
        what += f" ({row['change']:+.1%})"
    if row["eager_change"] is not None:
        what += f", eager {row['eager_change']:+.1%}"
    how = "crept in until" if row["finding"] == "drift" else "since"
    count = f"{row['measured_since']} measurement{'s' * (row['measured_since'] != 1)} from then on"
    when = f"{how} {row['since']:%Y-%m-%d %H:%M} UTC ({count})"
    versions = row["versions"] or f"same versions, torch {row['torch']}"
    colour = "bold red" if row["class"] in WORSE else "bold green"
    return Text.assemble((row["class"], colour), f" {place} {what} {when}: {versions}")
