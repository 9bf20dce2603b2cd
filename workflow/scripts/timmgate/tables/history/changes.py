"""Where a figure that was measured again and again changed its level: change points of many time series at once.

The points come from ruptures' kernel change-point detection: the segmentation with the smallest sum of squares, with a
price for every change. What is here makes one price fit all series: noise that is estimated for each, single outliers cut,
and a screen that finds the few series worth a closer look.

Series are rows of an array of shape (series, values), of logarithms, that end together: a shorter one begins with NaN.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import ruptures

PRICE = 25.0
"""Of one change, in units of the variance of the noise. A healthy series of a year's nights (365 values) has a change in
less than 1 of 1,000 cases; of steps of two standard deviations, thirty values apart, more than 97 % are found.
"""

SUCCESSIVE = 2
"""Fewest successive values that make a level."""

OUTLIER = 3.0
"""How many standard deviations a value may be beyond both of its neighbours; what is more is cut off."""

SMALLEST_CHANGE = 0.01
"""Smallest relative change that is reported: criterion.rs's noise threshold."""

LARGEST_DRIFT_STEP = 0.03
"""Steps of a drift are smaller. What is larger, relative, is a change that nobody calls slow."""

LARGEST_DRIFT = 0.1
"""Difference of means, in logarithms, up to which the screen takes an earlier change for what may be a drift."""

DRIFT_RUNS = 4
"""A drift takes longer to show than a step, and is reported for so many times as many runs."""

LEAST_NOISE = 0.001
"""Smallest standard deviation, relative, that a series is taken to have: some figures hardly vary."""

SHARED_DEGREES = 10
"""How many differences the typical noise of all series counts as much as: short series lean on it (moderated variance)."""

SPANS_AFTER, SPANS_BEFORE = (2, 8, 32), (8, 32)
"""Numbers of values after and before a point whose means the screen compares for a step."""

DRIFT_SPANS = 32, 128
"""The same for a drift, or a step that is small against the noise."""

SCREEN = 4.0
"""Standard deviations by which they differ in a series that is looked at closely."""

UPPER_QUARTILE = 1.1503
"""75th percentile of the absolute value of a standard normal variable."""


@dataclass(frozen=True)
class Change:
    """A change of a series by `step` in its logarithm: the value `last` has the level before, `first` that after.

    Values are counted from the end: the last one is -1. A step has `first == last + 1`; a drift is two or more of them in
    the same direction, in succession. The level before begins with the value `begin`, that after ends before `end`.
    """

    last: int
    first: int
    step: float
    begin: int
    end: int

    @property
    def is_drift(self) -> bool:
        """Whether it is made of several steps."""
        return self.first > self.last + 1


def noise(values: np.ndarray) -> np.ndarray:
    """Standard deviation of each series, shape (series,), from the differences of successive values.

    The upper quartile of the differences is estimated: steps and outliers are few of them, and a figure that mostly repeats
    itself exactly is not taken for one without noise. It is pooled with the typical noise of all series.
    """
    sizes = np.abs(np.diff(values, axis=1))
    sizes.sort(axis=1)  # NaN last
    degrees = np.isfinite(sizes).sum(axis=1)
    if not degrees.any():
        return np.full(len(values), LEAST_NOISE)
    quartile = np.maximum(0, np.ceil(0.75 * degrees).astype(int) - 1)[:, None]
    own = np.nan_to_num(np.take_along_axis(sizes, quartile, axis=1)[:, 0]) / (UPPER_QUARTILE * np.sqrt(2))
    shared = np.median(own[degrees > 0])
    variance = (degrees * own**2 + SHARED_DEGREES * shared**2) / (degrees + SHARED_DEGREES)
    deviation: np.ndarray = np.maximum(LEAST_NOISE, np.sqrt(variance))
    return deviation


