"""Does `snakemake diagnose` name the right layer and the right module? Faults are planted inside the stack, one at a time.

    python benchmarks/diagnosis.py                       # all faults, a line each, then the confusion matrix
    python benchmarks/diagnosis.py guard_* code_relu     # some of them
    python benchmarks/diagnosis.py --show                # which of them the accuracy check sees at all
    python benchmarks/diagnosis.py --summary             # of what is in the file

Trials are forks of a process that has imported torch, not processes of their own as in the workflow: that saves the import.
Results are appended to `--out` as JSON lines; what is in there is not done again.
"""

import argparse
import fnmatch
import json
import os
import selectors
import signal
import statistics
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "workflow" / "scripts"), str(ROOT / "tests")]

from specs import cell  # noqa: E402
from timmgate.core.build import BuildOptions  # noqa: E402
from timmgate.core.diagnosis import LAYERS, TrialRequest  # noqa: E402
from timmgate.core.outcome import AttemptResult, Verdict  # noqa: E402
from timmgate.core.protocol import Reporter, parse  # noqa: E402
from timmgate.core.run_options import RunOptions  # noqa: E402
from timmgate.core.spec import Spec  # noqa: E402
from timmgate.diagnosis import examination, ladder  # noqa: E402
from timmgate.supervisor.capped_log import CappedLog  # noqa: E402
from timmgate.supervisor.classification import classify  # noqa: E402
from timmgate.worker import __main__ as worker  # noqa: E402

BATCH_SIZE = 8
HEALTHY = "none"


def trial(request: TrialRequest, log: CappedLog) -> tuple[AttemptResult, Verdict]:
    """As `supervisor.trial.run`, in a fork of this process."""
    reading, writing = os.pipe()
    began = time.monotonic()
    attempt = AttemptResult(timeout_s=request.run.timeout)
    pid = os.fork()
    if pid == 0:
        child(replace(request, messages=writing), log)
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as stream, selectors.DefaultSelector() as selector:
        selector.register(stream, selectors.EVENT_READ)
        pending = b""
        while time.monotonic() < began + request.run.timeout:
            if not selector.select(1.0):
                continue
            chunk = stream.read(1 << 20)
            if not chunk:
                break
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                take(attempt, *parse(line)[:2])
        else:
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    attempt.returncode = os.waitstatus_to_exitcode(status)
    attempt.wall_s = time.monotonic() - began
    if attempt.returncode == -signal.SIGKILL:
        attempt.returncode = None
    return attempt, classify(attempt)


def take(attempt: AttemptResult, kind: str, content: Any) -> None:
    """Enter a message of the child."""
    if kind == "stage":
        attempt.stage = content
        attempt.visits[content] += 1
    elif kind == "columns":
        attempt.columns.update(content)
    elif kind == "detail":
        attempt.details.append(content)
    elif kind in ("result", "failure"):
        setattr(attempt, kind, content)


def child(request: TrialRequest, log: CappedLog) -> None:
    """The trial itself; it does not return."""
    code = 1
    try:
        for number in (1, 2):
            os.dup2(log._file.fileno(), number)
        os.environ.update({**request.run.build.env, **request.variant.variables})
        worker.set_environment(request.run.threads, request.run.cache)
        with os.fdopen(request.messages, "w", closefd=False) as stream:
            reporter = Reporter(stream)
            try:
                plant(request)
                worker.diagnose(request, reporter)
                code = 0
            except BaseException as error:
                traceback.print_exc()
                reporter.failure(type(error).__name__, str(error), worker.is_out_of_memory(error))
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def plant(request: TrialRequest) -> None:
    """Break the torch of this process, and let its bisector see the environment as if it was imported now."""
    from torch._inductor import compiler_bisector

    from timmgate.worker.faults import stack

    compiler_bisector.get_env_val.cache_clear()
    compiler_bisector.CompilerBisector.bisection_enabled = compiler_bisector.get_is_bisection_enabled()
    name = request.run.build.env.get(stack.VARIABLE, HEALTHY)
    if name != HEALTHY:
        stack.FAULTS[name].apply()


def patient(fault: Any, folder: Path, timeout: int) -> examination.Patient:
    """A cell that has the fault."""
    spec: Spec = cell(model=fault.model, options=fault.options, threads=2).spec(fault.check)
    build = BuildOptions(env={"TIMMGATE_STACK_FAULT": fault.name}, import_=["timmgate.worker.faults.stack"])
    run = RunOptions(threads=2, cache=folder / "cache", build=build, timeout=timeout)
    return examination.Patient(spec, BATCH_SIZE, run, folder / fault.name, folder / fault.name / "logs")


