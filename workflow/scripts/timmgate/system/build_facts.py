"""The facts of an environment that can change a figure, found by a process of its own Python, without importing torch.

    python -m timmgate.system.build_facts '{"digests": ".cache/builds/digests.json", "imports": [], "variables": []}'

prints them as JSON: versions, variables, and a digest of each source of code.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from timmgate.core.files import write_text
from timmgate.core.packages import places

NEEDED = ("torch", "timm", "numpy")
"""What a worker imports beside the standard library."""

ENTRY_POINTS = ("torch_dynamo_backends", "torch.backends")
"""Groups of the entry points by which packages register compilers (torch._dynamo.backends.registry) and devices
(torch._import_device_backends)."""

SOURCES = ("torch", "triton", "timm")
"""Modules whose files change what is compiled or run."""

SUFFIXES = (".py", ".so", ".h", ".hpp", ".cuh", ".c", ".cpp", ".cu", ".jinja", ".bc", ".ld")
"""Of files that are run, or that generated code includes or is made of."""

LIBRARY = "timmgate"

MISSING = 3
"""Exit code where a module is missing; 1 and 2 are Python's own."""

CHUNK_BYTES = 1 << 20

IDENTITY_VARIABLES = (
    "TORCH*",
    "PYTORCH_*",
    "ATEN_*",
    "AOT_INDUCTOR_*",
    "AOTINDUCTOR_*",
    "AOTI_*",
    "TIMM_*",
    "TRITON*",
    "DISABLE_PTXAS_OPT",
    "ENABLE_*TMA*",
    "CUDA_*",
    "CUBLAS_*",
    "CUDNN_*",
    "CXX",
    "CFLAGS",
    "OMP_*",
    "KMP_*",
    "MKL_*",
    "DNNL_*",
    "ONEDNN_*",
    "NVIDIA_TF32_OVERRIDE",
    "LD_PRELOAD",
    "MALLOC_*",
    "PYTHONPATH",
)
"""Environment variables that change what is compiled or run."""

OTHER_VARIABLES = (
    "CUDA_VISIBLE_DEVICES",
    "CUDA_DEVICE_ORDER",
    "CUDA_HOME",
    "CUDA_PATH",
    "CUDA_CACHE_*",
    "CUBLAS_WORKSPACE_CONFIG",
    "CUBLAS_LOG*",
    "CUDNN_LOG*",
    "CUDNN_PATH",
    "CUDNN_HOME",
    "TORCH_LOGS*",
    "TORCH_TRACE",
    "TORCH_HOME",
    "TORCH_COMPILE_DEBUG*",
    "TORCHINDUCTOR_CACHE_DIR",
    "TORCHINDUCTOR_COMPILE_THREADS",
    "TORCH_FORCE_WEIGHTS_ONLY_LOAD",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "TRITON_CACHE_DIR",
    "TRITON_HOME",
    "TRITON_DUMP_DIR",
)
"""Of these, those that say where things are or what is printed, and those that each worker sets by itself."""


