"""Measures the checks of one cell in a process of its own, the only kind of process that imports torch and timm.

    python -m timmgate.worker --threads 2 --cache /tmp/cache '{"check": "accuracy", ...}'

The arguments are specs as JSON; every row has the whole command in its column `command`. Messages (see `messages`) go to
the standard output, or to the file descriptor that the supervisor names.
"""

import argparse
import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path

from timmgate.claims import HeldTime
from timmgate.messages import Reporter
from timmgate.processes import die_with_parent
from timmgate.spec import Spec

GLIBC_SETTINGS = {-1: 2**31 - 1, -2: 64 << 20, -4: 0}
"""M_TRIM_THRESHOLD: never; M_TOP_PAD: grow the heap by 64 MiB; M_MMAP_MAX: everything on the heap (malloc.h)."""

OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "_status_alloc_failed")
"""How torch's allocators, CUDA, cuBLAS and cuDNN say in a plain RuntimeError that memory is short."""


def main(arguments: list[str]) -> int:
    """Measure; the exit code is 1 if an exception ended it."""
    parser = argparse.ArgumentParser(prog="python -m timmgate.worker", description="Measure the checks of one cell.")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, OpenMP and the compiler")
    parser.add_argument("--cache", type=Path, required=True, help="folder of compile caches")
    parser.add_argument("--shared-cache", action="store_true", help="it is one cache for all programs")
    parser.add_argument("--toolchain", type=Path, help="folder with what the compiler builds once per machine")
    parser.add_argument("--weights", type=Path, help="state dict, unless the weights are random")
    parser.add_argument("--timed-batch-size", type=int, help="images per batch of the performance check, if not the spec's")
    parser.add_argument("--timing-limit", type=float, default=15.0, help="seconds for the samples of the performance check")
    parser.add_argument("--messages", type=int, default=1, metavar="FD", help="file descriptor for messages")
    parser.add_argument("--held", type=int, metavar="FD", help="file descriptor that tells how long we were held still")
    parser.add_argument("specs", type=Spec.from_json, nargs="+", metavar="spec", help="a measurement, as JSON")
    options = parser.parse_args(arguments)

    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if options.messages != sys.stdout.fileno():
        die_with_parent(signal.SIGKILL)
    set_environment(options.threads, options.toolchain or options.cache)
    keep_freed_memory()
    clock = time.perf_counter if options.held is None else HeldTime(options.held).clock
    with os.fdopen(options.messages, "w", closefd=False) as stream:
        reporter = Reporter(stream, clock)
        try:
            for spec in options.specs:
                measure(spec, options, reporter)
        except BaseException as error:
            traceback.print_exc()
            reporter.failure(type(error).__name__, str(error), is_out_of_memory(error))
            return 1
    return 0


def measure(spec: Spec, options: argparse.Namespace, reporter: Reporter) -> None:
    """One check, by the module that is named like it."""
    reporter.check(spec.check)
    reporter.stage("import")
    from timmgate import caches, iterations  # and with them torch

    check = import_module(f"timmgate.{spec.check}")
    batch_size = (spec.check == "performance" and options.timed_batch_size) or spec.requested_batch_size
    if options.shared_cache:
        cache = caches.Cache(options.cache)
    else:
        cache = caches.OwnCache(options.cache / spec.program(batch_size, options.threads), options.toolchain)
    setup = iterations.Setup(options.threads, cache, batch_size, options.weights, options.timing_limit)
    check.measure(spec, setup, reporter)


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
    for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(threads)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    os.environ["TRITON_CACHE_DIR"] = str(cache / "triton")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS needs to be deterministic
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"  # whatever timm asks for: a pickle from outside runs no code


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or the one that it was raised from, says that host or device memory ran out."""
    seen = []
    while error is not None and error not in seen:
        seen.append(error)
        names = {cls.__name__ for cls in type(error).__mro__}
        if names & {"MemoryError", "OutOfMemoryError"}:
            return True
        if isinstance(error, RuntimeError) and any(words in str(error).lower() for words in OUT_OF_MEMORY_WORDS):
            return True
        error = error.__cause__ or getattr(error, "inner_exception", None) or error.__context__
    return False


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # taking torch and its pools apart would cost another second
