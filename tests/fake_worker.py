"""A stand-in for `python -m timmgate.worker` that needs no torch: the same arguments and messages, any ending on request.

TIMMGATE_WORKER names this file to the supervisor. FAKE_WORKER says in JSON what happens in which cell, by "mode/model", by
"model", or by "*": words separated by spaces, each a key of `ACTIONS` with an argument and a place, as in

    sleep:0.5@eager signal:SIGSEGV@compile      raise@eager2      family@load hang@end      fail_accuracy

where a place is a stage, a stage's second visit, or `end`, which is after the result. Those of the performance check have
its name in front, as in `performance.timing`. A cell without words passes.
FAKE_WORKER_JOURNAL is a file to which every start and every further process appends a line of JSON with its process id; a
file beside it, with `.hung` at the end, has the process ids of those that hang.
To the question whether a request is possible it says yes; FAKE_PREFLIGHT is a sentence that says why not, or `hang`.
FAKE_UNKNOWN has the models that there are not, with commas, and FAKE_DEVICES is how many devices there are.
FAKE_COMPILED_S are the seconds of a compiled iteration, and FAKE_SCATTER is how much processes differ, relative.
FAKE_DIAGNOSIS says in JSON how trials of a diagnosis end, by the name of the variant: a status, `signal:SIGSEGV` or `hang`;
all others end like that of `*`, by default with fail_accuracy. Its `module` is the one that a search of modules finds.
Of studies it knows that for the script of a cell: its answer fits any model, and its files are empty.
"""

import contextlib
import faulthandler
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from timmgate.core.diagnosis import TRIAL, TrialRequest
from timmgate.core.preflight import Answer, Question
from timmgate.core.protocol import Reporter, Request
from timmgate.core.schemas import STATUSES
from timmgate.core.spec import Spec
from timmgate.core.study import StudyRequest
from timmgate.system import gpus, timing_turns
from timmgate.system.process_tree import die_with_parent

COMPILING = ("compile", "run", "compile", "run", "compare")
STAGES = {
    "accuracy": ("import", "load", "reference", "eager", "eager", *COMPILING, "null_runs"),
    "performance": ("import", "load", "eager", *COMPILING, "warmup", "queue", "timing"),
}
FIGURES = {"FAKE_COMPILED_S": "0.1", "FAKE_SCATTER": "0.0003"}
FOREVER_S = 600
PATIENCE_S = 300


class Run:
    """The checks of a cell, on the way to their end."""

    def __init__(self, request: Request, reporter: Reporter):
        self.request, self.reporter, first = request, reporter, request.specs[0]
        self.cell = f"{first.mode}/{first.model}"
        behaviours = json.loads(os.environ.get("FAKE_WORKER", "{}"))
        self.words = next((behaviours[key] for key in (self.cell, first.model, "*") if key in behaviours), "").split()
        self.alone, self.memory = contextlib.ExitStack(), []
        acme = {name: text for name, text in os.environ.items() if name.startswith("ACME_")}
        cores = sorted(os.sched_getaffinity(0))
        journal(cell=self.cell, request=sys.argv[1], gpu=os.environ.get(gpus.VISIBLE), acme=acme, cores=cores)

    def measure(self, spec: Spec) -> None:
        self.reporter.check(spec.check)
        prefix, visits = "" if spec.check == "accuracy" else f"{spec.check}.", Counter()
        batch_size = self.request.batch_size(spec)
        for stage in STAGES[spec.check]:
            visits[stage] += 1
            if stage == "timing":
                own_name = gpus.own_name(spec.device, self.request.device_number)
                self.goes_on = self.alone.enter_context(timing_turns.alone(own_name, self.request.turns))
            self.reporter.stage(stage)
            if stage == "null_runs":
                self.reporter.result_so_far(*self.verdict, details=self.evidence)
            self.act(prefix + (stage if visits[stage] == 1 else f"{stage}{visits[stage]}"))
            if stage == "load":
                self.reporter.columns(device_name="a fake", batch_size=batch_size, input_size=[3, 4, 4])
        if self.request.turns:
            while self.goes_on(True):
                pass
        self.alone.close()
        getattr(self, spec.check)()
        self.act(f"{prefix}end")

    def accuracy(self) -> None:
        for leaf in self.evidence:
            self.reporter.detail(leaf)
        self.reporter.columns(reference="fp64", leaves=2, leaves_failed=int(self.fails), worst_leaf="output.1")
        self.reporter.result(*self.verdict)

    @property
    def fails(self) -> bool:
        return "fail_accuracy" in self.words

    @property
    def verdict(self) -> tuple[str, str | None, str | None]:
        return ("fail_accuracy", "comparison", "1 of 2 tensors differ") if self.fails else ("pass", None, None)

    @property
    def evidence(self) -> list[dict]:
        errors = {"output.0": 1e-4, "output.1": 2e-3 if self.fails else 1e-4}
        return [{"leaf": leaf, "kind": "output", "shape": [8, 10], "max_abs_error": errors[leaf]} for leaf in errors]

    def performance(self) -> None:
        compiled_s, scatter = (float(os.environ.get(name, usual)) for name, usual in FIGURES.items())
        noise = random.Random(os.getpid()).gauss(1, scatter)
        own = noise if self.request.turns else 1.0  # of what is no ratio
        for block in range(5):
            times = {"block": block, "eager_s": 0.2, "compiled_s": compiled_s * own}
            for eager_first in (True, False):
                self.reporter.detail({**times, "eager_first": eager_first})
        self.reporter.columns(eager_ms=200.0 * noise, compiled_ms=1e3 * compiled_s * noise, compile_warm_cpu_s=2.0 * noise)
        self.reporter.columns(compiled_peak_bytes=1000, compiled_allocated_bytes=900, timed_output_ok=True)
        self.reporter.columns(compile_cold_s=20.0, compile_warm_s=1.0, compression_ratio=1.5, graph_breaks=0)
        self.reporter.result("pass")

    def act(self, place: str) -> None:
        """Do what the words say for this place."""
        for word in self.words:
            action, _, where = word.partition("@")
            if where == place:
                self.place = place
                name, _, argument = action.partition(":")
                ACTIONS[name](self, *filter(None, [argument]))

    def write(self, raw: bytes) -> None:
        """Write to the supervisor without the reporter."""
        os.write(self.request.messages, raw)


