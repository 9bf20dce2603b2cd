"""Does `snakemake diagnose` name the right layer and module, and do scripts fail as cells do? Faults are planted
inside the stack, one at a time.

    python benchmarks/diagnosis.py                       # all steps of all faults, a line each, then the confusion matrix
    python benchmarks/diagnosis.py guard_* code_relu     # some of them
    python benchmarks/diagnosis.py --steps show,layer,place   # without the scripts
    python benchmarks/diagnosis.py --summary             # of what is in the file

Trials are forks of a process that has imported torch, not processes of their own as in the workflow: that saves the import.
Scripts run in fresh processes, once with the fault and once without. Results are appended to `--out` as JSON lines; what is
in there is not done again.
"""

import argparse
import fnmatch
import json
import os
import re
import selectors
import signal
import statistics
import subprocess
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

import specs  # noqa: E402
from timmgate.core.build import BuildOptions  # noqa: E402
from timmgate.core.diagnosis import LAYERS, TrialRequest  # noqa: E402
from timmgate.core.outcome import AttemptResult, Verdict  # noqa: E402
from timmgate.core.protocol import Reporter, parse  # noqa: E402
from timmgate.core.run_options import RunOptions  # noqa: E402
from timmgate.core.spec import Spec  # noqa: E402
from timmgate.diagnosis import examination, ladder, script  # noqa: E402
from timmgate.diagnosis.examination import FailedCell  # noqa: E402
from timmgate.diagnosis.ladder import Finding  # noqa: E402
from timmgate.supervisor.capped_log import CappedLog  # noqa: E402
from timmgate.supervisor.classification import classify  # noqa: E402
from timmgate.worker import __main__ as worker  # noqa: E402

BATCH_SIZE = 8
HEALTHY = "none"


Row = dict[str, Any]


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
                attempt.take(*parse(line)[:2])
        else:
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    attempt.returncode = os.waitstatus_to_exitcode(status)
    attempt.wall_s = time.monotonic() - began
    if attempt.returncode == -signal.SIGKILL:
        attempt.returncode = None
    return attempt, classify(attempt)


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


def failed_cell(fault: Any, folder: Path, timeout: int, known: Row | None = None) -> FailedCell:
    """A cell that has the fault; how it fails is known after the first step."""
    spec: Spec = specs.cell(model=fault.model, options=fault.options, threads=2).spec(fault.check)
    build = BuildOptions(env={"TIMMGATE_STACK_FAULT": fault.name}, import_=["timmgate.worker.faults.stack"])
    run = RunOptions(threads=2, cache=folder / "cache", build=build, timeout=timeout)
    cause = examination.what_ended(known["status"], known["cause"]) if known else None
    return FailedCell(spec, BATCH_SIZE, run, folder / fault.name, folder / fault.name / "logs", cause=cause)


def shown(fault: Any, folder: Path, timeout: int, _: Row) -> Row:
    """How a cell with the fault fails."""
    row = examination.Trials(failed_cell(fault, folder, timeout))._run(ladder.REPEAT)
    return {name: row.get(name) for name in ("status", "cause", "message", "strict", "strict_margin", "raised_in")}


def layer(fault: Any, folder: Path, timeout: int, known: Row) -> Row:
    """Which layer is found, and what it took."""
    cell = failed_cell(fault, folder, timeout, known)
    trials = examination.Trials(cell)
    found = trials.follow(ladder.search(cell.spec.options))
    tried = [(row["variant"], row["ended"], round(row["wall_s"], 1)) for row in trials.rows]
    examination.forget(cell)
    seconds = {"first_s": trials.rows[0]["wall_s"], "all_s": sum(row["wall_s"] for row in trials.rows)}
    about = {"layer": found.layer, "switch": found.switch, "application": found.application, "conditions": found.conditions}
    return {**about, **seconds, "trials": tried}


def place(fault: Any, folder: Path, timeout: int, known: Row) -> Row:
    """Which module is found, with the least that fails."""
    if not fault.module:
        return {"module": None, "place_s": 0.0}
    cell = failed_cell(fault, folder, timeout, known)
    trials = examination.Trials(cell)
    found = trials.place(Finding(known["layer"], variant=LEAST.get(known["layer"], ladder.REPEAT)))
    examination.forget(cell)
    return {**found, "place_s": trials.rows[0]["wall_s"]}