def find(digests_file: Path, imports: Sequence[str] = (), variables: Sequence[str] = ()) -> dict[str, Any]:
    """The facts of the environment that this process runs in, as plain values.

    `digests_file` remembers the digests of files, `imports` are modules that workers import first, and `variables` are names
    of environment variables that were set for this build alone. Raises ModuleNotFoundError for what is `NEEDED` or imported
    and not there.
    """
    for module in (*NEEDED, *imports):
        places(module.split(".")[0])
    points = [point for group in ENTRY_POINTS for point in entry_points(group=group) if point.dist is not None]
    torch = _texts("torch")
    registered = (*(point.module for point in points), *imports)
    modules = {*SOURCES, *(module.split(".")[0] for module in registered)}
    digests = Digests(digests_file)
    facts = {
        "python": platform.python_version(),
        "torch": torch.get("__version__") or version("torch"),
        "torch_revision": torch.get("git_version"),
        "timm": _texts("timm").get("__version__") or version("timm"),
        "triton": _version("triton"),
        "cuda": torch.get("cuda") or torch.get("hip"),
        "cudnn": next(filter(None, map(_version, ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"))), None),
        "cxx": compiler(os.environ.get("CXX", "g++")),
        "backends": {name: version(name) for name in sorted({point.dist.name for point in points if point.dist})},
        "imports": list(imports),
        "sources": {module: digests.of_module(module) for module in sorted(modules) if find_spec(module)},
        "environment": environment({**os.environ, **_search_path()}, variables),
    }
    digests.save()
    return facts


def _search_path() -> dict[str, str]:
    """PYTHONPATH without folders of this library, of which every worker gets one wherever it lies; empty if that is all."""
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return {"PYTHONPATH": os.pathsep.join(each for each in folders if each and not (Path(each) / LIBRARY).is_dir())}


def environment(variables: Mapping[str, str], own: Sequence[str] = ()) -> dict[str, str]:
    """The variables that are part of a cell's identity, sorted; among them `own`, those of the build alone."""
    wanted = (*IDENTITY_VARIABLES, *own)
    return {
        name: variables[name]
        for name in sorted(variables)
        if (variables[name] or name != "PYTHONPATH") and _matches(name, wanted) and not _matches(name, OTHER_VARIABLES)
    }


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def compiler(command: str) -> str | None:
    """First line of what a C++ compiler says of its version; None where there is none."""
    program = shutil.which(command.split()[0]) if command.strip() else None
    if program is None:
        return None
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, stdin=subprocess.DEVNULL)
    return (answer.stdout.splitlines() or [program])[0]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _texts(module: str) -> dict[str, str]:
    """The assignments of texts in a module's version.py, which is not imported; none where there is no such file.

    It speaks of the files that are imported, as the metadata of another installation on the search path may not.
    """
    path = places(module)[0] / "version.py"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return dict(re.findall(r"^(\w+)(?:\s*:[^=\n]*)?\s*=\s*['\"]([^'\"]*)['\"]", text, flags=re.MULTILINE))


class Digests:
    """Digests of the contents of files, remembered by inode, size and time of change, so that each is read once.

    One file remembers those of all builds.
    """

    def __init__(self, path: Path):
        self._path = path
        self._known = self._read()
        self._by_status = {tuple(status): digest for *status, digest in self._known.values()}
        self._used: dict[str, list[Any]] = {}

    def _read(self) -> dict[str, list[Any]]:
        try:
            known: dict[str, list[Any]] = json.loads(self._path.read_text(encoding="utf-8"))
            return known
        except (OSError, ValueError):
            return {}

    def of_module(self, module: str) -> str:
        """Hex digest (SHA-256) of paths and contents of a module's files with one of the `SUFFIXES`; links are followed."""
        digest = hashlib.sha256()
        for root in places(module):
            above = str(root.parent)
            for file, status in sorted(_files(root)):
                digest.update(f"{file.removeprefix(above).lstrip('/')} {self._of_file(file, status)}\n".encode())
        return digest.hexdigest()

    def _of_file(self, file: str, status: tuple[int, int, int]) -> str:
        digest = self._by_status.get(status) or _digest(file)
        self._used[file] = [*status, digest]
        return digest

    def save(self) -> None:
        """Remember the digests of the files that were asked for, beside those of other files that are still there."""
        if any(self._known.get(file) != entry for file, entry in self._used.items()):
            others = {file: entry for file, entry in self._read().items() if Path(file).exists()}
            text = json.dumps({**others, **self._used})
            with suppress(OSError):  # a folder that cannot be written to is refused later, in one sentence
                write_text(self._path, text)


def _digest(file: str) -> str:
    digest = hashlib.sha256()
    with Path(file).open("rb", buffering=0) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _files(root: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[tuple[str, tuple[int, int, int]]]:
    """Files below a folder, or the file itself, with their inode, size and time of change.

    `above` are the folders that it is in, by device and inode: a link to one of them is not followed for ever.
    """
    status = root.stat()
    if not root.is_dir():
        yield str(root), (status.st_ino, status.st_size, status.st_mtime_ns)
        return
    here = status.st_dev, status.st_ino
    if here in above:
        return
    with os.scandir(root) as entries:
        for entry in entries:
            if entry.is_dir():
                if entry.name != "__pycache__":
                    yield from _files(Path(entry.path), (*above, here))
            elif entry.name.endswith(SUFFIXES) and entry.is_file():  # no broken link, as editors leave
                status = entry.stat()
                yield entry.path, (status.st_ino, status.st_size, status.st_mtime_ns)


def main(arguments: list[str]) -> None:
    """Print the facts that the argument asks for. What is missing ends it with a sentence and the exit code `MISSING`."""
    question = json.loads(arguments[0])
    try:
        facts = find(Path(question["digests"]), question["imports"], question["variables"])
    except ModuleNotFoundError as error:
        print(error, file=sys.stderr)
        sys.exit(MISSING)
    print(json.dumps(facts))


if __name__ == "__main__":
    main(sys.argv[1:])