def shows(fault: Any, folder: Path, timeout: int) -> dict[str, Any]:
    """Whether a cell with the fault fails at all."""
    trials = examination.Trials(patient(fault, folder, timeout))
    row = trials._run(ladder.REPEAT)
    return {name: row.get(name) for name in ("status", "cause", "message", "strict", "strict_margin", "raised_in", "wall_s")}


def diagnosed(fault: Any, folder: Path, timeout: int, places: bool) -> dict[str, Any]:
    """What is found, and what it took."""
    trials = examination.Trials(patient(fault, folder, timeout))
    found = trials.follow(ladder.search(trials._patient.spec.options))
    tried = [(row["variant"], row["ended"], round(row["wall_s"], 1)) for row in trials.rows]
    place = {} if not places or found.layer in examination.NOWHERE else trials.place(found.variant)
    trials.forget()
    seconds = {"first_s": trials.rows[0]["wall_s"], "all_s": sum(row["wall_s"] for row in trials.rows)}
    about = {"layer": found.layer, "switch": found.switch, "application": found.application, "conditions": found.conditions}
    return {**about, **place, **seconds, "trials": tried}


def in_turn(faults: dict[str, Any]) -> list[Any]:
    """One fault of each layer after the other, those that show without a backward pass first."""
    seen: Counter[str] = Counter()
    turns = {}
    for fault in sorted(faults.values(), key=lambda fault: bool(fault.options.get("training"))):
        turns[fault.name] = seen[fault.layer]
        seen[fault.layer] += 1
    return sorted(faults.values(), key=lambda fault: (bool(fault.options.get("training")), turns[fault.name]))


def summary(rows: list[dict[str, Any]]) -> None:
    """The confusion matrix, modules and cost."""
    from timmgate.worker.faults.stack import FAULTS

    rows = [row for row in rows if row["fault"] in FAULTS]
    truth = {row["fault"]: FAULTS[row["fault"]].layer for row in rows}
    layers = [layer for layer in LAYERS if layer in {*truth.values(), *(row["layer"] for row in rows)}]
    print(f"\n{'is, below; found':20}" + "".join(f"{layer[:11]:>12}" for layer in layers))
    for layer in layers:
        found = Counter(row["layer"] for row in rows if truth[row["fault"]] == layer)
        right = f"{found[layer]} of {found.total()}" if found else ""
        print(f"{layer:20}" + "".join(f"{found[other] or '.':>12}" for other in layers) + f"   {right}")
    right = sum(row["layer"] == truth[row["fault"]] for row in rows)
    placed = [row for row in rows if FAULTS[row["fault"]].module and "module" in row]
    at_home = sum(row.get("module") == FAULTS[row["fault"]].module for row in placed)
    print(f"\nlayer right: {right} of {len(rows)}; module right: {at_home} of {len(placed)} faults with a known place")
    counts = [len(row["trials"]) for row in rows]
    costs = [row["all_s"] / row["first_s"] for row in rows]
    print(f"trials: median {statistics.median(counts)}, most {max(counts)}")
    print(f"cost over that of the first trial, with the search of modules: median {statistics.median(costs):.1f}")


def main() -> None:
    """Diagnose, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", default=["*"], help="names or globs")
    parser.add_argument("--show", action="store_true", help="one trial each: does the check see it?")
    parser.add_argument("--layers-only", action="store_true", help="do not search modules and settings")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir(), "timmgate_diagnosis.jsonl"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "timmgate_diagnosis"))
    parser.add_argument("--timeout", type=int, default=300)
    options = parser.parse_args()
    worker.set_environment(2, options.folder / "cache")
    import timmgate.worker.diagnose  # noqa: F401
    from timmgate.worker.faults.stack import FAULTS

    examination.trial.run = trial
    done = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.is_file() else []
    known = {row["fault"] for row in done}
    if options.layers_only:
        ladder.CODE_GENERATION = ladder.CODE_GENERATION[:1]
    for fault in in_turn(FAULTS):
        if options.summary or fault.name in known or not any(fnmatch.fnmatch(fault.name, each) for each in options.faults):
            continue
        about = fault, options.folder, options.timeout
        found = shows(*about) if options.show else diagnosed(*about, not options.layers_only)
        print(json.dumps({"fault": fault.name, "is": fault.layer, **found}), flush=True)
        if not options.show:
            done.append({"fault": fault.name, **found})
            with options.out.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
    if not options.show and done:
        summary(done)


if __name__ == "__main__":
    main()
