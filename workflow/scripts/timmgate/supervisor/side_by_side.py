"""One cell timed by two builds side by side: two processes that take turns, a block of iterations each.

    python -m timmgate.supervisor.side_by_side '{"requests": [{...}, {...}], "answer": ...}'

What slows the machine down for a few seconds slows both down, and falls out of their ratio. Between whole processes one
after the other it does not.

The program is to the monitor a worker like others, with the two that it starts in its tree: they are paused, limited and
killed as one. It holds the device for both.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from timmgate import module_environment
from timmgate.core import protocol
from timmgate.core.files import write_text
from timmgate.core.outcome import AttemptResult, Outcome
from timmgate.core.protocol import Reporter, Request
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.core.statistics import Sample, ratios_by_block
from timmgate.supervisor.capped_log import CappedLog
from timmgate.supervisor.cell import slot_request, worker_command
from timmgate.supervisor.classification import classify
from timmgate.supervisor.monitor import Limits, Wiring, run_once
from timmgate.system import gpus, timing_turns
from timmgate.system.process_tree import die_with_parent
from timmgate.system.timing_lock import PausedTime, exclusive_device
from timmgate.system.timing_turns import TurnsError

READY = "queue"
"""Stage in which a worker waits for its first turn."""


def measure(specs: Sequence[Spec], runs: Sequence[RunOptions], weights: Path | None, log: Path) -> list[Outcome] | None:
    """What becomes of both; None unless both come to a result. If not, that says nothing about either by itself.

    Each has cores of its own, as far as there are enough, and half of the memory.
    """
    own = [replace(run, weights=weights, memory_bytes=run.memory_bytes and run.memory_bytes // 2) for run in runs]
    with tempfile.TemporaryDirectory() as folder, CappedLog(log) as stream:
        answer = Path(folder, "sides.json")

        def start(wiring: Wiring) -> list[str]:
            requests = [Request((spec,), run, **asdict(wiring)) for spec, run in zip(specs, own, strict=True)]
            told = {"requests": [request.to_json() for request in requests], "answer": str(answer)}
            return [sys.executable, "-m", "timmgate.supervisor.side_by_side", json.dumps(told)]

        slots = slot_request(specs[0].device, replace(runs[0], threads=len(runs) * runs[0].threads))
        end = run_once(start, slots, Limits(runs[0].timeout, runs[0].memory_bytes), stream)
        if not answer.is_file():
            return None
        results = [AttemptResult(**side) for side in json.loads(answer.read_text(encoding="utf-8"))]
    for result in results:
        result.started_at, result.wall_s, result.device, result.returncode = end.started_at, end.wall_s, end.device, 0
    one, two = ([Sample(**detail) for detail in result.details] for result in results)
    results[0].columns.update(ratios_by_block(one, two))
    results[1].columns.update(ratios_by_block(two, one))
    return [Outcome(result, classify(result), attempt=1, wall_s=end.wall_s) for result in results]


class Side:
    """One of the two workers: what it says, and its turns."""

    def __init__(self, request: Request, stack: ExitStack):
        self.result = AttemptResult(check=request.specs[0].check, stage="timing")
        self._build = request.specs[0].build
        said, (taken, self._gives), (self._answers, answered) = os.pipe(), os.pipe(), os.pipe()
        of_worker = taken, answered, said[1]
        for number in of_worker:
            os.set_inheritable(number, True)
        own = replace(request, messages=said[1], turns=(taken, answered))
        subprocess.Popen(
            worker_command(own),
            stdin=subprocess.DEVNULL,
            close_fds=False,  # the locks that we have inherited are the worker's too
            env=module_environment(request.run.build.env),
        )
        for number in of_worker:
            os.close(number)
        self._said = stack.enter_context(os.fdopen(said[0], "rb"))

    def follow(self, until: Callable[[str, Any], bool]) -> None:
        """Take in what it says until a message of a kind and content. Raises TurnsError if it ends before."""
        result = self.result
        for line in self._said:
            kind, content, _ = protocol.parse(line)
            match kind:
                case "columns":
                    result.columns.update(content)
                case "detail":
                    result.details.append(content)
                case "result":
                    result.result = content
            if until(kind, content):
                return
        raise TurnsError(f"{self._build} came to no result")

    def take_turn(self) -> bool:
        """Let it have one; whether it has enough of them."""
        return timing_turns.give_turn(self._gives, self._answers)

    def finish(self) -> None:
        """Let it come to its result without further turns."""
        timing_turns.give_no_more(self._gives)
        self.follow(until=lambda kind, _: kind == "result")


def give_turns(sides: Sequence[Side]) -> None:
    """A B, A B, until both have enough. Never two in a row: the second one would find the caches as it left them."""
    in_want = set(sides)
    while in_want:
        for side in sides:
            if side.take_turn():
                in_want.discard(side)
    for side in sides:
        side.finish()


def main(arguments: Sequence[str]) -> None:
    """Time both. Raises TurnsError if one of them comes to no result."""
    told = json.loads(arguments[0])
    requests = [Request.from_json(each) for each in told["requests"]]
    first = requests[0]
    die_with_parent(signal.SIGKILL)
    assert first.paused is not None
    with os.fdopen(first.messages, "w", closefd=False) as stream, ExitStack() as stack:
        reporter = Reporter(stream, PausedTime(first.paused).clock)
        sides = [Side(request, stack) for request in requests]
        for side in sides:
            side.follow(until=lambda kind, content: (kind, content) == ("stage", READY))
        reporter.stage(READY)
        with exclusive_device(gpus.own_name(first.specs[0].device, first.device_number)):
            reporter.stage("timing")
            give_turns(sides)
        known = ("check", "stage", "columns", "details", "result")
        write_text(
            Path(told["answer"]), json.dumps([{name: getattr(side.result, name) for name in known} for side in sides])
        )
        reporter.result("pass")


if __name__ == "__main__":
    main(sys.argv[1:])
