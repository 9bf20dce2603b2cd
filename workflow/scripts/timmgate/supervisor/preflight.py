"""Asks the environment and the device whether what was requested is possible, supervised like a measurement.

    python -m timmgate.supervisor.preflight REQUEST LOG

The answer is in the file that the request names, whatever becomes of the asking.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from timmgate import module_environment
from timmgate.core.files import write_text
from timmgate.core.packages import PHOTOS
from timmgate.core.preflight import Answer, Question
from timmgate.core.run_options import RunOptions
from timmgate.supervisor.capped_log import CappedLog
from timmgate.supervisor.cell import slot_request, worker_program
from timmgate.supervisor.classification import classify
from timmgate.supervisor.monitor import Limits, run_once
from timmgate.system.process_tree import die_with_run, interruptible

if TYPE_CHECKING:
    from timmgate.config.builds import Build
    from timmgate.config.settings import Settings

THREADS = 4
"""Compilers that run at once while the toolchain is built."""


def toolchain_folder(device: str, build: str) -> Path:
    """Where what the compiler builds once per machine lies, relative to the working directory."""
    return Path(".cache", "toolchain", build, device)


def answer_file(device: str, build: str) -> Path:
    """Where a build's answer lies, relative to the working directory. Both may be wildcards in braces."""
    return Path(".cache", "preflight", device, f"{build}.answer.json")


def request(settings: "Settings", build: "Build", models: Sequence[str], threads: int, path: Path) -> None:
    """Write what a build is asked to `path`; an earlier answer is removed. `models` are those whose names somebody typed."""
    answer = answer_file(settings.device, build.label)
    answer.unlink(missing_ok=True)
    question = Question(
        device=settings.device,
        modes={name: settings.catalogue[build.label][name] for name in settings.modes},
        models=models,
        software=build.software,
        answer=answer.absolute(),
        toolchain=toolchain_folder(settings.device, build.label).absolute(),
        imports=build.options.import_,
        may_lack_models=len(settings.builds) > 1,
        packages=[PHOTOS] if settings.weights == "packaged" else [],
        threads=threads,
    )
    run = replace(settings.run, threads=threads, build=build.options)
    text = json.dumps({"question": question.to_json(), "run": run.to_json()})
    write_text(path, text)


def ask_here(path: Path, log: Path) -> None:
    """Have a request answered on this machine, by a process of its own, as supervising changes a process."""
    subprocess.run([sys.executable, "-m", __name__, str(path), str(log)], env=module_environment())


def answer(path: Path, log: Path) -> None:
    """Have a request answered on this machine."""
    die_with_run(signal.SIGTERM)
    values = json.loads(path.read_text(encoding="utf-8"))
    question, run = Question.from_json(values["question"]), RunOptions.from_dict(json.loads(values["run"]))
    text = ask(question, run, log).to_json()
    write_text(question.answer, text)


def problems(device: str, asked: Mapping[str, Path], builds: Collection[str]) -> list[str]:
    """Why the request is not possible, a sentence each; none if it is.

    `asked` are the builds that were asked, each with its log, and `builds` all that are requested. A model that only some
    of these lack has rows that say so. With several builds a sentence begins with the one that it is about.
    """
    answers = {build: _read(answer_file(device, build), log) for build, log in asked.items()}
    found = [f"build {each!r}: {text}" if len(builds) > 1 else text for each, a in answers.items() for text in a.problems]
    if {*builds} == answers.keys():
        first, *others = (answer.unknown_models for answer in answers.values())
        found += [text for model, text in first.items() if all(model in other for other in others)]
    return found


def devices(device: str, build: str = "*") -> int:
    """How many devices of a type a build has counted, by default any; 1 where none was asked."""
    files = answer_file(device, build).parent.glob(answer_file(device, build).name)
    return max((_read(file, file).devices for file in files), default=1)


def _read(file: Path, log: Path) -> Answer:
    try:
        return Answer.from_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError) as error:
        return Answer([f"nobody could say whether the request is possible here ({error}); {log} may have what was printed"])


def ask(question: Question, run: RunOptions, log: Path) -> Answer:
    """The environment's own answer; one with a problem if it came to none."""
    question.answer.unlink(missing_ok=True)
    question.answer.parent.mkdir(parents=True, exist_ok=True)
    command = [*worker_program(run.build), "--preflight", question.to_json()]
    slots, limits = slot_request(question.device, run), Limits(run.timeout)
    with CappedLog(log) as stream, interruptible():
        end = run_once(lambda _: command, slots, limits, stream, run.build.env)
    if question.answer.is_file():
        return Answer.from_json(question.answer.read_text(encoding="utf-8"))
    verdict = classify(end)
    limit = "; the key timeout is the limit" if verdict.status == "timeout" else ""
    return Answer([f"{command[0]} cannot measure ({verdict}{limit}); {log} has what it printed"])


if __name__ == "__main__":
    answer(*map(Path, sys.argv[1:]))
