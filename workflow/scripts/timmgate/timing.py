"""Durations of single iterations to samples, samples to a speedup with an interval and a verdict. Knows no models.

Eager and compiled run in turn, in blocks E C C E and C E E C, so that a machine that slows down or speeds up steadily
favours neither. Two neighbours of a block are a pair, and a pair is one sample: the logarithm of eager's duration over
compiled's. The speedup is the median of these, which outliers do not move, so no sample is ever thrown away.

The interval is the wider of two. BCa's bootstrap of the median covers a little less than it promises, the more so as
sampling stops when the interval is narrow: 91 % instead of 95 % in simulation. The interval between two order statistics
covers at least 95 % for independent samples of any distribution, and 94 % to 98 % under that stopping rule. Drift within
a block makes its two samples differ in opposite directions, which widens both.
"""

import math
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
"""Of every interval here: criterion.rs's confidence level."""

RESAMPLES = 9_999
"""Of the bootstrap: the default of scipy.stats.bootstrap."""

RESAMPLES_AT_ONCE = 500
"""Bounds the memory of a bootstrap over a thousand models to some MB. A choice."""

MIN_SAMPLES = 10
"""Pairs before sampling may stop by itself: nvbench's least number of samples."""

MIN_S = 0.5
"""Measured seconds, of both sides, before sampling may stop by itself: nvbench's least time."""

MAX_SAMPLES = 200
"""Pairs after which sampling stops. A choice: where single iterations vary by 4 %, the interval is then +-1 %."""

CHECK_GROWTH = 1.25
"""How many times as many samples there are at a look at the interval as at the look before. A choice: at most 15 looks, of
less than 1 ms each, so that they leave few gaps between iterations and stop few runs by luck."""

STALL_SAMPLES = 40
"""Pairs from which on an interval that no longer narrows ends sampling, as converged noise does in nvbench. A choice: with
fewer, independent noise too fails to narrow the interval over a doubling of the samples in one run of ten."""

VERDICT_SAMPLES = 6
"""Fewest pairs whose range covers the median in 95 % of cases: 1 - 2 / 2^6 is 0.97."""

MIN_NOISE_FLOOR = 0.01
"""Smallest relative difference that counts: criterion.rs's noise threshold."""

WARMUP_ITERATIONS = 3
"""Fewest iterations of a window: the fewest of which a median can leave one outlier out."""

WARMUP_WINDOW_S = 0.1
"""Fewest seconds of a window: pyperf's least time of a value."""

WARMUP_TOLERANCE = 0.05
"""By how much the medians of two windows of a warm model may differ, relative: simplified from pyperf's test of windows."""

WARMUP_WINDOWS = 10
"""Windows after which a model counts as warm in any case. A choice: 1 s where iterations are short."""

WARMUP_LIMIT_S = 10.0
"""Seconds after which, at the end of a window, it does as well. A choice: one window for a model of 4 s, three for 1.2 s."""


@dataclass(frozen=True)
class Plan:
    """How long to sample. `target` is the relative half-width of the speedup's 95 % interval at which sampling stops.

    `limit_s` are the seconds after which it stops in any case; a block that has begun is finished.
    """

    target: float
    limit_s: float


@dataclass(frozen=True)
class Sample:
    """One pair of neighbouring iterations; durations in seconds. `block` numbers the blocks of two pairs from 0."""

    block: int
    eager_first: bool
    eager_s: float
    compiled_s: float


@dataclass(frozen=True)
class Estimate:
    """What samples say.

    * `speedup`: exp of the median of log(eager_s / compiled_s), with its 95 % interval.
    * `noise_floor`: relative difference of eager from itself that the samples cannot rule out, at least 0.01.
    * `verdict`: faster, slower or same where the whole interval lies above, below or within the noise floor, else
      ambiguous. A slowdown is held against the floor as eager's speedup over compiled. Fewer than 6 samples cannot make
      a 95 % interval and are ambiguous too.
    * `samples`: number of pairs.
    """

    speedup: float
    speedup_ci_low: float
    speedup_ci_high: float
    noise_floor: float
    verdict: str
    samples: int


def warm_up(run: Callable[[], float]) -> int:
    """Run iterations until two successive windows agree, or for long enough; return how many were run.

    `run` runs one iteration, of both sides, and returns its seconds.
    """
    windows = [_window(run)]
    while not _settled(windows) and len(windows) < WARMUP_WINDOWS and sum(map(sum, windows)) < WARMUP_LIMIT_S:
        windows.append(_window(run))
    return sum(map(len, windows))


