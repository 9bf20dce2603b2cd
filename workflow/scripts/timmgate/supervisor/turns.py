"""One cell timed by two builds in turn, each time in a fresh process, on one device: what a comparison of builds rests on.

A process has its own layout of memory and its own luck, which moves all of its samples alike; so what counts is the scatter
between processes. Their order is A B B A, so that a machine that slows down steadily favours neither build.
"""

import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from timmgate.core.outcome import Outcome
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.supervisor import cell
from timmgate.supervisor.journal import NAME, Journal
from timmgate.system.process_tree import die_with_run, interruptible
from timmgate.weights.record import Weights


def order(processes: int) -> list[int]:
    """Which of two comes when: A B, then B A, and so on, each of them `processes` times."""
    return [side for turn in range(processes) for side in ((0, 1) if turn % 2 == 0 else (1, 0))]


def measure(
    specs: Sequence[Spec], runs: Sequence[RunOptions], weights: Weights | None, log: Path
) -> Iterator[tuple[int, int, Outcome]]:
    """Number of the turn, side and outcome of each process, for two specs with the options that each runs with.

    Once one does not pass there is nothing to compare, and it ends. Each process has a log beside `log`.
    """
    die_with_run(signal.SIGTERM)
    turns, device = [0, 0], None
    for side in order(runs[0].processes):
        own_log = log.with_suffix(f".{specs[side].build}.{turns[side]}.log")
        with interruptible():
            outcome = once(specs[side], runs[side], weights, own_log, device)
        device = outcome.result.device
        yield turns[side], side, outcome
        if outcome.verdict.status != "pass":
            return
        turns[side] += 1


def again(specs: Sequence[Spec], run: RunOptions, weights: Weights | None, log: Path) -> list[tuple[Spec, Outcome]]:
    """What becomes of each of these checks in a fresh process of its own; each has a log beside `log`."""
    die_with_run(signal.SIGTERM)
    with interruptible():
        return [(spec, once(spec, run, weights, log.with_suffix(f".{spec.check}.log"))) for spec in specs]


def once(spec: Spec, run: RunOptions, weights: Weights | None, log: Path, device: str | None = None) -> Outcome:
    """What becomes of a check in a fresh process, with no trace beside its log; on this device, if one is named."""
    failure = weights.failure() if weights else None
    run = replace(run, weights=weights.path if weights else None)
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder, NAME))
        if failure:
            return cell.not_started([spec], failure, log, journal)[0]
        return cell.supervise([spec], run, log, journal, device=device)[0]
