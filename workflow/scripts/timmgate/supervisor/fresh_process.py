"""Checks of one cell once more, each in a fresh process that leaves no trace beside its log."""

import signal
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from timmgate.core.outcome import Outcome
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.supervisor import cell
from timmgate.supervisor.journal import NAME, Journal
from timmgate.system.process_tree import die_with_run, interruptible
from timmgate.weights.record import Weights


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
