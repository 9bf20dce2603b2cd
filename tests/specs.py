"""Measurements for tests: a tiny model on the CPU, but for what a test says."""

from typing import Any

from timmgate.core.spec import Cell, Mode, Spec, Traits


def cell(*, options: dict[str, Any] | None = None, traits: dict[str, Any] | None = None, **fields: Any) -> Cell:
    """A cell with these options of its mode, traits of its model, and other fields."""
    usual = {"device": "cpu", "mode": "inference", "model": "test_vit", "weights": "random", "torch": "2.9", "timm": "1.0"}
    return Cell(**{**usual, **fields}, options=Mode(**options or {}), traits=Traits(**traits or {}))


def spec(check: str = "accuracy", **fields: Any) -> Spec:
    """One check of such a cell."""
    return cell(**fields).spec(check)
