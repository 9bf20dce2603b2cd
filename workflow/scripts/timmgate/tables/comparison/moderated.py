"""Few differences of many cells: is a cell's mean difference real? Student's t with variances that learn from each other.

From a few processes of one cell its variance is hardly known, and the smallest of many estimates are far too small: they
would make most false alarms. The cells of a comparison have variances of one kind, so that each is drawn towards what all
have in common (Smyth 2004, Linear models and empirical Bayes methods, the method of the R package limma).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import digamma, nctdtr, polygamma, stdtr, stdtrit  # scipy.stats takes half a second more to import

FEW_CELLS = 4
"""Cells below which nothing is known of what they have in common: each stands for itself. A choice."""

CERTAIN = 1e6
"""Degrees of freedom of a prior that is as good as known: all cells have the same variance."""


@dataclass(frozen=True)
class Prior:
    """What the variances of all cells have in common: as if `freedom` more differences had shown `variance`.

    It comes from differences with `pooled` degrees of freedom, and can be known no better than these say.
    """

    variance: float = 0.0
    freedom: float = 0.0
    pooled: float = 0.0

    def moderate(self, variance: float, freedom: int) -> tuple[float, float]:
        """A cell's variance drawn towards the prior, and its degrees of freedom."""
        total = self.freedom + freedom
        return (self.freedom * self.variance + freedom * variance) / total, min(total, max(self.pooled, freedom))


@dataclass(frozen=True)
class Test:
    """The mean of a cell's differences, its standard error and degrees of freedom, and the two-sided chance of such a mean
    without any difference.
    """

    mean: float
    error: float
    freedom: float
    p: float

    def interval(self, confidence: float) -> tuple[float, float]:
        """Interval of the mean."""
        half = float(stdtrit(self.freedom, (1 + confidence) / 2)) * self.error
        return self.mean - half, self.mean + half

    def has_power(self, size: float, level: float, power: float) -> bool:
        """Whether a true difference of `size` would have been found at `level` with a chance of at least `power`."""
        if self.error == 0:
            return True
        limit = float(stdtrit(self.freedom, 1 - level / 2))
        return not float(nctdtr(self.freedom, size / self.error, limit)) > 1 - power  # NaN where it is as good as 0


def two_sided(t: float, freedom: float) -> float:
    """The chance that Student's t is as far from 0."""
    return float(2 * stdtr(freedom, -abs(t)))


def prior(variances: Sequence[float], freedoms: Sequence[int]) -> Prior:
    """What the variances of cells with these degrees of freedom have in common.

    Their logarithms scatter by chance, which the degrees of freedom tell; what they scatter more is how much the cells
    differ. Cells of no variance at all say nothing.
    """
    pairs = [(variance, freedom) for variance, freedom in zip(variances, freedoms, strict=True) if variance > 0]
    if len(pairs) < FEW_CELLS:
        return Prior()
    values, halves = np.array([pair[0] for pair in pairs]), np.array([pair[1] for pair in pairs]) / 2
    logs = np.log(values) - digamma(halves) + np.log(halves)
    excess = float(np.var(logs, ddof=1) - np.mean(polygamma(1, halves)))
    half = _inverse_trigamma(excess) if excess > 0 else CERTAIN
    return Prior(float(np.exp(np.mean(logs) + digamma(half) - math.log(half))), 2 * half, float(sum(2 * halves)))


def _inverse_trigamma(value: float) -> float:
    low, high = 1e-6, CERTAIN
    if value <= polygamma(1, high):
        return high
    from scipy.optimize import brentq

    return float(brentq(lambda half: polygamma(1, half) - value, low, high)) if value < polygamma(1, low) else low


def tests(differences: Sequence[Sequence[float]], is_exact: bool = False) -> list[Test | None]:
    """A test for each cell's differences, in their order; None for one with fewer than two.

    Of an exact figure, as bytes that were allocated, a cell without any variance has no noise, whatever other cells have; of
    times that are read off a clock with ticks it may be chance.
    """
    arrays = [np.asarray(each, float) for each in differences]
    known = [each for each in arrays if len(each) > 1]
    common = prior([float(np.var(each, ddof=1)) for each in known], [len(each) - 1 for each in known])
    return [_test(each, common, is_exact) if len(each) > 1 else None for each in arrays]


def _test(values: np.ndarray, common: Prior, is_exact: bool) -> Test:
    own = float(np.var(values, ddof=1))
    variance, freedom = (0.0, len(values) - 1) if is_exact and not own else common.moderate(own, len(values) - 1)
    mean, error = float(np.mean(values)), math.sqrt(variance / len(values))
    if error == 0:
        return Test(mean, 0.0, freedom, 1.0 if mean == 0 else 0.0)
    return Test(mean, error, freedom, two_sided(mean / error, freedom))
