"""Traces of one cell, in a process of its own: it compiles with an empty cache, and runs a few iterations.

    python -m timmgate.worker.trace '{"spec": {"check": "performance", ...}, "run": {...}, "profiler": "folder"}' done.json

`profiler` is a folder, or null. Structured logs and generated code come by TORCH_TRACE and the compile cache, which whoever
starts this sets, so that they are there also where the compiler crashes.
"""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from timmgate.core.files import write_text
from timmgate.core.protocol import Request
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.worker import backends, torch_device
from timmgate.worker.__main__ import import_first, set_environment
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


def main(request: str, file: str) -> None:
    """Trace what the JSON object asks for."""
    values = json.loads(request)
    spec, run = Spec.from_dict(values["spec"]), RunOptions.from_dict(values["run"])
    set_environment(run.threads, run.cache)
    import_first(run.build.import_)
    batch_size = Request((spec,), run).batch_size(spec)
    profiler = Path(values["profiler"]) if values["profiler"] else None
    trace(spec, Setup(run.threads, Cache(run.cache), batch_size, run.weights), profiler)
    write_text(Path(file), "[]")


if __name__ == "__main__":
    main(*sys.argv[1:])
