"""One cell timed by two builds side by side: two processes that take turns, a block of iterations each.

    python -m timmgate.supervisor.side_by_side '{"requests": ["{...}", "{...}"], "answer": ...}'

What slows the machine down for a few seconds slows both down, and falls out of their ratio. Between whole processes one
after the other it does not.

The program is to the monitor a worker like others, with the two that it starts in its tree: they are paused, limited and
killed as one. The second starts when the first one waits for its turns, so that nothing is compiled or tuned beside the
other, and both together take no more cores than one. Then the program holds the device for both.
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


def measure(
    specs: Sequence[Spec], runs: Sequence[RunOptions], weights: Path | None, log: Path, device: str | None = None
) -> list[Outcome] | None:
    """What becomes of both; None unless both come to a result. If not, that says nothing about either, and `log` says why.

    Each may take the memory that its options allow, both together the sum. `device` is the name of the only one that they
    may have, if not any of its type. On a GPU they take two slots, if it has them.
    """
    own = [replace(run, weights=weights) for run in runs]
    slots = slot_request(specs[0].device, runs[0])
    if device in slots.devices:
        slots = slots.of(device)
    if specs[0].device != "cpu":
        slots = replace(slots, count=min(len(specs), len(slots.slots)))
    memory_bytes = runs[0].memory_bytes and sum(run.memory_bytes or 0 for run in runs)
    limits = Limits(sum(run.timeout for run in runs), memory_bytes)
    with tempfile.TemporaryDirectory() as folder, CappedLog(log) as stream:
        answer = Path(folder, "sides.json")

        def start(wiring: Wiring) -> list[str]:
            requests = [Request((spec,), run, **asdict(wiring)) for spec, run in zip(specs, own, strict=True)]
            told = {"requests": [request.to_json() for request in requests], "answer": str(answer)}
            return [sys.executable, "-m", "timmgate.supervisor.side_by_side", json.dumps(told)]

        end = run_once(start, slots, limits, stream)
        if not answer.is_file():
            stream.line(f"side by side: {classify(end).as_line}")
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
        self.result = AttemptResult(check=request.specs[0].check)
        self._build, self._buffered = request.specs[0].build, b""
        (self._said, says), (taken, self._gives), (self._answers, answers) = (os.pipe() for _ in range(3))
        for number in (self._said, self._gives, self._answers):
            stack.callback(os.close, number)
        for number in (says, taken, answers):
            os.set_inheritable(number, True)
        self.process = subprocess.Popen(
            worker_command(replace(request, messages=says, turns=(taken, answers))),
            stdin=subprocess.DEVNULL,
            close_fds=False,  # the locks that we have inherited are the worker's too
            env=module_environment(request.run.build.env),
        )
        for number in (says, taken, answers):
            os.close(number)

    def follow(self, until: Callable[[str, Any], bool]) -> None:
        """Take in what it says until a message of a kind and content. Raises TurnsError if it ends before."""
        found = False
        while not found:
            for line in self._lines():
                kind, content, _ = protocol.parse(line)
                self.result.take(kind, content)
                found |= until(kind, content)

    def take_turn(self) -> bool:
        """Let it have one; whether it has enough of them."""
        return timing_turns.give_turn(self._gives, self._answers, self._lives)

    def finish(self) -> None:
        """Let it come to its result without further turns."""
        timing_turns.give_no_more(self._gives)
        self.follow(until=lambda kind, _: kind == "result")

    def _lives(self) -> bool:
        return self.process.poll() is None

    def _lines(self) -> list[bytes]:
        """The next whole lines that it says, which may be none."""
        timing_turns.wait_for(self._said, self._lives)
        if not (chunk := os.read(self._said, 1 << 16)):
            raise TurnsError(f"{self._build} came to no result")
        *lines, self._buffered = (self._buffered + chunk).split(b"\n")
        return lines


def give_turns(sides: Sequence[Side]) -> None:
    """A B, A B, until both have enough. Never two in a row: the second one would find the caches as it left them."""
    in_want = set(sides)
    while in_want:
        for side in sides:
            if side.take_turn():
                in_want.discard(side)
    for side in sides:
        side.finish()


def tell_stacks(sides: Sequence[Side]) -> None:
    """Have them print where they hang."""
    for side in sides:
        side.process.send_signal(signal.SIGUSR1)


def main(arguments: Sequence[str]) -> None:
    """Time both. Raises TurnsError if one of them comes to no result."""
    told = json.loads(arguments[0])
    requests = [Request.from_json(each) for each in told["requests"]]
    first, sides = requests[0], list[Side]()
    die_with_parent(signal.SIGKILL)
    signal.signal(signal.SIGUSR1, lambda *_: tell_stacks(sides))
    assert first.paused is not None
    with os.fdopen(first.messages, "w", closefd=False) as stream, ExitStack() as stack:
        reporter = Reporter(stream, PausedTime(first.paused).clock)
        for request in requests:
            sides.append(side := Side(request, stack))
            side.follow(until=lambda kind, content: (kind, content) == ("stage", READY))
        reporter.stage(READY)
        with exclusive_device(gpus.own_name(first.specs[0].device, first.device_number)):
            reporter.stage("timing")
            give_turns(sides)
        known = ("check", "stage", "columns", "details", "result")
        results = [{name: getattr(side.result, name) for name in known} for side in sides]
        write_text(Path(told["answer"]), json.dumps(results))
        reporter.result("pass")


if __name__ == "__main__":
    main(sys.argv[1:])
