"""Folders of compile caches: which program compiles into which, what it cost when the folder was new, and what is in all."""

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch._inductor.cpu_vec_isa import supported_vec_isa_list
from torch._inductor.utils import clear_caches

COLD = "cold.json"
"""What the first compilation into a folder cost; a folder without it was left half way."""

COMPLETE = "toolchain"
"""File in a folder that has everything that belongs to no model: the digest of the build that it was made by."""


class Cache:
    """One compile cache for many programs: what a compilation costs depends on those before it, so that none is cold."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._is_new = True

    def open(self) -> bool:
        """Make the compiler use the folder; whether it may be new to the program."""
        self._use()
        was_new, self._is_new = self._is_new, False
        return was_new

    def keep_cold(self, costs: dict[str, Any]) -> None:
        """Remember the costs of the first compilation."""

    def cold(self) -> dict[str, Any]:
        """The costs of the first compilation, as far as they are known."""
        return {}

    def _use(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder)
        os.environ["TRITON_CACHE_DIR"] = str(self.folder / "triton")
        clear_caches()


class SeededCache(Cache):
    """One cache for many programs that starts with the contents of the folder `toolchain`."""

    def __init__(self, folder: Path, toolchain: Path | None):
        super().__init__(folder)
        if toolchain and toolchain.is_dir() and not folder.exists():
            shutil.copytree(toolchain, folder)


class OwnCache(Cache):
    """The cache of one program; `toolchain` is a folder whose contents it starts with."""

    def __init__(self, folder: Path, toolchain: Path | None):
        super().__init__(folder)
        self._toolchain = toolchain

    def open(self) -> bool:
        """Make the compiler use the folder; whether it is new. One that was left half way is emptied."""
        new = not self.cold()
        if new:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self._toolchain and self._toolchain.is_dir():
                shutil.copytree(self._toolchain, self.folder)
        self._use()
        return new

    def keep_cold(self, costs: dict[str, Any]) -> None:
        scratch = self.folder / f".{COLD}"
        scratch.write_text(json.dumps(costs))
        scratch.replace(self.folder / COLD)

    def cold(self) -> dict[str, Any]:
        try:
            return json.loads((self.folder / COLD).read_text())
        except (FileNotFoundError, ValueError):  # cut off by a power failure
            return {}


def build_toolchain(device: str) -> None:
    """Have inductor build what belongs to no model: its precompiled header, the probes of the processor, triton's launcher.

    The header goes to torch's own folder of the machine, the rest into the cache that is open. What is there is not built.
    """
    with torch.no_grad():
        torch.compile(_trivial)(torch.ones(64, device=device))
    torch._dynamo.reset()


def _trivial(values: torch.Tensor) -> torch.Tensor:
    return values + 1


def fill_toolchain(folder: Path, device: str, software: str) -> None:
    """Have what belongs to no model built into a folder, unless it is there for the build with this digest."""
    marker = folder / COMPLETE
    if marker.is_file() and marker.read_text() == software:
        return
    shutil.rmtree(folder, ignore_errors=True)
    Cache(folder).open()
    with ThreadPoolExecutor() as pool:  # each probe waits for a compiler; one after the other takes twice as long
        list(pool.map(bool, supported_vec_isa_list))
    build_toolchain(device)
    marker.write_text(software)
