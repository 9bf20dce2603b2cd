"""Builds: what compiles. A label, and the facts of the environment behind it that can change a figure.

The main process finds the facts once per start, without importing torch, and leaves them in a file; jobs, also those of a
cluster, read the file, so that all of a run speak of the same.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from timmgate.core.files import write_atomically
from timmgate.core.packages import places

DEFAULT = "default"
"""The label of the environment that Snakemake itself runs in."""

ENTRY_POINTS = "torch_dynamo_backends"
"""Group of the entry points that register compilers with torch.compile (torch._dynamo.backends.registry)."""

SOURCES = ("torch", "triton", "timm")
"""Modules whose files change what is compiled or run."""

SUFFIXES = (".py", ".so", ".h")

CHUNK_BYTES = 1 << 20

IDENTITY_VARIABLES = (
    "TORCH*",
    "PYTORCH_*",
    "TRITON*",
    "CUDA_*",
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


@dataclass(frozen=True)
class Build:
    """What compiles. `facts` are plain values: versions, variables, and a digest of each source of code."""

    label: str = DEFAULT
    facts: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def software(self) -> str:
        """Hex digest (SHA-256) of the facts: equal if and only if nothing that is known of the build differs."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()


def environment(variables: Mapping[str, str]) -> dict[str, str]:
    """The variables that are part of a cell's identity, sorted."""
    return {
        name: variables[name]
        for name in sorted(variables)
        if _matches(name, IDENTITY_VARIABLES) and not _matches(name, OTHER_VARIABLES)
    }


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def find(cache: Path, label: str = DEFAULT) -> Build:
    """The build that this process runs in, with its facts. `cache` is a folder for the digests of files.

    Versions come from the packages' metadata, torch's git revision and CUDA from its version.py.
    """
    backends = {point.dist.name: point for point in entry_points(group=ENTRY_POINTS) if point.dist}
    torch_version = _torch_version()
    modules = {*SOURCES, *(point.module.split(".")[0] for point in backends.values())}
    digests = Digests(cache / "digests.json")
    facts = {
        "python": platform.python_version(),
        "torch": version("torch"),
        "torch_revision": torch_version.get("git_version"),
        "timm": version("timm"),
        "triton": _version("triton"),
        "cuda": torch_version.get("cuda") or torch_version.get("hip"),
        "cudnn": next(filter(None, map(_version, ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12"))), None),
        "cxx": compiler(os.environ.get("CXX", "g++")),
        "backends": {name: version(name) for name in sorted(backends)},
        "sources": {module: digests.of_module(module) for module in sorted(modules) if find_spec(module)},
        "environment": environment(os.environ),
    }
    digests.save()
    return Build(label, facts)


def save(build: Build, folder: Path) -> None:
    """Leave the facts for the jobs of this run."""
    text = json.dumps(build.facts, indent=1, sort_keys=True) + "\n"
    path = folder / f"{build.label}.json"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomically(path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


def load(folder: Path, label: str = DEFAULT) -> Build:
    """The inverse of `save`."""
    return Build(label, json.loads((folder / f"{label}.json").read_text(encoding="utf-8")))


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


def _torch_version() -> dict[str, str]:
    """The assignments of texts in torch/version.py, which is not imported: that would import torch."""
    text = (places("torch")[0] / "version.py").read_text(encoding="utf-8")
    return dict(re.findall(r"^(\w+)(?:\s*:[^=\n]*)?\s*=\s*['\"]([^'\"]*)['\"]", text, flags=re.MULTILINE))


class Digests:
    """Digests of the contents of files, remembered by inode, size and time of change, so that each is read once."""

    def __init__(self, path: Path):
        self._path = path
        self._known = self._read()
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
            for file, status in sorted(_files(root)):
                digest.update(f"{Path(file).relative_to(root.parent)} {self._of_file(file, status)}\n".encode())
        return digest.hexdigest()

    def _of_file(self, file: str, status: tuple[int, int, int]) -> str:
        known = self._known.get(file)
        if known is None or tuple(known[:3]) != status:
            digest = hashlib.sha256()
            with Path(file).open("rb", buffering=0) as stream:
                while chunk := stream.read(CHUNK_BYTES):
                    digest.update(chunk)
            known = [*status, digest.hexdigest()]
        self._used[file] = known
        return str(known[3])

    def save(self) -> None:
        """Remember the digests of the files that were asked for."""
        if self._used != self._known:
            text = json.dumps(self._used)
            with suppress(OSError):  # a folder that cannot be written to is refused later, in one sentence
                write_atomically(self._path, lambda scratch: scratch.write_text(text, encoding="utf-8"))


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
            elif entry.name.endswith(SUFFIXES):
                status = entry.stat()
                yield entry.path, (status.st_ino, status.st_size, status.st_mtime_ns)
