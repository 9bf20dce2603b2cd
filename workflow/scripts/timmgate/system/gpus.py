"""Which GPUs measurements may use, by their UUIDs. Must not import torch.

    python -m timmgate.system.gpus

prints the UUIDs of the GPUs that NVIDIA's driver shows to this process, one a line.
"""

import ctypes
import os
import re
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from timmgate import module_environment

VISIBLE = "CUDA_VISIBLE_DEVICES"

UUID_PREFIXES = ("GPU-", "MIG-")
"""Of a whole GPU, and of a part of one (multi-instance GPU), as CUDA_VISIBLE_DEVICES has them."""

WHOLE_UUID = re.compile(r"(GPU|MIG)-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
"""CUDA takes its first digits for one too, of which only the driver knows which GPU they mean."""

DRIVER = "libcuda.so.1"

DRIVER_TIMEOUT_S = 60.0
"""Longest wait for the driver's answer. A choice: hosts with many GPUs take some seconds to start them all."""


AMD = Path("/sys/module/amdgpu/version")

DRIVER_FILES = {
    Path("/proc/driver/nvidia/version"): re.compile(r"Kernel Module\s.*?\s(\d+(?:\.\d+)+)"),
    AMD: re.compile(r"(\S+)"),
}
"""Where kernels tell the version of a driver, and how to read it."""


class DriverError(RuntimeError):
    """The driver refused a call; the message has its number for why (CUresult in cuda.h)."""


def names(device: str, count: int = 1) -> list[str]:
    """The devices of a torch device type that we may use: UUIDs of NVIDIA's GPUs, else by number, as torch counts `count`.

    A single one is the type itself. That is also what there is where CUDA has no GPU or no driver: the worker will say so
    better than we could.
    """
    if device == "cuda" and (uuids := visible()):
        return uuids
    return [f"{device}:{number}" for number in range(count)] if count > 1 else [device]


def own_name(device: str, number: int | None) -> str:
    """Which of `names` a measurement has, from within: its number, if it was given one, or what it sees."""
    return names(device)[0] if number is None else f"{device}:{number}"


def number_of(name: str) -> int | None:
    """The number that a device of `names` has among those of its type, None where it has none."""
    _, _, number = name.partition(":")
    return int(number) if number else None


def visible() -> list[str]:
    """UUIDs of the GPUs that CUDA_VISIBLE_DEVICES leaves us, all of them if it is not set."""
    allowed = os.environ.get(VISIBLE)
    entries = list(dict.fromkeys(entry.strip() for entry in (allowed or "").split(",") if entry.strip()))
    if allowed is not None and not entries:
        return []
    if entries and all(map(WHOLE_UUID.fullmatch, entries)):
        return entries
    return ask_driver() or (entries if all(map(is_uuid, entries)) else [])


def driver_version() -> str | None:
    """Version of the GPUs' driver, as `580.65.06`; None where the kernel does not tell it."""
    for path, pattern in DRIVER_FILES.items():
        if path.is_file() and (found := pattern.search(path.read_text())):
            return found[1]
    return None


def is_uuid(name: str) -> bool:
    """Whether it is a UUID of a GPU, and not an index or a device type."""
    return name.startswith(UUID_PREFIXES)


def uuid_of(name: str) -> str | None:
    """The UUID that a device of `names` has, None if it is a device type."""
    return name if is_uuid(name) else None


def only(name: str) -> dict[str, str]:
    """What in the environment makes this GPU the only one that a process sees; nothing for a device without UUID."""
    return {VISIBLE: name} if is_uuid(name) else {}


def ask_driver() -> list[str]:
    """UUIDs of the GPUs that the driver shows a process with our environment; none if it fails or does not answer in time.

    In a child: a driver that hangs takes the process that asks with it, and one that has asked cannot be forked any more.
    """
    command = [sys.executable, "-m", "timmgate.system.gpus"]
    child = subprocess.Popen(
        command,
        env=module_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = child.communicate(timeout=DRIVER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return []
    finally:
        child.kill()  # without waiting for it: a process inside a driver that hangs does not even die
        assert child.stdout is not None
        child.stdout.close()
    return printed.split() if child.returncode == 0 else []


def uuids(driver: Any) -> list[str]:
    """UUIDs of the GPUs that the driver's library shows, in its order. Raises DriverError.

    The library heeds CUDA_VISIBLE_DEVICES and CUDA_DEVICE_ORDER by itself. Of a part of a GPU it gives the part's UUID.
    """
    _call(driver, "cuInit", 0)
    count = ctypes.c_int()
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    return [_uuid(driver, ordinal) for ordinal in range(count.value)]


def _uuid(driver: Any, ordinal: int) -> str:
    handle, octets, name = ctypes.c_int(), (ctypes.c_char * 16)(), ctypes.create_string_buffer(256)
    _call(driver, "cuDeviceGet", ctypes.byref(handle), ordinal)
    _call(driver, "cuDeviceGetUuid_v2", ctypes.byref(octets), handle)
    _call(driver, "cuDeviceGetName", name, len(name), handle)
    whole, part = UUID_PREFIXES
    # The octets do not tell which of both it is, but the name does: "NVIDIA A100-SXM4-40GB MIG 1g.5gb".
    return f"{part if b' MIG ' in name.value else whole}{uuid.UUID(bytes=octets.raw)}"


def _call(driver: Any, function: str, *arguments: Any) -> None:
    if result := getattr(driver, function)(*arguments):
        raise DriverError(f"{function} returned {result}")


def main() -> None:
    """Print the UUIDs; the exit code is 1, with the reason, if there is no driver or it fails."""
    try:
        print(*uuids(ctypes.CDLL(DRIVER)), sep="\n")
    except (OSError, DriverError) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
