"""One cell timed by two builds, each time in fresh processes, on one device: what a comparison of builds rests on.

A process has its own layout of memory and its own luck, which moves all of its samples alike; so what counts is the scatter
between processes. Two run side by side and take turns (`side_by_side`). Where that does not come to a result, as where the
memory does not suffice for two, they run one after the other, A B B A, so that a machine that slows down steadily favours
neither build.
"""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from timmgate.core.outcome import Outcome
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.supervisor import fresh_process, side_by_side
from timmgate.system.process_tree import die_with_run, interruptible
from timmgate.weights.record import Weights


def order(processes: int) -> list[int]:
    """Which of two comes when: A B, then B A, and so on, each of them `processes` times."""
    return [side for turn in range(processes) for side in ((0, 1) if turn % 2 == 0 else (1, 0))]


def measure(
    specs: Sequence[Spec], runs: Sequence[RunOptions], weights: Weights | None, log: Path
) -> Iterator[tuple[int, int, Outcome]]:
    """Number of the turn, side and outcome of each process, for two specs with the options that each runs with.

    The memory that these allow is that of both together. Once one does not pass there is nothing to compare, and it ends.
    Each turn, or each process that runs by itself, has a log beside `log`.
    """
    die_with_run(signal.SIGTERM)
    device = None
    runs = [replace(run, memory_bytes=run.memory_bytes and run.memory_bytes // len(runs)) for run in runs]
    for turn in range(runs[0].processes):
        if not (both := _turn(specs, runs, weights, log.with_suffix(f".{turn}.log"), device, begins=turn % 2)):
            break
        device = both[0].result.device
        yield from ((turn, side, outcome) for side, outcome in enumerate(both))
        if any(outcome.verdict.status != "pass" for outcome in both):
            break
    if device is None:
        yield from _one_after_the_other(specs, runs, weights, log)


def _turn(
    specs: Sequence[Spec],
    runs: Sequence[RunOptions],
    weights: Weights | None,
    log: Path,
    device: str | None,
    begins: int,
) -> Sequence[Outcome]:
    """What becomes of both side by side; nothing if they come to no result.

    Once there was a turn, which gave the device, another one is tried twice. The side `begins` has the first block.
    """
    if weights and weights.failure():
        return ()
    step = -1 if begins else 1
    path = weights.path if weights else None
    for _ in range(1 if device is None else 2):
        with interruptible():
            if both := side_by_side.measure(specs[::step], runs[::step], path, log, device):
                return both[::step]
    return ()


def _one_after_the_other(
    specs: Sequence[Spec], runs: Sequence[RunOptions], weights: Weights | None, log: Path
) -> Iterator[tuple[int, int, Outcome]]:
    turns, device = [0, 0], None
    for side in order(runs[0].processes):
        own_log = log.with_suffix(f".{specs[side].build}.{turns[side]}.log")
        with interruptible():
            outcome = fresh_process.once(specs[side], runs[side], weights, own_log, device)
        device = outcome.result.device
        yield turns[side], side, outcome
        if outcome.verdict.status != "pass":
            return
        turns[side] += 1
