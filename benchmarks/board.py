"""What the live board costs with many cells: the share of a core that a process takes which shows it and is told of jobs.

    python benchmarks/board.py                    # 10,000 cells, for a minute; best in a terminal, which it then draws on
    python benchmarks/board.py --cells 1000 --seconds 20

No model is measured: jobs begin and end by the clock, eight at a time, two a second; their stage files and journals are
written by another process. Half of the cells count as measured by an earlier run. Prints the share when it is over.
"""

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import deque
from pathlib import Path

from timmgate.report.board import board
from timmgate.report.progress import Plan
from timmgate.supervisor import journal, stages

MODES = (
    *("inference", "inference-amp", "inference-bfloat16", "inference-freezing", "inference-amp-freezing"),
    *("inference-dynamic", "training", "training-amp"),
)
BUILDS = ("release", "nightly")
RUNNING = 8
FAILING = 10
"""Every so many-th cell fails."""

JOB_S = 0.5
"""Time between the ends of two jobs."""

STAGES = ("import", "load", "eager", "compile", "run", "compare", "warmup", "queue", "timing")


def write_journals(cells: list[tuple[str, str, str, str]]) -> None:
    """What supervisors would leave of all cells."""
    for number, cell in enumerate(cells):
        folder = Path("results", *cell)
        folder.mkdir(parents=True)
        status = "pass" if number % FAILING else "fail_accuracy"
        known = {
            "attempt": 1,
            "stage": "compare",
            "cause": "comparison",
            "reason": "1 of 40 tensors differ",
            "wall_s": 20.0,
        }
        ends = [{"event": "ended", "check_name": check, "status": status, **known} for check in ("accuracy", "performance")]
        (folder / journal.NAME).write_text("".join(json.dumps(end) + "\n" for end in ends))


def keep_telling(cells: list[tuple[str, str, str, str]], began_s: float) -> None:
    """Be the supervisors of the cells that run: renew each one's stage twice a second."""
    files = [stages.StageFile(stages.path_of(cell)) for cell in cells]
    while True:
        first = int((time.time() - began_s) / JOB_S)
        for number in range(first, min(first + RUNNING, len(files))):
            files[number].tell("performance", STAGES[int(2 * time.time()) % len(STAGES)], number % 5 == 0)
        time.sleep(0.5)


def show(cells: list[tuple[str, str, str, str]], seconds: float) -> float:
    """Show a board for so long; the share of a core that it took."""
    to_measure = cells[len(cells) // 2 :]
    cost = {model: 1.0 + number % 30 for number, (*_, model) in enumerate(cells)}
    began_s, numbers, running = time.time(), iter(range(len(to_measure))), deque()
    supervisors = multiprocessing.Process(target=keep_telling, args=[to_measure, began_s], daemon=True)
    supervisors.start()
    plan = Plan("cuda", ("accuracy", "performance"), cells, set(to_measure), cost, "strict")
    shown = board(plan, sys.stderr, no_color=False)
    began_cpu_s = time.process_time()
    shown.start()
    while time.time() < began_s + seconds:
        if len(running) == RUNNING:
            shown.finished(running.popleft(), time.time())
        number = next(numbers)
        names = dict(zip(("device", "build", "mode", "model"), to_measure[number], strict=True))
        shown.started(number, "measure", names, time.time())
        running.append(number)
        time.sleep(JOB_S)
    shown.stop()
    share = (time.process_time() - began_cpu_s) / (time.time() - began_s)
    supervisors.terminate()
    return share


def main() -> None:
    """Measure in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    models = [f"model_{number:05}.of_some_tag" for number in range(-(-options.cells // (len(MODES) * len(BUILDS))))]
    cells = [("cuda", build, mode, model) for model in models for build in BUILDS for mode in MODES]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_journals(cells)
        print(f"{len(cells)} cells: {100 * show(cells, options.seconds):.2f} % of a core")


if __name__ == "__main__":
    main()
