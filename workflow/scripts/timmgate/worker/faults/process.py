"""Faults of the compiler and of the process, and programs that are wrong only sometimes."""

import ctypes
import os
import signal
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn

import torch
from torch import Tensor

from timmgate.worker.faults.gradients import with_element
from timmgate.worker.faults.graph import Call, breaks_result, has_batch, is_kernel, nodes


class InjectedError(RuntimeError):
    """What a fault raises that does nothing but raise."""


def fail() -> NoReturn:
    """Raise."""
    raise InjectedError("this fault raises an exception")


def hang() -> NoReturn:
    """Wait for ever."""
    while True:
        time.sleep(3600)


def end() -> NoReturn:
    """End the process without any clean-up."""
    os._exit(3)


def kill() -> None:
    """Send SIGKILL to the process itself."""
    os.kill(os.getpid(), signal.SIGKILL)


def segfault() -> None:
    """Read from address 0."""
    ctypes.string_at(0)


def exhaust_memory() -> NoReturn:
    """Allocate memory of the default device, and write to it, until something ends it."""
    kept = []
    while True:
        kept.append(torch.ones(1 << 24))


COMPILING: Mapping[str, Callable[[], None]] = MappingProxyType({"raise-compile": fail, "hang-compile": hang})
"""What happens while the forward graph is compiled."""

RUNNING: Mapping[str, Callable[[], None]] = MappingProxyType(
    {
        "raise-run": fail,
        "raise-backward": fail,
        "hang-run": hang,
        "exit": end,
        "kill": kill,
        "segfault": segfault,
        "exhaust-memory": exhaust_memory,
    }
)
"""What happens when the compiled graph runs."""

RECOMPILE = "recompile"


class Recompiling(torch.nn.Module):
    """A model that dynamo must compile again after each `count`: the traced code depends on the number."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model, self.calls = model, 0

    def count(self) -> None:
        """One more call."""
        self.calls += 1

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.calls < 0:
            raise AssertionError("a count is not negative")
        return self.model(*args, **kwargs)


def is_first(call: Call) -> bool:
    """Whether a node is called for the first time."""
    call.memory["calls"] = call.memory.get("calls", 0) + 1
    return bool(call.memory["calls"] == 1)


@breaks_result("wrong-first", nodes(is_kernel))
def wrong_first(out: Tensor, call: Call) -> Tensor:
    return out * call.size if is_first(call) else out


@breaks_result("wrong-later", nodes(is_kernel))
def wrong_later(out: Tensor, call: Call) -> Tensor:
    return out if is_first(call) else out * call.size


@breaks_result("wrong-other-batch", nodes(has_batch))
def wrong_other_batch(out: Tensor, call: Call) -> Tensor:
    return out if call.memory.setdefault("batch", out.shape[0]) == out.shape[0] else out * call.size


@breaks_result("wrong-at-random", nodes(is_kernel))
def wrong_at_random(out: Tensor, call: Call) -> Tensor:
    """The element is another number of a generator of the fault's own."""
    generator = call.memory.setdefault("generator", torch.Generator().manual_seed(0))
    return with_element(out, torch.rand((), generator=generator).item())
