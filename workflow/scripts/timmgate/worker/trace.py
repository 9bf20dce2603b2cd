"""Traces of one cell, in a process of its own: it compiles with an empty cache, and runs a few iterations.

Structured logs and generated code come by TORCH_TRACE and the compile cache, which whoever starts this sets, so that they
are there also where the compiler crashes.
"""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.worker import backends, torch_device
from timmgate.worker.compile_cache import Cache
from timmgate.worker.training_step import Setup, fresh, iterate, make, make_optimizer

WARM_UP = 2
"""Iterations before those that are profiled: the first one compiles, the second one may."""

PROFILED = 3
"""Iterations in a profile."""


def trace(spec: Spec, setup: Setup, profiler: Path | None) -> None:
    """Compile and run; with a folder for it, profile a few iterations of both sides."""
    torch.set_num_threads(setup.threads)
    torch_device.set_deterministic(False)
    model, images = make(spec, setup)
    images = fresh(spec, images)
    with torch.set_grad_enabled(spec.options.training), backends.configured(spec):
        setup.cache.open()
        compiled = copy.deepcopy(model)
        forward = backends.compile_model(spec, compiled, images)
        sides: dict[str, tuple[torch.nn.Module, Callable[..., Any]]] = {
            "compiled": (compiled, forward),
            "eager": (model, model),
        }
        for name, (module, call) in sides.items():
            optimizer = make_optimizer(spec, module)
            for _ in range(WARM_UP):
                iterate(spec, module, call, images, optimizer)
            torch_device.synchronize(spec.device)
            if profiler:
                with profile(activities=activities(spec.device), record_shapes=True) as found:
                    for _ in range(PROFILED):
                        iterate(spec, module, call, images, optimizer)
                    torch_device.synchronize(spec.device)
                profiler.mkdir(parents=True, exist_ok=True)
                found.export_chrome_trace(str(profiler / f"{name}.json"))


def activities(device: str) -> list[ProfilerActivity]:
    """What is profiled: the host, and an accelerator that the profiler knows."""
    names = dict.fromkeys(["CPU", device.upper()])
    return [getattr(ProfilerActivity, name) for name in names if hasattr(ProfilerActivity, name)]


def study(spec: Spec, run: RunOptions, device_number: int | None, profiler: str | None) -> list[dict[str, Any]]:
    """Trace a cell; there are no rows."""
    setup = Setup.of(run, Cache(run.cache), spec.requested_batch_size, device_number)
    trace(spec, setup, Path(profiler) if profiler else None)
    return []