def scripts(fault: Any, folder: Path, timeout: int, known: Row) -> Row:
    """How the scripts of the cell and of its module end: with the fault, and without it."""
    cell = failed_cell(fault, folder, timeout)
    is_wrong = known["status"] == "fail_accuracy"
    rule = ("strict" if fault.check == "accuracy" else "timed") if is_wrong else None
    case = script.Case(cell.spec, BATCH_SIZE, rule, known["message"], limit=script.AS_LARGE_AS_ITSELF)
    modules = {"script": None, **({"module_script": known["module"]} if known.get("module") else {})}
    ends = {}
    for name, module in modules.items():
        path = script.write(case, cell.run, None, cell.folder / name, folder / f"{fault.name}.{name}.log", module)
        ends[name] = ending(path, known if is_wrong or not module else {**known, "status": None}, timeout)
        healthy = path.with_name("healthy.py")
        healthy.write_text(path.read_text().replace(repr(fault.name), repr("")))
        ends[f"healthy_{name}"] = ending(healthy, known, timeout)
    return ends


def ending(path: Path, known: Row, timeout: int) -> str:
    """`fail` if a script ends as a cell that is known did, `pass`, or how else."""
    try:
        done = subprocess.run([sys.executable, path], capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return "fail" if known["status"] == "timeout" else "hang"
    if done.returncode == 0:
        return "pass"
    if known["status"] == "fail_accuracy":
        is_same = " is off from " in done.stdout
    elif done.returncode < 0:
        is_same = known["cause"] == signal.Signals(-done.returncode).name
    else:
        is_same = re.search(rf"^([\w.]+\.)?{known['cause']}\b", done.stderr, re.MULTILINE) is not None
    return "fail" if is_same else f"{done.returncode} {done.stderr.strip()[-300:]}"


LEAST = {
    **dict.fromkeys(("guards", "capture"), ladder.DYNAMO),
    "aot_autograd": ladder.AOT,
    **dict.fromkeys(("decompositions", "partitioner"), ladder.DECOMPOSED),
}
"""By layer, the least that fails: as a search finds it."""

STEPS = {"show": (shown, "status"), "layer": (layer, "layer"), "place": (place, "place_s"), "script": (scripts, "script")}
"""What is done for each fault, in this order, and a result that says that it was done. The others need the first."""


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
    at_home = sum(row["module"] == FAULTS[row["fault"]].module for row in placed)
    print(f"\nlayer right: {right} of {len(rows)}; module right: {at_home} of {len(placed)} faults with a known place")
    for name in ("script", "module_script"):
        run = [row for row in rows if name in row]
        fails, passes = sum(row[name] == "fail" for row in run), sum(row[f"healthy_{name}"] == "pass" for row in run)
        print(f"{name}: ends as the cell in {fails} of {len(run)}, and without the fault well in {passes}")
    counts = [len(row["trials"]) for row in rows]
    costs = [(row["all_s"] + row["place_s"]) / row["first_s"] for row in rows if "place_s" in row]
    print(f"trials: median {statistics.median(counts)}, most {max(counts)}")
    if costs:
        print(f"cost over that of the first trial, with the search of modules: median {statistics.median(costs):.1f}")


def main() -> None:
    """Diagnose, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faults", nargs="*", default=["*"], help="names or globs")
    parser.add_argument("--steps", default=",".join(STEPS), help="which of these")
    parser.add_argument("--summary", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir(), "timmgate_diagnosis.jsonl"))
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "timmgate_diagnosis"))
    parser.add_argument("--timeout", type=int, default=300)
    options = parser.parse_args()
    worker.set_environment(2, options.folder / "cache")
    import timmgate.worker.diagnose  # noqa: F401
    from timmgate.worker.faults.stack import FAULTS

    examination.trial.run = trial
    known: dict[str, Row] = {}
    for line in options.out.read_text().splitlines() if options.out.is_file() else []:
        row = json.loads(line)
        known[row["fault"]] = known.get(row["fault"], {}) | row
    wanted = [fault for fault in in_turn(FAULTS) if any(fnmatch.fnmatch(fault.name, each) for each in options.faults)]
    for fault in wanted if not options.summary else []:
        for step in options.steps.split(","):
            do, result = STEPS[step]
            row = known.setdefault(fault.name, {"fault": fault.name})
            if result in row:
                continue
            found = {"fault": fault.name, **do(fault, options.folder, options.timeout, row)}
            row |= found
            print(json.dumps({"is": fault.layer, **found}), flush=True)
            with options.out.open("a") as file:
                file.write(json.dumps(found) + "\n")
    if rows := [row for row in known.values() if "layer" in row]:
        summary(rows)


if __name__ == "__main__":
    main()
