"""Measures one spec in a process of its own, the only kind of process that imports torch and timm.

    python -m timmgate.worker --threads 2 --cache /tmp/cache '{"check": "accuracy", ...}'

The argument is a spec as JSON; every row has the whole command in its column `command`. Messages (see `messages`) go to
the standard output, or to the file descriptor that the supervisor names.
"""

import argparse
import faulthandler
import os
import signal
import sys
import traceback
from importlib import import_module
from pathlib import Path

from timmgate.messages import Reporter
from timmgate.spec import Spec
from timmgate.supervise import die_with_parent

OUT_OF_MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")
"""How torch's allocators say in a plain RuntimeError that memory is short."""


def main(arguments: list[str]) -> int:
    """Measure; the exit code is 1 if an exception ended it."""
    parser = argparse.ArgumentParser(prog="python -m timmgate.worker", description="Measure one spec.")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, OpenMP and the compiler")
    parser.add_argument("--cache", type=Path, required=True, help="folder of the compile cache")
    parser.add_argument("--weights", type=Path, help="state dict, unless the weights are random")
    parser.add_argument("--messages", type=int, default=1, metavar="FD", help="file descriptor for messages")
    parser.add_argument("spec", type=Spec.from_json, help="the measurement, as JSON")
    options = parser.parse_args(arguments)

    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if options.messages != sys.stdout.fileno():
        die_with_parent(signal.SIGKILL)
    set_environment(options.threads, options.cache)
    with os.fdopen(options.messages, "w", closefd=False) as stream:
        reporter = Reporter(stream)
        try:
            reporter.stage("import")
            check = import_module(f"timmgate.{options.spec.check}")
            check.measure(options.spec, options.threads, reporter, options.weights)
        except BaseException as error:
            traceback.print_exc()
            reporter.failure(type(error).__name__, str(error), is_out_of_memory(error))
            return 1
    return 0


def set_environment(threads: int, cache: Path) -> None:
    """Set what torch and its compilers read once, at import: call it before."""
    for name in ("OMP", "MKL", "OPENBLAS", "NUMEXPR"):
        os.environ[f"{name}_NUM_THREADS"] = str(threads)
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = str(threads)
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    os.environ["TRITON_CACHE_DIR"] = str(cache / "triton")
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # what cuBLAS needs to be deterministic
    os.environ["HF_HUB_OFFLINE"] = "1"


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an exception, or the one that it was raised from, says that host or device memory ran out."""
    while error is not None:
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
