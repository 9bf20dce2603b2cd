"""Measurements for tests: a tiny model on the CPU, but for what a test says."""

from collections.abc import Mapping
from typing import Any

from timmgate.core.spec import Cell, Mode, Spec, Traits

VALUES = {"device": "cpu", "mode": "inference", "model": "test_vit", "weights": "random", "torch": "2.9", "timm": "1.0"}


def cell(
    *, options: Mode | Mapping[str, Any] | None = None, traits: Traits | Mapping[str, Any] | None = None, **fields: Any
) -> Cell:
    """A cell with these options of its mode, traits of its model, and other fields."""
    mode = options if isinstance(options, Mode) else Mode(**options or {})
    special = traits if isinstance(traits, Traits) else Traits(**traits or {})
    return Cell(**{**VALUES, **fields}, options=mode, traits=special)


def spec(check: str = "accuracy", **fields: Any) -> Spec:
    """One check of such a cell."""
    return cell(**fields).spec(check)