def journal(**entry: object) -> None:
    """Append a line about this process to the journal, in one write."""
    if path := os.environ.get("FAKE_WORKER_JOURNAL"):
        where = {"pid": os.getpid(), "node": os.environ.get("SLURMD_NODENAME")}
        with Path(path).open("a") as file:
            file.write(json.dumps({**where, **entry}) + "\n")


def journalled(key: str) -> list[Any]:
    """What all processes have written into the journal under `key` until now."""
    lines = Path(os.environ["FAKE_WORKER_JOURNAL"]).read_text().split("\n")[:-1]
    return [entry[key] for entry in map(json.loads, lines) if key in entry]


def raise_error(run: Run, message: str = "on%request") -> None:
    raise RuntimeError(message.replace("%", " "))


def raise_memory_error(run: Run) -> None:
    raise MemoryError("out of memory, on request")


def raise_odd_text(run: Run) -> None:
    raise ValueError(
        'first line\nsecond line\twith a tab, a "quote", a byte \udcff of no encoding, [bold]markup[/bold], é\r\n'
    )


def send_signal(run: Run, name: str) -> None:
    os.kill(os.getpid(), signal.Signals[name])


def orphan(run: Run) -> None:
    """Kill the supervisor."""
    os.kill(os.getppid(), signal.SIGKILL)
    hang_here(run)


def dismiss(run: Run) -> None:
    """Ask the supervisor to end, as a cluster does that cancels its job."""
    os.kill(os.getppid(), signal.SIGTERM)
    hang_here(run)


def orphan_once(run: Run) -> None:
    """Kill the supervisor in the first start of this cell."""
    lines = Path(os.environ["FAKE_WORKER_JOURNAL"]).read_text().splitlines()
    if sum(json.loads(line).get("cell") == run.cell for line in lines) == 1:
        orphan(run)


def oom(run: Run, counter: str) -> None:
    """Die as the kernel's out-of-memory killer lets a process die: SIGKILL, and its counter goes up."""
    Path(counter).write_text("low 0\noom 1\noom_kill 1\n")
    send_signal(run, "SIGKILL")


def count(run: Run, counter: str) -> None:
    """Something else is killed by the kernel's out-of-memory killer."""
    Path(counter).write_text("low 0\noom 1\noom_kill 1\n")


def oom_once(run: Run, counter: str) -> None:
    """Die so in the first start of this cell."""
    if journalled("cell").count(run.cell) == 1:
        oom(run, counter)


