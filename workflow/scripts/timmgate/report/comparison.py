"""Prints a comparison in the terminal."""

from collections import Counter
from itertools import groupby
from operator import itemgetter
from statistics import median
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from timmgate.core.checks import CHECKS
from timmgate.tables.comparison import compare
from timmgate.tables.figures import COMPILED, EAGER, GRAPH_BREAKS, RELATIVE
from timmgate.tables.gate.deviations import MANY_CELLS, SEVERAL_CELLS, USUAL_NOISE

WORSE = {"new_failure", *(figure.worse for figure in compare.TESTED), GRAPH_BREAKS.worse}
"""Verdicts that are a change to the worse."""


def show(compared: list[dict[str, Any]], console: Console) -> None:
    """Print a row per figure, a line for whatever changed, and what the comparison could not say."""
    if not compared:
        console.print("Nothing was compared.")
        return
    for _, rows in groupby(compared, itemgetter("after")):
        of_build = list(rows)
        console.print(table(of_build))
        for row in told(of_build):
            console.print(line(row), soft_wrap=True)
        for sentence in sentences(of_build):
            console.print(sentence, soft_wrap=True)


def told(compared: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows that say what changed; compiled itself only where it does not say what it says over eager."""
    changed = [row for row in compared if row["verdict"] not in (None, "left_out")]
    relative = {(row["mode"], row["model"], row["verdict"]) for row in changed if row["figure"] == RELATIVE.column}
    return [
        row
        for row in changed
        if row["figure"] != COMPILED.column or (row["mode"], row["model"], row["verdict"]) not in relative
    ]


def table(compared: list[dict[str, Any]]) -> Table:
    """A rich table: for each figure of how many cells, the mean change, and how many changed in which direction."""
    first = compared[0]
    shown = Table(title=f"{first['after']} against {first['before']} on {first['device']}")
    shown.add_column("figure", overflow="fold")
    for column in ("cells", "change", "less", "more", "could show 3 %"):
        shown.add_column(column, justify="right", overflow="fold")
    for figure in dict.fromkeys((*compare.TESTED, *compare.ALONE, GRAPH_BREAKS)):
        rows = [row for row in compared if row["figure"] == figure.column]
        if not rows:
            continue
        verdicts = Counter(row["verdict"] for row in rows)
        able = sum(bool(row["could_show"]) for row in rows)
        is_count = figure is GRAPH_BREAKS
        mean = "" if is_count else f"{np.exp(np.mean([np.log1p(row['change']) for row in rows])) - 1:+.1%}"
        counts = [str(verdicts[word] or "") for word in (figure.better, figure.worse)]
        shown.add_row(figure.column, str(len(rows)), mean, *counts, "" if is_count else str(able))
    return shown


def line(row: dict[str, Any]) -> Text:
    """Verdict, cell, the change with its interval, and whether eager moved too."""
    words = row["message"] or f"{row['figure']} {_change(row)}"
    if row["moved"]:
        words = f"{words}; moved: {row['moved']}"
    check = f" {row['figure']}" if row["figure"] in CHECKS else ""
    colour = "bold red" if row["verdict"] in WORSE else "bold yellow"
    return Text.assemble((row["verdict"], colour), f" {row['mode']}/{row['model']}{check} {words}")


def _change(row: dict[str, Any]) -> str:
    if row["change_ci_low"] is None:
        return f"{row['value_before']:g} became {row['value_after']:g}"
    return f"{row['change']:+.1%} [{row['change_ci_low']:+.1%}, {row['change_ci_high']:+.1%}]"


def sentences(compared: list[dict[str, Any]]) -> list[str]:
    """How many cells were compared, what was left out and why, and what no alarm means."""
    cells = {(row["mode"], row["model"]) for row in compared}
    reasons = [f"{count} left out: {reason}" for reason, count in compare.left_out(compared).items()]
    tested = [row for row in compared if row["figure"] == RELATIVE.column]
    said = [f"{len(tested)} of {len(cells)} cells compared{''.join(f'; {reason}' for reason in reasons)}."]
    if not any(row["p"] is not None for row in tested):
        return (
            said
            if not tested
            else [*said, "Between devices everything differs, so that no change of a time or of memory has a verdict."]
        )
    if tested[0]["processes"] is None:
        moves = [row["change"] for row in compared if row["figure"] == EAGER.column]
        words = [
            f"noise is how much all cells differ{'' if len(moves) >= MANY_CELLS else f', {USUAL_NOISE:.0%} for so few'}"
        ]
        if len(moves) >= SEVERAL_CELLS:
            words.append(f"the {median(moves):+.1%} that eager of all moved is taken off compiled")
        chance = "What is found may be chance; builds in one run are timed in turns."
        said.append(f"Measured apart: {', and '.join(words)}. {chance}")
    able = sum(bool(row["could_show"]) for row in tested)
    return [
        *said,
        f"A change of 3 % over eager would be found in {able} of {len(tested)} cells; elsewhere no alarm says little.",
    ]