def collect(
    eager: Callable[[], float],
    compiled: Callable[[], float],
    plan: Plan,
    seed: int,
    clock: Callable[[], float] = time.perf_counter,
    before_block: Callable[[], object] = lambda: None,
) -> list[Sample]:
    """Run blocks of four iterations until the speedup is known as well as `plan` asks or time allows.

    `eager` and `compiled` run one iteration and return its seconds. `seed` draws which kind of block is first; from then
    on the kinds alternate. `clock` gives seconds and decides about `plan.limit_s` alone. `before_block` is not timed.
    """
    begin, offset = clock(), random.Random(seed).randrange(2)
    samples: list[Sample] = []
    half_widths: dict[int, float] = {}
    while not samples or (len(samples) < MAX_SAMPLES and clock() - begin < plan.limit_s):
        block = len(samples) // 2
        leads = (block + offset) % 2 == 0
        before_block()
        samples += [_pair(eager, compiled, block, leads), _pair(eager, compiled, block, not leads)]
        if _look_is_due(samples, max(half_widths, default=0)):
            low, high = _order_interval(_log_ratios(samples))
            half_widths[len(samples)] = (high - low) / 2
            if half_widths[len(samples)] <= plan.target or _stalled(half_widths):
                break
    return samples


def estimate(samples: Sequence[Sample], seed: int) -> Estimate:
    """Speedup, interval and verdict of the samples of whole blocks, in the order in which they were taken.

    Raises ValueError without samples, and where a block is not whole.
    """
    if not samples or len(samples) % 2:
        raise ValueError(f"{len(samples)} samples are not one or more blocks of two")
    ratios = _log_ratios(samples)
    lows, highs = zip(_order_interval(ratios), _bootstrap_interval(ratios, np.median, seed), strict=True)
    low, high, floor = min(lows), max(highs), _noise_floor(samples)
    verdict = "ambiguous" if len(samples) < VERDICT_SAMPLES else _verdict(low, high, math.log1p(floor))
    return Estimate(math.exp(np.median(ratios)), math.exp(low), math.exp(high), floor, verdict, len(samples))


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


def _window(run: Callable[[], float]) -> list[float]:
    durations: list[float] = []
    while len(durations) < WARMUP_ITERATIONS or sum(durations) < WARMUP_WINDOW_S:
        durations.append(run())
    return durations


def _settled(windows: list[list[float]]) -> bool:
    if len(windows) < 2:
        return False
    before, now = map(statistics.median, windows[-2:])
    return abs(now - before) <= WARMUP_TOLERANCE * before


def _pair(eager: Callable[[], float], compiled: Callable[[], float], block: int, eager_first: bool) -> Sample:
    if eager_first:
        eager_s, compiled_s = eager(), compiled()
    else:
        compiled_s, eager_s = compiled(), eager()
    return Sample(block, eager_first, eager_s, compiled_s)


def _look_is_due(samples: list[Sample], last_look: int) -> bool:
    if len(samples) < max(MIN_SAMPLES, CHECK_GROWTH * last_look):
        return False
    return sum(sample.eager_s + sample.compiled_s for sample in samples) >= MIN_S


def _stalled(half_widths: dict[int, float]) -> bool:
    """Whether the interval is as wide as it was with at most half the samples. Keys are numbers of samples, ascending."""
    *before, now = half_widths
    if now < STALL_SAMPLES:
        return False
    earlier = [half_widths[samples] for samples in before if 2 * samples <= now]
    return bool(earlier) and half_widths[now] >= earlier[-1]


def _log_ratios(samples: Sequence[Sample]) -> np.ndarray:
    return np.log([sample.eager_s for sample in samples]) - np.log([sample.compiled_s for sample in samples])


def _order_interval(values: np.ndarray) -> tuple[float, float]:
    """The narrowest pair of opposite order statistics that covers the median of any distribution in 95 % of cases.

    How many of n values lie below the median is binomial. With fewer than 6 values it is their range, which covers less.
    """
    rank = max(1, int(stats.binom.ppf((1 - CONFIDENCE) / 2, len(values), 0.5)))
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[-rank])


def _bootstrap_interval(values: np.ndarray, statistic: Callable, seed: int) -> tuple[float, float]:
    """BCa's interval; the statistic itself at an end that BCa does not define, as when the middle values are equal."""
    value = float(statistic(values))
    if len(values) < 2:
        return value, value
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
    first = np.array([sample.eager_first for sample in samples])
    positions = 2 * np.arange(len(samples)) + ~first
    logs = np.log([sample.eager_s for sample in samples])
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
