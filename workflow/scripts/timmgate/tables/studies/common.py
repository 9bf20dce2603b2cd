"""What rows of a study of one model and mode have in common: calibration and power."""

from typing import Any

from timmgate.core.spec import Cell

COLUMNS = (
    ("device", "string", "", "torch device type"),
    ("mode", "string", "", "name of the mode"),
    ("model", "string", "", "timm model name"),
    ("weights", "string", "", "where the weights come from"),
    ("precision", "string", "", "float32, bfloat16, float16 or amp"),
    ("training", "bool", "", "forward and backward pass, or inference"),
)


def about(cell: Cell) -> dict[str, Any]:
    """Their values."""
    own = {name: getattr(cell, name) for name in ("device", "mode", "model", "weights")}
    return own | {name: getattr(cell.options, name) for name in ("precision", "training")}
