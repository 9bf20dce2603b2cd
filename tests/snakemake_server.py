"""Snakemake without its start: a process that has imported it once, and for each command a fork of that process.

More than half of what Snakemake takes for a dry run of a few cells is the import of itself and of its plugins.
"""

import atexit
import gc
import hashlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from timmgate.core.files import write_text

IMPORTED_LATER = (
    *("jsonschema", "pandas", "pyarrow.parquet", "rich.live", "rich.table", "yte"),
    *("snakemake.spawn_jobs", "snakemake.storage"),
    *("timmgate.config.cells", "timmgate.config.shards", "timmgate.supervisor.preflight", "timmgate.report.board"),
    *("timmgate.report.terminal", "timmgate.tables.retries", "timmgate.tables.gate.baseline"),
    "timmgate.tables.gate.quarantine",
    *("timmgate.tables.renewal", "timmgate.tables.request"),
)
"""What Snakemake and the workflow import while they parse, compare parameters and show tables."""


class Ended(NamedTuple):
    """A command that has ended; `cpu_s` is what it and its children took of the processors, without the start."""

    code: int
    printed: str
    cpu_s: float


class Server:
    """The process, which lives as long as this one."""

    def __init__(self) -> None:
        # -P, so that this folder is not on the search path of Snakemake.
        command = [sys.executable, "-P", __file__]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def run(self, arguments: Sequence[str | Path], folder: Path, environment: Mapping[str, str], patience_s: float) -> Ended:
        """Run `snakemake` with these arguments in a folder, in a session of its own."""
        assert self._process.stdin and self._process.stdout
        with tempfile.NamedTemporaryFile() as printed:
            command = {"arguments": list(map(str, arguments)), "folder": str(folder), "environment": dict(environment)}
            self._process.stdin.write(json.dumps({**command, "printed": printed.name}) + "\n")
            self._process.stdin.flush()
            ended, *_ = select.select([self._process.stdout], [], [], patience_s)
            text = Path(printed.name).read_text()
            if not ended:
                self._process.kill()
                _of_thread.cache_clear()
                raise TimeoutError(f"it did not end within {patience_s:g} s; until then it printed:\n{text}")
            code, cpu_s = json.loads(self._process.stdout.readline())
            return Ended(code, text, cpu_s)


def started() -> Server:
    """The server of this thread: it runs one command at a time."""
    return _of_thread(threading.get_ident())


@cache
def _of_thread(thread: int) -> Server:
    return Server()


def serve() -> None:
    """Run the commands that come through the standard input, one after the other; exit codes and CPU seconds go back."""
    from snakemake import cli

    for module in IMPORTED_LATER:
        import_module(module)
    cli.get_argument_parser()  # has the plugins imported
    remember_builds()
    gc.freeze()  # a child that looks through what it has inherited would copy it
    for line in sys.stdin:
        command = json.loads(line)
        child = os.fork()
        if child == 0:
            become(command)
            end(cli.main)
        _, status, used = os.wait4(child, 0)
        print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime]), flush=True)


def remember_builds() -> None:
    """Ask an environment once what it has, for the same environment variables.

    It is asked each time where a test may have changed the answer, by another Python, by PYTHONPATH or by what a build
    imports, and with EXACT_FACTS in the environment.
    """
    from timmgate.config import builds

    find, known = builds.find, Path(tempfile.mkdtemp())

    def remembered(cache: Path, label: str = builds.DEFAULT, options: builds.BuildOptions | None = None) -> builds.Build:
        options = options or builds.BuildOptions()
        variables = os.environ | options.env
        if options.python or options.import_ or {"PYTHONPATH", "EXACT_FACTS"} & variables.keys():
            return find(cache, label, options)
        about = sorted(pair for pair in variables.items() if not pair[0].startswith(("FAKE_", "TIMMGATE_", "PYTEST_")))
        path = known / hashlib.sha256(json.dumps([about, sorted(options.env.items())]).encode()).hexdigest()
        if not path.is_file():
            write_text(path, json.dumps(dict(find(cache, label, options).facts)))
        return builds.Build(label, options, json.loads(path.read_text()))

    builds.find = remembered


def end(main: Callable[[], object]) -> None:
    """Run a program, and end as Python does, but for taking all modules apart."""
    code: object = 0
    try:
        main()
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if code is not None and not isinstance(code, int):
        print(code, file=sys.stderr)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else code is not None)


def become(command: Mapping) -> None:
    """Make this process what a shell would have started."""
    os.setsid()
    with Path(os.devnull).open() as nothing, Path(command["printed"]).open("w") as printed:
        os.dup2(nothing.fileno(), 0)
        os.dup2(printed.fileno(), 1)
        os.dup2(printed.fileno(), 2)
    os.chdir(command["folder"])
    os.environ.clear()
    os.environ.update(command["environment"])
    sys.argv = ["snakemake", *command["arguments"]]


if __name__ == "__main__":
    serve()
