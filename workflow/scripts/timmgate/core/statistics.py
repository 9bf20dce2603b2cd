"""Arithmetic of paired durations that worker and supervisor have in common. Needs numpy alone."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95
"""Of every interval here: criterion.rs's confidence level."""


@dataclass(frozen=True)
class Sample:
    """One pair of neighbouring iterations; durations in seconds. `block` numbers a process's blocks of two pairs from 0."""

    block: int
    eager_first: bool
    eager_s: float
    compiled_s: float
    process: int = 0


def figures(
    eager_s: Sequence[float], compiled_s: Sequence[float], images: float | None, cold_s: float | None
) -> dict[str, float | None]:
    """The columns that follow from durations in seconds of each side: medians and outer tenths, throughput, break-even.

    `images` is how many one iteration sees, and `cold_s` the duration of the cold compile; None is unknown.
    """
    eager, compiled = statistics.median(eager_s), statistics.median(compiled_s)
    return {
        **_percentiles_ms("eager", eager_s),
        **_percentiles_ms("compiled", compiled_s),
        "eager_images_per_s": images and images / eager,
        "images_per_s": images and images / compiled,
        "break_even_iterations": cold_s / (eager - compiled) if cold_s is not None and eager > compiled else None,
    }


def _percentiles_ms(side: str, durations_s: Sequence[float]) -> dict[str, float]:
    tenths = statistics.quantiles(durations_s, n=10, method="inclusive")
    values = {"": statistics.median(durations_s), "p10_": tenths[0], "p90_": tenths[-1]}
    return {f"{side}_{name}ms": 1e3 * value for name, value in values.items()}


def log_ratios(samples: Sequence[Sample]) -> np.ndarray:
    """log(eager_s / compiled_s) of each sample, shape (samples,), no unit."""
    return np.log([sample.eager_s for sample in samples]) - np.log([sample.compiled_s for sample in samples])


def ratios_by_block(own: Sequence[Sample], other: Sequence[Sample]) -> dict[str, float]:
    """Durations over those of another process that took turns: medians over the blocks that both had, of which each is a
    geometric mean. Of eager, of compiled, and of compiled over eager.
    """
    blocks = min(len(own), len(other)) // 2
    logs = np.log([[[s.eager_s, s.compiled_s] for s in samples[: 2 * blocks]] for samples in (own, other)])
    ours, others = logs.reshape(2, blocks, 2, 2).mean(axis=2)
    eager, compiled = (ours - others).T
    of_figure = {"eager_ratio": eager, "compiled_ratio": compiled, "relative_ratio": compiled - eager}
    return {name: math.exp(np.median(values)) for name, values in of_figure.items()}


def order_interval(values: np.ndarray) -> tuple[float, float]:
    """The narrowest pair of opposite order statistics that covers the median of any distribution in 95 % of cases.

    How many of n values lie below the median is binomial. With fewer than 6 values it is their range, which covers less.
    """
    rank = max(1, _binomial_quantile((1 - CONFIDENCE) / 2, len(values)))
    ordered = np.sort(values)
    return float(ordered[rank - 1]), float(ordered[-rank])


def _binomial_quantile(share: float, trials: int) -> int:
    """The smallest number of successes, at even chances, that at least this share of experiments does not exceed."""
    below, number = math.comb(trials, 0), 0
    while below < share * 2**trials:
        number += 1
        below += math.comb(trials, number)
    return number