def without_outliers(values: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """The same series, each value cut to `OUTLIER` deviations beyond the nearer of its neighbours. Steps stay."""
    edge = np.full((len(values), 1), np.nan)
    left, right = np.hstack([edge, values[:, :-1]]), np.hstack([values[:, 1:], edge])
    room = OUTLIER * deviation[:, None]
    cut: np.ndarray = np.fmin(np.fmax(values, np.fmin(left, right) - room), np.fmax(left, right) + room)
    cut[np.isnan(values)] = np.nan
    return cut


def screened(values: np.ndarray, deviation: np.ndarray, runs: int) -> np.ndarray:
    """Numbers of the series in which something may have changed among the last `runs` values, or crept in among more."""
    series, length = values.shape
    sums, counts = np.zeros((length + 1, series)), np.zeros((length + 1, series), np.int32)
    np.cumsum(np.nan_to_num(values.T), axis=0, out=sums[1:])
    np.cumsum(np.isfinite(values.T), axis=0, out=counts[1:])
    conspicuous = np.zeros(series, bool)

    def compare(after: int, before: int, among: int, limit: float = np.inf) -> None:
        for point in range(max(SUCCESSIVE, length - among), length - SUCCESSIVE + 1, max(1, after // 4)):
            end, start = min(point + after, length), max(point - before, 0)
            number = counts[point] - counts[start]
            difference = np.abs((sums[end] - sums[point]) / (end - point) - (sums[point] - sums[start]) / number)
            error = deviation * np.sqrt(1 / (end - point) + 1 / number)
            conspicuous[(difference > SCREEN * error) & (difference < limit)] = True

    with np.errstate(invalid="ignore", divide="ignore"):
        for after, before in product(SPANS_AFTER, SPANS_BEFORE):
            compare(after, before, runs)
        compare(*DRIFT_SPANS, DRIFT_RUNS * runs, LARGEST_DRIFT)
    return np.flatnonzero(conspicuous & (counts[-1] >= 2 * SUCCESSIVE))


def needed(runs: int) -> int:
    """How many of the last values it takes to find what changed among the last `runs`."""
    return DRIFT_RUNS * runs + max(DRIFT_SPANS)


def find(values: np.ndarray, runs: int) -> Iterator[tuple[int, Change]]:
    """The steps among the last `runs` values of the series, and the drifts that ended not long before, with their series.

    A series needs two values on each side of a change.
    """
    deviation = noise(values)
    calm = without_outliers(values, deviation)
    for series in screened(calm, deviation, runs):
        for change in changes(calm[series][np.isfinite(calm[series])], float(deviation[series])):
            if change.first >= -runs * (DRIFT_RUNS if change.is_drift else 1):
                yield int(series), change


def changes(values: np.ndarray, deviation: float) -> list[Change]:
    """The changes of one series of logarithms, shape (values,), without NaN and outliers: steps, then drifts."""
    values = values.astype(float)
    detector = ruptures.KernelCPD(kernel="linear", min_size=SUCCESSIVE).fit(values[:, None] / deviation)
    points = [0, *detector.predict(pen=PRICE)]
    levels = (np.add.reduceat(values, points[:-1]) / np.diff(points)).tolist()
    begins = [point - len(values) for point in points]
    steps = [
        Change(first - 1, first, after - before, begin, end)
        for begin, first, end, (before, after) in zip(begins, begins[1:], begins[2:], pairwise(levels), strict=False)
    ]
    return [step for step in [*steps, *_drifts(steps)] if abs(step.step) >= np.log1p(SMALLEST_CHANGE)]


def _drifts(steps: list[Change]) -> Iterator[Change]:
    """Two or more small steps in succession, all of them up or all down."""
    stretch: list[Change] = []
    for step in [*steps, Change(0, 1, np.inf, 0, 1)]:
        goes_on = abs(step.step) < np.log1p(LARGEST_DRIFT_STEP)
        if stretch and not (goes_on and stretch[-1].step * step.step > 0):
            if len(stretch) > 1:
                one, *_, other = stretch
                yield Change(one.last, other.first, sum(each.step for each in stretch), one.begin, other.end)
            stretch = []
        if goes_on:
            stretch.append(step)


def settled(codes: np.ndarray) -> np.ndarray:
    """For each position of each row, the latest code that came twice in succession until then; before any, the first.

    Rows end together; a shorter one begins with -1. A code that came once and went, as of a flaky status, is none.
    """
    levels = np.empty_like(codes)
    level = np.full(len(codes), -1, codes.dtype)
    for number in range(codes.shape[1]):
        now = codes[:, number]
        again = np.zeros(len(codes), bool)
        for neighbour in (number - 1, number + 1):
            if 0 <= neighbour < codes.shape[1]:
                again |= codes[:, neighbour] == now
        level = np.where((again | (level < 0)) & (now >= 0), now, level)
        levels[:, number] = level
    return levels
