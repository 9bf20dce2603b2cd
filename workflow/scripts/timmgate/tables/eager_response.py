"""How a cell's relative time goes with its eager's, learnt from its history. Needs the standard library alone.

A machine that slows down does not slow compiled and eager alike: compiled lost 0.8 to 1.6 times as much, always the same in
one cell, so that their ratio moves with the machine. Over 16 processes of 12 cells each it scattered by 2.1 %, and by 1.2 %
around a line that each cell has of its own; of processes of another hour, by 3.1 % and 2.3 %. Where eager scatters by
itself, the line says to leave it out.
"""

import math
from collections.abc import Sequence
from statistics import linear_regression, median
from typing import NamedTuple

from timmgate.tables.figures import EAGER, RELATIVE, Row

MIN_TO_LEARN = 8
"""Fewest measurements of a cell that have a slope. A choice: with fewer, that of chance is as large as any other."""


class Response(NamedTuple):
    """Logarithm of relative time, less that at eager's usual speed: `slope` times how far the logarithm of `eager_ms` is
    from `level`, between `low` and `high`, as nothing is known beyond. Nothing, where nothing was learnt.
    """

    slope: float = 0.0
    level: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def of(self, row: Row) -> float:
        """What it is for a measurement."""
        eager = EAGER.of(row)
        return self.slope * (min(max(math.log(eager), self.low), self.high) - self.level) if eager else 0.0


def learn(rows: Sequence[Row]) -> Response:
    """The response of a cell from measurements that lie on one level, each with both times: the line of least squares."""
    eager = [math.log(EAGER.of(row) or math.nan) for row in rows]
    if len(rows) < MIN_TO_LEARN or max(eager) == min(eager):
        return Response()
    slope, _ = linear_regression(eager, [math.log(RELATIVE.of(row) or math.nan) for row in rows])
    return Response(slope, median(eager), min(eager), max(eager))
