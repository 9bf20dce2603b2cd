"""Cells and measurements for tests that do not care which."""

from typing import Any

from timmgate.core.spec import Cell, Spec

VALUES = {"device": "cpu", "mode": "inference", "model": "test_vit", "weights": "random", "torch": "2.9", "timm": "1.0"}


def cell(**changes: Any) -> Cell:
    """A cell with these fields, and ordinary ones beside them."""
    return Cell(**{**VALUES, **changes})


def spec(check: str = "accuracy", **changes: Any) -> Spec:
    """One check of such a cell."""
    return cell(**changes).spec(check)
