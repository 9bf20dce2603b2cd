"""Durations of single iterations to samples, as many as the speedup's interval needs.

Eager and compiled run in turn, in blocks E C C E and C E E C, so that a machine that slows down or speeds up steadily
favours neither. Two neighbours of a block are a pair, and a pair is one sample: the logarithm of eager's duration over
compiled's. The speedup is the median of these, which outliers do not move, so no sample is ever thrown away.

The supervisor makes of them a speedup with its interval (`supervisor.speedup`): that takes scipy.
"""

import operator
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from timmgate.core.statistics import Sample, log_ratios, order_interval

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
    goes_on: Callable[[bool], bool] = operator.not_,
) -> list[Sample]:
    """Run blocks of four iterations until the speedup is known as well as `plan` asks or time allows.

    `eager` and `compiled` run one iteration and return its seconds. `seed` draws which kind of block is first; from then
    on the kinds alternate. `clock` gives seconds and decides about `plan.limit_s` alone. `before_block` is not timed.
    `goes_on` is told after each block whether these are enough, and decides.
    """
    begin, offset = clock(), random.Random(seed).randrange(2)
    samples: list[Sample] = []
    half_widths: dict[int, float] = {}
    is_enough = False
    while not samples or goes_on(is_enough):
        block = len(samples) // 2
        leads = (block + offset) % 2 == 0
        before_block()
        samples += [_pair(eager, compiled, block, leads), _pair(eager, compiled, block, not leads)]
        is_enough = len(samples) >= MAX_SAMPLES or clock() - begin >= plan.limit_s
        if not is_enough and _look_is_due(samples, max(half_widths, default=0)):
            low, high = order_interval(log_ratios(samples))
            half_widths[len(samples)] = (high - low) / 2
            is_enough = half_widths[len(samples)] <= plan.target or _stalled(half_widths)
    return samples


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