def flaky(run: Run, starts: str) -> None:
    """Die of SIGKILL in the first so many starts of this cell."""
    if journalled("cell").count(run.cell) <= int(starts):
        send_signal(run, "SIGKILL")


def raise_at_first(run: Run, starts: str) -> None:
    """Raise an exception in the first so many starts of this cell."""
    if journalled("cell").count(run.cell) <= int(starts):
        raise RuntimeError("on request")


def raise_later(run: Run, starts: str) -> None:
    """Raise an exception in every start of this cell after so many."""
    if journalled("cell").count(run.cell) > int(starts):
        raise RuntimeError("on request")


def wait(run: Run, path: str) -> None:
    """Go on when a file is there."""
    while not Path(path).exists():
        time.sleep(0.1)


def tick(run: Run, seconds: str) -> None:
    """Write the time into the journal every 10 ms while it may run, for so many seconds of running."""
    for _ in range(round(100 * float(seconds))):
        journal(tick=run.cell, place=run.place, at=time.monotonic(), gpu=os.environ.get(gpus.VISIBLE))
        time.sleep(0.01)


def meet(run: Run, workers: str) -> None:
    """Wait until so many workers are at this place at once."""
    journal(arrived=run.place)
    deadline = time.monotonic() + PATIENCE_S
    while journalled("arrived").count(run.place) < int(workers):
        if time.monotonic() > deadline:
            raise TimeoutError("no other one came")
        time.sleep(0.01)


def cramped(run: Run, starts: str) -> None:
    """Run out of memory in the first so many starts of this cell."""
    if journalled("cell").count(run.cell) <= int(starts):
        raise MemoryError("out of memory, on request")


def without(run: Run, column: str) -> None:
    """Have no float64 reference or no null runs, for lack of memory, in the first start of this cell."""
    if journalled("cell").count(run.cell) == 1:
        run.reporter.columns(**{column: "OutOfMemoryError: CUDA out of memory. Tried to allocate"})


def small_memory(run: Run, images: str) -> None:
    """Run out of memory if the timed batch is larger."""
    if (run.request.timed_batch_size or 10**6) > int(images):
        raise MemoryError("out of memory, on request")


