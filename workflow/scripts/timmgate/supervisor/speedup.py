"""Samples to a speedup with an interval and a verdict.

The interval is the wider of two. BCa's bootstrap of the median covers a little less than it promises, the more so as
sampling stops when the interval is narrow: 91 % instead of 95 % in simulation. The interval between two order statistics
covers at least 95 % for independent samples of any distribution, and 94 % to 98 % under that stopping rule. Drift within
a block makes its two samples differ in opposite directions, which widens both.

All samples of a process share its layout in memory and its luck. Where there are several processes, the median of each is
one value, and the interval is Student's over these, but no narrower than that of all samples together.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from timmgate.core.spec import Spec
from timmgate.core.statistics import CONFIDENCE, Sample, log_ratios, order_interval

RESAMPLES = 9_999
"""Of the bootstrap: the default of scipy.stats.bootstrap."""

RESAMPLES_AT_ONCE = 500
"""Bounds the memory of a bootstrap over a thousand models to some MB. A choice."""

VERDICT_SAMPLES = 6
"""Fewest pairs whose range covers the median in 95 % of cases: 1 - 2 / 2^6 is 0.97."""

MIN_NOISE_FLOOR = 0.01
"""Smallest relative difference that counts: criterion.rs's noise threshold."""


@dataclass(frozen=True)
class Estimate:
    """What samples say.

    * `speedup`: exp of the median of log(eager_s / compiled_s), of several processes their mean, with its 95 % interval.
    * `noise_floor`: relative difference of eager from itself that the samples of a process cannot rule out, at least 0.01;
      of several processes the median.
    * `verdict`: faster, slower or same where the whole interval lies above, below or within the noise floor, else
      ambiguous. A slowdown is held against the floor as eager's speedup over compiled. Fewer than 6 samples cannot make
      a 95 % interval and are ambiguous too.
    * `samples`: number of pairs; `timing_processes`: of how many processes.
    """

    speedup: float
    speedup_ci_low: float
    speedup_ci_high: float
    noise_floor: float
    verdict: str
    samples: int
    timing_processes: int


def estimate(spec: Spec, details: list[dict[str, Any]]) -> dict[str, Any]:
    """The columns that follow from the samples of a performance check; none for one that took none.

    The bootstrap's seed is drawn from the identity: the same samples of the same cell give the same interval.
    """
    samples = [Sample(**row) for row in details]
    return asdict(estimate_samples(samples, int(spec.identity()[:8], 16))) if samples else {}


def estimate_samples(samples: Sequence[Sample], seed: int) -> Estimate:
    """Speedup, interval and verdict of the samples of whole blocks, in the order in which they were taken.

    Raises ValueError without samples, and where a block is not whole.
    """
    if not samples or len(samples) % 2:
        raise ValueError(f"{len(samples)} samples are not one or more blocks of two")
    ratios = log_ratios(samples)
    lows, highs = zip(order_interval(ratios), _bootstrap_interval(ratios, np.median, seed), strict=True)
    low, high, value, processes = min(lows), max(highs), float(np.median(ratios)), _by_process(samples)
    if len(processes) > 1:
        value, half_width = _over_processes([float(np.median(log_ratios(each))) for each in processes])
        low, high = min(low, value - half_width), max(high, value + half_width)
    floor = float(np.median([_noise_floor(each) for each in processes]))
    verdict = "ambiguous" if len(samples) < VERDICT_SAMPLES else _verdict(low, high, math.log1p(floor))
    return Estimate(math.exp(value), math.exp(low), math.exp(high), floor, verdict, len(samples), len(processes))


def _by_process(samples: Sequence[Sample]) -> list[list[Sample]]:
    numbers = dict.fromkeys(sample.process for sample in samples)
    return [[sample for sample in samples if sample.process == number] for number in numbers]


def _over_processes(medians: Sequence[float]) -> tuple[float, float]:
    """Mean of a value of each process, and half the width of its interval (Student's)."""
    from scipy import stats

    error = float(np.std(medians, ddof=1)) / math.sqrt(len(medians))
    return float(np.mean(medians)), float(stats.t.ppf((1 + CONFIDENCE) / 2, len(medians) - 1)) * error


def geometric_mean(speedups: Sequence[float], seed: int, floor: float | None = None) -> tuple[float, float, float]:
    """Geometric mean over models, and its 95 % BCa bootstrap interval: value, low, high.

    With `floor` every smaller speedup counts as `floor`, as PyTorch's benchmarks/dynamo count one below 1.0. The
    interval of a single model is that value. Raises ValueError without models.
    """
    if not len(speedups):
        raise ValueError("no speedups")
    clipped = [speedup if floor is None else max(speedup, floor) for speedup in speedups]
    if min(clipped) == max(clipped):
        return clipped[0], clipped[0], clipped[0]
    logs = np.log(clipped)
    low, high = _bootstrap_interval(logs, np.mean, seed)
    return math.exp(np.mean(logs)), math.exp(low), math.exp(high)


def _bootstrap_interval(values: np.ndarray, statistic: Callable, seed: int) -> tuple[float, float]:
    """BCa's interval; the statistic itself at an end that BCa does not define, as when the middle values are equal."""
    value = float(statistic(values))
    if len(values) < 2 or not np.ptp(values):
        return value, value
    from scipy import stats  # here, as it takes half a second, and most processes that import this module need no interval

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        interval = stats.bootstrap(
            (values,),
            statistic,
            n_resamples=RESAMPLES,
            batch=RESAMPLES_AT_ONCE,
            confidence_level=CONFIDENCE,
            method="BCa",
            rng=np.random.default_rng(seed),
        ).confidence_interval
    return float(np.fmin(interval.low, value)), float(np.fmax(interval.high, value))


def _noise_floor(samples: Sequence[Sample]) -> float:
    """How far the interval of the median of log(eager / next eager) reaches from 0; relative.

    The interval is Student's, with the standard error of a median, 1.25 times that of a mean, and the spread from the median
    absolute deviation: of few values an interval of order statistics would be the range, outliers and all. One or three
    steps lie between two eager iterations, so a drift would not cancel as it does in the speedup: eager's steady trend
    (Theil and Sen's, which outliers do not move) is taken off. The sign alternates, so that what befalls every other
    iteration adds up and nothing else does.
    """
    logs = np.log([sample.eager_s for sample in samples])
    if not np.ptp(logs):
        return MIN_NOISE_FLOOR
    from scipy import stats

    first = np.array([sample.eager_first for sample in samples])
    positions = 2 * np.arange(len(samples)) + ~first
    logs -= stats.theilslopes(logs, positions).slope * positions
    ratios = (logs[:-1] - logs[1:]) * (-1.0) ** np.arange(len(logs) - 1)
    error = stats.median_abs_deviation(ratios, scale="normal") * math.sqrt(math.pi / 2 / len(ratios))
    half_width = stats.t.ppf((1 + CONFIDENCE) / 2, len(ratios) - 1) * error if len(ratios) > 1 else 0.0
    return max(MIN_NOISE_FLOOR, math.expm1(abs(np.median(ratios)) + half_width))


def _verdict(low: float, high: float, floor: float) -> str:
    """An interval of log speedups against a floor in the same unit."""
    if low > floor:
        return "faster"
    if high < -floor:
        return "slower"
    return "same" if -floor <= low and high <= floor else "ambiguous"
