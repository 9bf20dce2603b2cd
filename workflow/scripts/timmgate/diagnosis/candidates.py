"""Which cells are worth a diagnosis: those that failed for a reason that may be the compiler's."""

from collections.abc import Mapping, Sequence
from typing import Any

from timmgate.core.checks import CHECKS
from timmgate.core.schemas import SHOWN_STATUS

STATUSES = ("fail_accuracy", "fail_to_run", "OOM", "timeout")
"""Statuses of such a check."""

Row = Mapping[str, Any]


def failed_check(cell: Row, checks: Sequence[str]) -> str | None:
    """The first of the checks that failed so; None for a cell that has no such check.

    A check that timed out before anything was compiled is not among them.
    """
    for check in checks:
        status, stage = cell[SHOWN_STATUS[check]], cell[f"{check}_stage"]
        if status in STATUSES and (status != "timeout" or "fail_to_run" in CHECKS[check].statuses(stage)):
            return check
    return None
