"""Peak memory of one iteration, by torch's allocator and on a CPU also by the kernel's own book-keeping of this process."""

import contextlib
import ctypes
import gc
import weakref
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from timmgate.worker import models

CLEAR_REFS, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")

ALLOCATION = "[memory]"
"""Name of what the profiler records when memory is given out, or is given back."""

RESET_PEAK_RSS = "5"
"""What sets VmHWM back to VmRSS when written to clear_refs (man 5 proc)."""


def left_bytes(device: str) -> int:
    """What an accelerator's allocator has given out and nobody will give back: frozen weights of an earlier program."""
    gc.collect()
    if device == "cuda" and hasattr(torch._C, "_cuda_clearCublasWorkspaces"):
        torch._C._cuda_clearCublasWorkspaces()  # every iteration of this check will have one of its own
    return getattr(torch, device).memory_allocated() if device != "cpu" and _has_peaks(device) else 0


def _has_peaks(device: str) -> bool:
    return hasattr(getattr(torch, device), "reset_peak_memory_stats")


def peak_bytes(device: str, run: Callable[[], object], resident: int, left: int = 0) -> int | None:
    """Peak memory in bytes while `run` runs, with the `resident` bytes of weights and images that were there before.

    On an accelerator it is the peak of what its allocator gave out, less what was `left` of an earlier check. On a CPU it is
    `resident` and the growth of the resident set from a heap without free memory to its peak, so that neither libraries nor
    the compiler's own garbage are in it. None where that cannot be had.
    """
    gc.collect()
    if device == "cpu":
        return _host_peak_bytes(run, resident)
    if not _has_peaks(device):
        run()
        return None
    allocator = getattr(torch, device)
    allocator.synchronize()
    allocator.reset_peak_memory_stats()
    run()
    allocator.synchronize()
    return allocator.max_memory_allocated() - left


def allocated_bytes(run: Callable[[], object], resident: int) -> int | None:
    """The peak of what torch's allocator for a CPU gave out while `run` runs, with the `resident` bytes from before.

    It is the same in every process, as the resident set is not, which depends on how the heap came to lie. What libraries
    allocate by themselves is not in it. None where the profiler, which sees each allocation, does not say, or saw none: an
    iteration has its output at least. To be called after `peak_bytes`, which has collected garbage: what of it went now
    would be missing in the peak.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    try:
        events = [each for each in profiled.profiler.kineto_results.events() if each.name() == ALLOCATION]
        sizes = [each.nbytes() for each in sorted(events, key=lambda each: each.start_ns())]
    except AttributeError:  # no public interface of torch has single allocations
        return None
    return resident + max(accumulate(sizes, initial=0)) if sizes else None


def tensor_bytes(model: torch.nn.Module, *images: torch.Tensor) -> int:
    """Bytes of the model's parameters and buffers and of the images."""
    return sum(tensor.nbytes for tensor in (*models.state(model).values(), *images))


class Added(NamedTuple):
    """Bytes of tensors. MKL reserves megabytes for each packed matrix and touches few: those are in `allocated` alone."""

    used: int = 0
    allocated: int = 0


class HostTensors:
    """The tensors that Python holds on the host at a time."""

    def __init__(self) -> None:
        gc.collect()
        self._known = {id(each): weakref.ref(each) for each in _on_the_host()}

    def added_bytes(self) -> Added:
        """Bytes of those that have come since then, each storage once; one that a library has packed, by its shape."""
        gc.collect()
        known, added, reserved = set(), {}, {}
        for each in _on_the_host():
            is_packed = each.layout != torch.strided
            key = id(each) if is_packed else each.untyped_storage().data_ptr()
            reference = self._known.get(id(each))
            if reference is not None and reference() is each:
                known.add(key)
                continue
            sizes = reserved if is_packed and each.ndim == 2 and each.shape[1] == 1 else added
            sizes[key] = each.numel() * each.element_size() if is_packed else each.untyped_storage().nbytes()
        used = sum(size for key, size in added.items() if key not in known)
        return Added(used, used + sum(reserved.values()))


def _on_the_host() -> Iterator[torch.Tensor]:
    """No fake ones, which have another type."""
    for each in gc.get_objects():
        if type(each) in (torch.Tensor, torch.nn.Parameter) and each.device.type == "cpu":
            yield each


def _host_peak_bytes(run: Callable[[], object], resident: int) -> int | None:
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc only: what the heap kept of earlier iterations goes back
    try:
        CLEAR_REFS.write_text(RESET_PEAK_RSS)
        before = _status_bytes("VmRSS")
    except OSError:
        run()
        return None
    run()
    return resident + _status_bytes("VmHWM") - before


def _status_bytes(name: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) << 10
