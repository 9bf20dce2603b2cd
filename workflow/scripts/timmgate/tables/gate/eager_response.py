"""How a figure of a cell goes with its eager's time, learnt from its history. Needs the standard library alone.

A machine that slows down does not slow compiled and eager alike: compiled lost 0.8 to 1.6 times as much, always the same in
one cell, so that their ratio moves with the machine. Over 16 processes of 12 cells each it scattered by 2.1 %, and by 1.2 %
around a line that each cell has of its own; of processes of another hour, by 3.1 % and 2.3 %. Where eager scatters by
itself, the line says to leave it out. The processor time of compiling grows with eager's by a half on a slow machine.
"""

import math
from collections.abc import Sequence
from statistics import linear_regression, median
from typing import NamedTuple

from timmgate.tables.figures import EAGER, Figure, Row

MIN_TO_LEARN = 8
"""Fewest measurements of a cell that have a slope. A choice: with fewer, that of chance is as large as any other."""


class Response(NamedTuple):
    """Logarithm of a figure, less that at eager's usual speed: `slope` times how far the logarithm of `eager_ms` is
    from `level`, between `low` and `high`, as nothing is known beyond. Nothing, where nothing was learnt. `squares` is the
    sum of the squares of these distances in what it was learnt from.
    """

    slope: float = 0.0
    level: float = 0.0
    low: float = 0.0
    high: float = 0.0
    squares: float = 0.0

    def of(self, row: Row) -> float:
        """What it is for a measurement."""
        return self.slope * self._distance(row)

    def variance(self, row: Row) -> float:
        """Variance of that, as the slope is not known exactly, over the variance of a measurement around the line."""
        return self._distance(row) ** 2 / self.squares if self.squares else 0.0

    def _distance(self, row: Row) -> float:
        eager = EAGER.of(row)
        return min(max(math.log(eager), self.low), self.high) - self.level if eager else 0.0


def learn(figure: Figure, rows: Sequence[Row]) -> Response:
    """The response of a figure of a cell from its measurements, by the line of least squares."""
    pairs = [(EAGER.of(row), figure.of(row)) for row in rows]
    known = [(math.log(one), math.log(other)) for one, other in pairs if one and other]
    eager = [each for each, _ in known]
    if len(known) < MIN_TO_LEARN or max(eager) == min(eager):
        return Response()
    slope, _ = linear_regression(eager, [value for _, value in known])
    level = median(eager)
    return Response(slope, level, min(eager), max(eager), sum((each - level) ** 2 for each in eager))