def allocate(run: Run, megabytes: str) -> None:
    """Occupy memory, 10 MB at a time, and keep it."""
    for _ in range(int(megabytes) // 10):
        run.memory.append(bytearray(os.urandom(1 << 10) * 10_000))
        time.sleep(0.01)


def hang_here(run: Run) -> None:
    if path := os.environ.get("FAKE_WORKER_JOURNAL"):
        with Path(f"{path}.hung").open("a") as file:
            file.write(f"{os.getpid()}\n")
    time.sleep(FOREVER_S)


def linger(run: Run) -> None:
    """Keep the process from ending when it is done."""
    threading.Thread(target=time.sleep, args=[FOREVER_S]).start()


def stubborn(run: Run) -> None:
    """From here on, end of nothing that can be ignored."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def family(run: Run) -> None:
    """Start a stubborn process in the same group and one in a session of its own; both keep the pipe open and have 10 MB."""
    for role, set_apart in (("sibling", lambda: None), ("daemon", os.setsid)):
        reading, writing = os.pipe()
        if os.fork() == 0:
            set_apart()
            stubborn(run)
            run.memory.append(bytearray(os.urandom(1 << 10) * 10_000))
            journal(role=role)
            os.close(writing)
            hang_here(run)
        os.close(writing)
        os.read(reading, 1)  # returns when the child is ready


def chat(run: Run, messages: str) -> None:
    for number in range(int(messages)):
        run.reporter.detail({"leaf": f"gradient.{number}", "kind": "gradient", "message": "x" * 100})


def chatter(run: Run, characters: str) -> None:
    """Print much."""
    for _ in range(int(characters) // 100):
        print("y" * 99)


def print_garbage(run: Run) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.buffer.write(b'\xff\xfe\x00 {"result": {"status": "pass"}}\n\x1b[31m not for you\n')
        stream.flush()


ACTIONS = {
    "raise": raise_error,
    "raise_at_first": raise_at_first,
    "raise_later": raise_later,
    "memory": raise_memory_error,
    "oddity": raise_odd_text,
    "exit": lambda run, code: sys.exit(int(code)),
    "enter": lambda run, stage: run.reporter.stage(stage),
    "_exit": lambda run, code: os._exit(int(code)),
    "signal": send_signal,
    "orphan": orphan,
    "orphan_once": orphan_once,
    "dismiss": dismiss,
    "oom": oom,
    "oom_once": oom_once,
    "count": count,
    "flaky": flaky,
    "sleep": lambda run, seconds: time.sleep(float(seconds)),
    "tick": tick,
    "meet": meet,
    "cramped": cramped,
    "without": without,
    "wait": wait,
    "fits": small_memory,
    "allocate": allocate,
    "hang": hang_here,
    "linger": linger,
    "stubborn": stubborn,
    "family": family,
    "chat": chat,
    "garbage": print_garbage,
    "chatter": chatter,
    "half": lambda run: run.write(b'{"result": {"status": "pa'),
    "broken": lambda run: run.write(b'{"result": "pass\n'),
    "strange": lambda run: run.write(b'[1, 2]\n{"result": {"status": "pass"}, "elapsed_s": 1.0}\n'),
}


def answer(question: Question) -> int:
    """Answer what was asked before any cell is measured."""
    journal(preflight=question.device, models=question.models, modes=sorted(question.modes))
    problem = os.environ.get("FAKE_PREFLIGHT")
    if problem == "hang":
        time.sleep(FOREVER_S)
    problems = [problem] if problem else []
    lacking = {*os.environ.get("FAKE_UNKNOWN", "").split(",")} & {*question.models}
    unknown_models = {model: f"models: this timm has no model {model!r}" for model in lacking}
    devices = int(os.environ.get("FAKE_DEVICES", "1"))
    answer = Answer(problems, unknown_models=unknown_models, devices=devices)
    question.answer.write_text(answer.to_json())
    return 0


def diagnose(request: TrialRequest, reporter: Reporter) -> None:
    """One trial, or the search of modules, which comes to the second one."""
    endings, name = json.loads(os.environ.get("FAKE_DIAGNOSIS", "{}")), request.variant.name
    journal(trial=name, variables=request.variant.variables, known=request.known)
    reporter.check(TRIAL)
    reporter.stage("compile")
    if request.known is not None:
        if "stem" not in request.known:
            reporter.detail({"module": "stem", "module_class": "Stem"})
            reporter.detail({"module": "stem", "ended": "pass"})
        if "blocks.0" not in request.known:
            reporter.detail({"module": "blocks.0", "module_class": "Block"})
    ending = endings.get(name, endings.get("*", "fail_accuracy"))
    if ending.startswith("signal:") and "blocks.0" not in (request.known or ()):
        os.kill(os.getpid(), signal.Signals[ending.removeprefix("signal:")])
    if ending == "hang":
        time.sleep(FOREVER_S)
    if request.known is not None and "module" in endings:
        reporter.columns(module=endings["module"], module_class="Block", direction="forward")
    if request.variant.layer:
        reporter.columns(applications=4, application=f"application {request.variant.applications - 1}")
    reporter.result(ending if ending in STATUSES else "fail_accuracy", None, None)


FACTS = {
    **{"refuses_drop": False, "dtype": "float32", "amp_dtype": None, "arguments": ['inputs["input.0"]'], "keywords": {}},
    **{"in_place": False, "is_tree": False, "has_reference": True, "inductor_config": {}},
}
"""What `timmgate.worker.repro` says of a plain model."""


def prepare_script(request: StudyRequest) -> int:
    """Make the folder of a script, and its files without content."""
    folder = Path(request.options["folder"])
    folder.mkdir(parents=True)
    for name in ("weights", "inputs"):
        (folder / f"{name}.safetensors").touch()
    request.answer.write_text(json.dumps([FACTS]))
    return 0


def main() -> int:
    if sys.argv[1] == "--study":
        return prepare_script(StudyRequest.from_json(sys.argv[2]))
    if sys.argv[1] == "--preflight":
        die_with_parent(signal.SIGKILL)
        return answer(Question.from_json(sys.argv[2]))
    is_trial = sys.argv[1] == "--diagnose"
    request = TrialRequest.from_json(sys.argv[2]) if is_trial else Request.from_json(sys.argv[1])
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if request.messages != sys.stdout.fileno():
        die_with_parent(signal.SIGKILL)
    with os.fdopen(request.messages, "w", closefd=False) as stream:
        reporter = Reporter(stream)
        try:
            if is_trial:
                diagnose(request, reporter)
                return 0
            run = Run(request, reporter)
            for spec in request.specs:
                run.measure(spec)
        except Exception as error:
            traceback.print_exc()
            reporter.failure(type(error).__name__, str(error), isinstance(error, MemoryError))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
