"""Prints what the gate catches."""

import math

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from timmgate.tables.studies.power import ALL, EFFECTS, RULES


def show(summary: pa.Table, console: Console) -> None:
    """A table for each least effect: kinds of modes and families, and the share that each rule catches."""
    rows = [row for row in summary.to_pylist() if math.isinf(row["effect_below"])]
    for low in EFFECTS:
        titled = Table(title=f"faults caught, of those with an effect {'over 0' if low == 0 else f'of {low:g} or more'}")
        for name in ("precision", "pass", "weights", "family"):
            titled.add_column(name)
        for rule in RULES:
            titled.add_column(rule, justify="right")
        shown = [row for row in rows if row["effect_from"] == low and row["applicable"]]
        for key in dict.fromkeys(map(_key, shown)):
            by_rule = {row["rule"]: row for row in shown if _key(row) == key}
            titled.add_row(*key, *(_share(by_rule[rule]) for rule in RULES), end_section=key[-1] == ALL)
        console.print(titled)


def _key(row: dict) -> tuple[str, str, str, str]:
    return row["precision"], "training" if row["training"] else "inference", row["weights"], row["family"]


def _share(row: dict) -> str:
    return f"{row['caught']} of {row['applicable']}, {row['share']:.1%}"
