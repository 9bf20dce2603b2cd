"""Diagnoses in the terminal: how many cells of each layer, then a line for each cell."""

from collections import Counter
from typing import Any

from rich.console import Console
from rich.text import Text

from timmgate.core.diagnosis import LAYERS
from timmgate.core.names import cell_name

Row = dict[str, Any]


def show(found: list[Row], console: Console) -> None:
    """Print them."""
    if not found:
        console.print("No requested cell failed for a reason that may be the compiler's.")
        return
    for row in sorted(found, key=lambda row: [*LAYERS].index(row["layer"])):
        console.print(line(row), soft_wrap=True)
    counts = Counter(row["layer"] for row in found)
    told = ", ".join(f"{layer} {counts[layer]}" for layer in LAYERS if counts[layer])
    console.print(f"{len(found)} failed cell{'s' * (len(found) > 1)} diagnosed: {told}.", highlight=False)


def line(row: Row) -> Text:
    """Layer, cell, and what is known of it."""
    colour = "bold yellow" if row["layer"] == "flaky" else "bold red"
    return Text.assemble((row["layer"], colour), f" {cell_name(row)} {sentence(row)}")


def sentence(row: Row) -> str:
    """What was found, in words."""
    parts = [LAYERS[row["layer"]]]
    if row["application"]:
        parts.append(f"it takes {row['application']}")
    if row["switch"]:
        parts.append(f"passes with: {row['switch']}")
    if row["module"]:
        parts.append(
            f"smallest module: {row['module']} ({row['module_class'] or 'not searched to its end'}, {row['direction']})"
        )
    if row["fails_in_eager"]:
        parts.append("its null runs fail too, which are eager: it is the operator, and no compiler")
    if row["graph"]:
        parts.append(f"smallest graph: {row['graph']}")
    if row["conditions"]:
        parts.append(f"only with {', '.join(row['conditions'])}")
    if row["raised_in"]:
        parts.append(f"raised in {row['raised_in']}")
    where = f"Script: {row['graph_script'] or row['module_script'] or row['script']}, log: {row['log']}"
    return f"{'; '.join(parts)}. {row['trials']} trials, {row['layer_s'] + row['place_s']:.0f} s. {where}"
