"""Measures the checks of one cell in a process of its own.

Beside it only processes that obtain weights, or list timm's models, import torch or timm.

    python -m timmgate.worker '{"specs": [{"check": "accuracy", ...}], "run": {"threads": 2, ...}}'
    python -m timmgate.worker --preflight '{"device": "cpu", "modes": {...}, ...}'
    python -m timmgate.worker --diagnose '{"spec": {...}, "variant": {...}, ...}'
    python -m timmgate.worker --study '{"module": "timmgate.worker.power", "spec": {...}, ...}'

The argument is a `protocol.Request` or, about the environment, a `preflight.Question`, or a `diagnosis.TrialRequest`, or a
`study.StudyRequest`, as JSON; every row has the whole command in its column `command`. Messages go to the standard output,
or to the file descriptor that the supervisor names.
"""

import contextlib
import ctypes
import faulthandler
import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from timmgate.core.build import THREAD_VARIABLES
from timmgate.core.checks import CHECKS
from timmgate.core.diagnosis import TRIAL, TrialRequest
from timmgate.core.faults import FaultNotApplicable
from timmgate.core.files import write_text
from timmgate.core.preflight import Answer, Question
from timmgate.core.protocol import Reporter, ReportError, Request
from timmgate.core.spec import Spec
from timmgate.core.study import StudyRequest
from timmgate.system.process_tree import die_with_parent
from timmgate.system.timing_lock import PausedTime
from timmgate.worker.resource_errors import is_disk_full, is_out_of_memory

GLIBC_SETTINGS = {-1: -1, -2: 64 << 20, -4: 0}
"""M_TRIM_THRESHOLD: never; M_TOP_PAD: grow the heap by 64 MiB; M_MMAP_MAX: everything on the heap (malloc.h)."""

PREFLIGHT = "--preflight"
DIAGNOSE = "--diagnose"
STUDY = "--study"


def main(arguments: list[str]) -> int:
    """Measure, or answer; the exit code is 1 if an exception ended it, 2 if the arguments are not one request."""
    if arguments[:1] == [PREFLIGHT]:
        return preflight(Question.from_json(*arguments[1:]))
    if arguments[:1] == [STUDY]:
        return study(StudyRequest.from_json(*arguments[1:]))
    try:
        request = TrialRequest.from_json(*arguments[1:]) if arguments[:1] == [DIAGNOSE] else Request.from_json(*arguments)
    except (TypeError, ValueError, KeyError) as error:
        print(f"usage: python -m timmgate.worker REQUEST, which is a JSON object: {error}", file=sys.stderr)
        return 2
    tell_stacks()
    if request.messages != sys.stdout.fileno():
        die_with_parent(signal.SIGKILL)
    set_environment(request.run.threads, request.run.toolchain or request.run.cache)
    if request.allocator != "system":
        keep_freed_memory()
    clock = time.perf_counter if request.paused is None else PausedTime(request.paused).clock
    with os.fdopen(request.messages, "w", closefd=False) as stream:
        reporter = Reporter(stream, clock)
        try:
            if isinstance(request, TrialRequest):
                diagnose(request, reporter)
            else:
                for spec in request.specs:
                    measure(spec, request, reporter)
        except BaseException as error:
            traceback.print_exc()
            is_ours = isinstance(error, ReportError) or is_disk_full(error)
            reporter.failure(type(error).__name__, str(error), is_out_of_memory(error), is_ours)
            return 1
    return 0


def preflight(question: Question) -> int:
    """Answer a question about this environment, into the file that it names; then build the toolchain that it names."""
    die_with_parent(signal.SIGKILL)
    if question.toolchain:
        set_environment(question.threads, question.toolchain)
    try:
        with importing():
            import_first(question.imports)
            from timmgate.worker.preflight import answer, build_toolchain  # and with it torch
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        write_text(question.answer, Answer([f"{sys.executable} cannot measure{_with_versions()} ({reason})"]).to_json())
        return 0
    found = answer(question)
    write_text(question.answer, found.to_json())
    if not found.problems:
        build_toolchain(question)
    return 0


def study(request: StudyRequest) -> int:
    """Have a module study a model, and write its rows. What it raises, is raised."""
    tell_stacks()
    die_with_parent(signal.SIGKILL)
    set_environment(request.run.threads, request.run.cache)
    with importing():
        import_first(request.run.build.import_)
        from timmgate.worker import torch_device  # and with it torch

        module = import_module(request.module)
    torch_device.use(request.spec.device, request.device_number)
    rows = module.study(request.spec, request.run, request.device_number, **request.options)
    write_text(request.answer, json.dumps(rows))
    return 0


def tell_stacks() -> None:
    """Print Python's stacks when the process crashes, and when it hangs and gets SIGUSR1."""
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import without looking for garbage, of which there is none: that takes a fifth of torch's and timm's import.

    What was imported is looked through once at the end, so that it is not while something is measured.
    """
    known = len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) > known:
            gc.collect()
        gc.enable()


def import_first(modules: Sequence[str]) -> None:
    """Import what registers backends or devices."""
    for module in modules:
        import_module(module)


def _with_versions() -> str:
    """The versions of what could be imported, as part of a sentence."""
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in ("torch", "timm")}
    known = " and ".join(f"{name} {version}" for name, version in versions.items() if version)
    return f" with {known}" if known else ""


def measure(spec: Spec, request: Request, reporter: Reporter) -> None:
    """One check, by the module that is named like it."""
    reporter.check(spec.check)
    reporter.stage("import")
    with importing():
        import_first(request.run.build.import_)
        from timmgate.worker import compile_cache, torch_device, training_step  # and with them torch

        check, run = import_module(CHECKS[spec.check].module), request.run
    torch_device.use(spec.device, request.device_number)
    torch_device.answer(spec.device)  # one that is broken, or that the check before has broken, is not the model's fault
    folder = request.cache(spec)
    cache = compile_cache.Cache(folder) if run.shared_cache else compile_cache.OwnCache(folder, run.toolchain)
    setup = training_step.Setup.of(run, cache, request.batch_size(spec), request.device_number, request.turns)
    try:
        check.measure(spec, setup, reporter)
    except FaultNotApplicable as reason:
        reporter.result("not_applicable", spec.options.backend, str(reason))


def diagnose(request: TrialRequest, reporter: Reporter) -> None:
    """One trial of a diagnosis."""
    reporter.check(TRIAL)
    reporter.stage("import")
    with importing():
        import_first(request.run.build.import_)
        from timmgate.worker import diagnose, torch_device  # and with them torch

    torch_device.use(request.spec.device, request.device_number)
    diagnose.run(request, reporter)


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation, as the allocators of accelerators do.

    Otherwise large tensors are given back to the kernel and faulted in again in every iteration, or not, as the layout of
    the heap happens to be: of one model's speedup that made a spread of 8 % between processes, against 0.5 % without.
    """
    with contextlib.suppress(AttributeError):  # not glibc
        mallopt = ctypes.CDLL(None).mallopt
        for parameter, value in GLIBC_SETTINGS.items():
            mallopt(parameter, value)


def set_environment(threads: int, cache: Path) -> None:
    """Set what torch and its compilers read once, at import: call it before."""
    for name in THREAD_VARIABLES:
        os.environ[name] = str(threads)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(threads)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    os.environ["TRITON_CACHE_DIR"] = str(cache / "triton")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS needs to be deterministic
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # whatever timm asks for: a pickle from outside runs no code


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking torch and its pools apart would cost another second
