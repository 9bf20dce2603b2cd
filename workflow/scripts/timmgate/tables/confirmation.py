"""Fresh processes of a cell that may have got worse: when have they told? Needs the standard library alone."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from timmgate.tables.figures import JUDGED, Figure

SHARE = 0.5
"""Share of a limit from which on a figure is measured again, and within which the mean of fresh processes clears it."""

CLEARLY, FAR = 3, 1.5
"""So many fresh processes that are all beyond so many limits leave no doubt."""

Row = Mapping[str, Any]


class Limit(NamedTuple):
    """How far a figure may be from its `level` in the baseline: the logarithm of the ratio, or the difference of counts."""

    level: float
    limit: float


def limits(values: Mapping[str, Sequence[float]]) -> dict[str, Limit]:
    """Limits by figure, as JSON has them."""
    return {column: Limit(*value) for column, value in values.items()}


def is_settled(allowed: Mapping[str, Limit], fresh: Sequence[Row], times: int) -> bool:
    """Whether fresh processes have shown of each figure of a suspect that it is within its limit, or that it surely is not.

    It is within if their mean is within half of the limit, or if most of the `times` that are allowed are within it. It is
    not if three are beyond the limit by half again. What is only a little beyond takes all of them.
    """
    figures = {figure.column: figure for figure in JUDGED}
    return all(_is_clear(figures[column], limit, fresh, times) for column, limit in allowed.items())


def _is_clear(figure: Figure, limit: Limit, fresh: Sequence[Row], times: int) -> bool:
    values = [value for value in map(figure.of, fresh) if value is not None]
    if not values:
        return False
    moves = [value - limit.level if figure.threshold is None else math.log(value / limit.level) for value in values]
    within = sum(move <= limit.limit for move in moves)
    is_far_beyond = len(moves) >= CLEARLY and min(moves) > FAR * limit.limit
    return mean(moves) <= SHARE * limit.limit or within > times / 2 or is_far_beyond
