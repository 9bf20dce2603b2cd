"""How long the cells that are left will take, from those that are done.

The seconds of a cell are taken for a factor of its mode times a power of its model's cost, times chance. The power is fitted
within the modes, and drawn towards `EXPONENT` where few cells are done; a mode of which little is known is drawn towards the
mean of the others. How far the cells that are done are from that law is how far the estimate may be off.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

EXPONENT = 0.4
"""Of a model's cost, before anything is known: compiling depends on the number of operations, not on their size."""

EXPONENT_WEIGHT = 2.0
"""Of that, as a sum of squares of log cost: so much as two cells have whose costs are e times the mean, or 1/e of it."""

MODE_WEIGHT = 1.0
"""Cells that the mean of all modes counts as in each."""

SPREAD, SPREAD_WEIGHT = 0.5, 3.0
"""Standard deviation of log seconds before anything is known, and the number of cells that it counts as."""

MODE_SPREAD = 0.7
"""Standard deviation of log seconds between modes: training takes two to three times as long as inference."""

Z = 1.645
"""Of a normal distribution: 90 % are within."""


@dataclass(frozen=True)
class Done:
    """A cell that is done: its mode, its model's cost, and the seconds that it took."""

    mode: str
    cost: float
    seconds: float


@dataclass(frozen=True)
class Estimate:
    """Seconds, and the interval that they are in with 90 % probability if all goes on as it did."""

    seconds: float
    low: float
    high: float

    def shared_by(self, workers: float, at_least: float = 0.0) -> "Estimate":
        """The same when so many work at once, and somebody needs `at_least` so many seconds."""
        return Estimate(*(max(each / workers, at_least) for each in (self.seconds, self.low, self.high)))


class Law:
    """What the cells that are done say of those that are not. Raises ValueError where none is done."""

    def __init__(self, done: Sequence[Done]):
        if not done:
            raise ValueError("no cell is done")
        of_mode = defaultdict(list)
        for cell in done:
            of_mode[cell.mode].append((math.log(cell.cost), math.log(max(cell.seconds, 1e-3))))
        self._exponent, exponent_weight = _exponent(of_mode)
        logs = {mode: [y - self._exponent * x for x, y in pairs] for mode, pairs in of_mode.items()}
        self._mean = fmean(value for values in logs.values() for value in values)
        self._modes = {
            mode: (sum(values) + MODE_WEIGHT * self._mean) / (len(values) + MODE_WEIGHT) for mode, values in logs.items()
        }
        squares = sum((value - self._modes[mode]) ** 2 for mode, values in logs.items() for value in values)
        self._variance = (squares + SPREAD_WEIGHT * SPREAD**2) / (len(done) + SPREAD_WEIGHT)
        self._exponent_variance = self._variance / exponent_weight
        self._scale = 1.0
        means = [self.seconds(cell.mode, cell.cost) for cell in done]
        self._scale = sum(cell.seconds for cell in done) / sum(means)
        self._log_cost = _log_cost({(cell.mode, cell.cost): mean for cell, mean in zip(done, means, strict=True)})
        self._scale_variance = self._variance * sum(mean**2 for mean in means) / sum(means) ** 2

    def seconds(self, mode: str, cost: float) -> float:
        """What a cell takes on average."""
        return self._scale * math.exp(self._modes.get(mode, self._mean) + self._exponent * math.log(cost))

    def left(self, cells: Mapping[tuple[str, float], int], under_way_s: float = 0.0) -> Estimate:
        """What so many cells of each mode and cost take together, with the rest of those that are under way."""
        totals = {cell: number * self.seconds(*cell) for cell, number in cells.items() if number}
        total = sum(totals.values())
        if not total:
            return Estimate(under_way_s, 0.5 * under_way_s, 2 * under_way_s)
        unknown = sum(seconds for (mode, _), seconds in totals.items() if mode not in self._modes) / total
        squares = sum(seconds**2 / cells[cell] for cell, seconds in totals.items())
        variances = (
            self._scale_variance,
            self._variance * squares / total**2,
            self._exponent_variance * (_log_cost(totals) - self._log_cost) ** 2,
            (unknown * MODE_SPREAD) ** 2,
        )
        factor = math.exp(Z * math.sqrt(sum(variances)))
        total += under_way_s
        return Estimate(total, total / factor, total * factor)


def _log_cost(seconds: Mapping[tuple[str, float], float]) -> float:
    """Mean log cost of cells, each weighed by its seconds."""
    return sum(weight * math.log(cost) for (_, cost), weight in seconds.items()) / sum(seconds.values())


def _exponent(of_mode: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[float, float]:
    """Slope of log seconds over log cost within the modes, not less than 0 and not more than 1, and what it rests on."""
    products, squares = EXPONENT_WEIGHT * EXPONENT, EXPONENT_WEIGHT
    for pairs in of_mode.values():
        mean_x, mean_y = (fmean(values) for values in zip(*pairs, strict=True))
        products += sum((x - mean_x) * (y - mean_y) for x, y in pairs)
        squares += sum((x - mean_x) ** 2 for x, _ in pairs)
    return min(max(products / squares, 0.0), 1.0), squares


def duration_words(seconds: float) -> str:
    """A duration for people: 40 s, 12 min, 3 h 20 min, 2 d 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"
