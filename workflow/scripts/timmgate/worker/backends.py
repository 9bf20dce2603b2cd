"""Compilers: one model in, the same model compiled out, by the options of a mode."""

import os
import sys
import time
import traceback
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from typing import Any

import torch
from torch._dynamo.callback import callback_handler
from torch._dynamo.utils import clear_compilation_metrics, counters, get_compilation_metrics, set_compilation_metrics_limit

from timmgate.core import faults as fault_names
from timmgate.core.errors import did_you_mean
from timmgate.core.protocol import Reporter
from timmgate.core.spec import INDUCTOR_BACKENDS, Mode, Spec
from timmgate.system.process_tree import tree_cpu_s
from timmgate.worker import faults, models, torch_device
from timmgate.worker.compile_cache import Cache, build_toolchain


class UnknownBackendError(ValueError):
    """torch.compile has no backend of that name; the message has near matches."""


class UnsupportedDeviceError(ValueError):
    """The mode asks for something that the device does not have."""


class NothingCompiledError(RuntimeError):
    """The compiled model is the model itself: what is wrong with the compiler would not be seen."""


class InductorOptionError(ValueError):
    """torch._inductor.config has no key of that name, or none that takes such a value; the message says which would do."""


def compile_model(spec: Spec, model: torch.nn.Module, images: torch.Tensor) -> Callable[..., Any]:
    """`model` compiled with the mode's backend: ahead of time on `images`, or at its first calls by torch.compile.

    Raises UnknownBackendError, UnsupportedDeviceError. With a fault, calls may raise faults.FaultNotApplicable.
    """
    options = spec.options
    check_backend(options, spec.device)
    if fault_names.is_fault(options.backend):
        return faults.compile_model(options.backend, model, options.dynamic or None)
    if options.backend in AHEAD_OF_TIME:
        dtype = models.amp_dtype(spec)
        whole = model if dtype is None else UnderAutocast(model, spec.device, dtype)
        return AHEAD_OF_TIME[options.backend](whole, images, options.dynamic)
    compile_mode = {} if options.compile_mode == "default" else {"mode": options.compile_mode}
    return torch.compile(model, backend=options.backend, dynamic=options.dynamic or None, **compile_mode)


def check_backend(options: Mode, device: str) -> None:
    """Raise UnknownBackendError, UnsupportedDeviceError if the backend cannot be had on a device of this type."""
    if device != "cuda" and (options.cudagraphs or options.backend == "cudagraphs"):
        raise UnsupportedDeviceError(f"CUDA graphs need device cuda, this is {device}")
    if fault_names.is_fault(options.backend):
        try:
            fault_names.parse(options.backend)
        except fault_names.UnknownFaultError as error:
            raise UnknownBackendError(str(error)) from None
        return
    known = [*torch.compiler.list_backends(exclude_tags=()), *AHEAD_OF_TIME]
    if options.backend not in known:
        raise UnknownBackendError(f"there is no backend {options.backend!r}{did_you_mean(options.backend, known)}")


def check_precision(options: Mode, device: str) -> None:
    """Raise UnsupportedDeviceError if a device of this type cannot compute in the mode's precision."""
    if options.precision == "float32":
        return
    is_amp = options.precision == "amp"
    try:
        dtype = torch_device.autocast_dtype(device, options.amp_dtype) if is_amp else models.CAST_DTYPES[options.precision]
        ones = torch.ones(8, 8, device=device, dtype=torch.float32 if is_amp else dtype)
        with torch.autocast(device, dtype=dtype) if is_amp else nullcontext():
            computed = (ones @ ones).dtype
        torch_device.synchronize(device)
    except Exception as error:
        raise UnsupportedDeviceError(f"{device} cannot compute in {options.precision} ({first_line(error)})") from error
    if computed != dtype:  # autocast only warns, and computes as before
        name = str(dtype).removeprefix("torch.")
        raise UnsupportedDeviceError(f"autocast on {device} does not compute in {name}")


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class UnderAutocast(torch.nn.Module):
    """A model with autocast inside: torch.export does not see the one that it is called under."""

    def __init__(self, model: torch.nn.Module, device: str, dtype: torch.dtype):
        super().__init__()
        self.model, self.device, self.dtype = model, device, dtype

    def forward(self, images: torch.Tensor) -> Any:
        with torch.autocast(self.device, dtype=self.dtype):
            return self.model(images)


def export(model: torch.nn.Module, images: torch.Tensor, dynamic: bool) -> Callable[..., Any]:
    """The program that torch.export captures, run as it is. With `dynamic`, for any batch size."""
    return exported_program(model, images, dynamic).module()


def aot_inductor(model: torch.nn.Module, images: torch.Tensor, dynamic: bool) -> Callable[..., Any]:
    """The program that torch.export captures, compiled by inductor into a package, and that package loaded again."""
    package = torch._inductor.aoti_compile_and_package(exported_program(model, images, dynamic))
    return torch._inductor.aoti_load_package(package)


def exported_program(model: torch.nn.Module, images: torch.Tensor, dynamic: bool) -> torch.export.ExportedProgram:
    """What torch.export makes of the model, with a free batch size if `dynamic`, unless it is 1: that is a constant."""
    dynamic_shapes = ({0: torch.export.Dim.DYNAMIC},) if dynamic and len(images) > 1 else None
    return torch.export.export(model, (images,), dynamic_shapes=dynamic_shapes)


def nothing(model: torch.nn.Module, images: torch.Tensor, dynamic: bool) -> Callable[..., Any]:
    """The model itself: no compiler at all, which the clock itself is tested with (benchmarks/dynamo --nothing)."""
    return model


AHEAD_OF_TIME = {"export": export, "aot_inductor": aot_inductor, "nothing": nothing}
"""Backends that get a whole model before it runs; torch.compile does not know them. The first two are for inference only."""

COMPILER_STAGES = {
    "dynamo_s": "dynamo_cumulative_compile_time_us",
    "aot_autograd_s": "aot_autograd_cumulative_compile_time_us",
    "inductor_s": "inductor_cumulative_compile_time_us",
    "codegen_s": "inductor_code_gen_cumulative_compile_time_us",
}
"""Columns, and the fields of torch._dynamo.utils.CompilationMetrics that they sum; each includes those after it."""


MAX_COMPILATIONS = 100_000
"""Compilations whose metrics torch is to keep: it forgets all but the last 64. A choice: each takes some kilobytes."""


@contextmanager
def configured(spec: Spec) -> Iterator[None]:
    """Dynamo's and inductor's settings for the mode, in force while models are compiled and run.

    Raises InductorOptionError.
    """
    changes = inductor_changes(spec)
    check_inductor_config(changes)
    with torch._inductor.config.patch(changes), torch._dynamo.config.patch(suppress_errors=False):
        yield


def check_inductor_config(changes: Mapping[str, Any]) -> None:
    """Raise InductorOptionError for a key that torch._inductor.config does not have, and for a value of another type."""
    known = inductor_options()
    for key, value in changes.items():
        if key not in known:
            raise InductorOptionError(_unknown_option(key, known))
        if not is_of_type(value, known[key]) and value != getattr(torch._inductor.config, key):
            raise InductorOptionError(f"inductor option {key!r} is {value!r}{_wanted(value, known[key])}")


def inductor_options() -> dict[str, Any]:
    """The names of torch._inductor.config, with dots, and the type of each as far as torch declares it."""
    config = torch._inductor.config
    return {name: config.get_type(name) for name in config._config}  # get_config_copy leaves out what has an alias


def _wanted(value: Any, hint: Any) -> str:
    """What a value would have to be, as the end of a sentence."""
    if typing.get_origin(hint) is typing.Literal:
        return did_you_mean(value, [str(word) for word in typing.get_args(hint)])
    return f"; it must be of the type {hint.__name__ if isinstance(hint, type) else hint}"


def _unknown_option(key: str, known: Collection[str]) -> str:
    members = [name for name in known if name.startswith(f"{key}.")]
    if members:
        return f"inductor option {key!r} is a group; write its members with a dot, such as {members[0]}"
    return f"no inductor option {key!r}{did_you_mean(key, known)}"


def is_of_type(value: Any, hint: Any) -> bool:
    """Whether a value that YAML can express is of a type; it is where the type is not known.

    A whole number is a float, and a list a tuple. What is in a list, tuple or dict is not looked at, as in torch.compile.
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return any(is_of_type(value, part) for part in typing.get_args(hint) if part is not type(None) or value is None)
    if origin is typing.Literal:
        return any(value == word and type(value) is type(word) for word in typing.get_args(hint))
    if hint is None or hint is type(None) or not isinstance(origin or hint, type):  # such as a default of None
        return True
    wider = {float: (float, int), tuple: (tuple, list)}.get(origin or hint, origin or hint)
    return isinstance(value, wider) and not (hint is float and isinstance(value, bool))


def inductor_changes(spec: Spec) -> dict[str, Any]:
    """What the mode and the suite's table set in torch._inductor.config; the mode's `inductor_config` wins."""
    return {
        "fallback_random": True,  # the random numbers of eager, so that dropout drops the same
        "freezing": spec.options.freezing,
        "triton.cudagraphs": spec.options.cudagraphs,
        "emulate_precision_casts": spec.traits.emulate_precision_casts,
        **as_declared(spec.options.inductor_config),
    }


def as_declared(changes: Mapping[str, Any]) -> dict[str, Any]:
    """The same with numbers as texts and texts as numbers where torch declares the other: both are typed alike."""
    hints = inductor_options()
    return {key: _as_declared(value, hints.get(key)) for key, value in changes.items()}


def _as_declared(value: Any, hint: Any) -> Any:
    if is_of_type(value, hint):
        return value
    if type(value) in (int, float):
        return str(value) if is_of_type(str(value), hint) else value
    for number in (int, float) if isinstance(value, str) else ():
        with suppress(ValueError):
            if is_of_type(number(value), hint):
                return number(value)
    return value


class FirstIteration:
    """What a compilation costs, from here to `stop`: seconds by the clock and of the processor, and dynamo's own times.

    The clock stands still while a neighbour that is timed has this process paused. Dynamo's does not, and does not tell
    when: its times are shortened by the share of all the time that the pauses took.
    """

    def __init__(self, device: str, clock: Callable[[], float], was_cold: bool):
        self._device, self._clock, self.was_cold = device, clock, was_cold
        set_compilation_metrics_limit(MAX_COMPILATIONS)
        clear_compilation_metrics()
        self._start = clock(), time.perf_counter(), tree_cpu_s(os.getpid())
        self.costs: dict[str, float] = {}

    def stop(self) -> None:
        """The first iteration is done."""
        torch_device.synchronize(self._device)
        ended = self._clock(), time.perf_counter(), tree_cpu_s(os.getpid())
        wall_s, with_pauses_s, cpu_s = (after - before for before, after in zip(self._start, ended, strict=True))
        self.costs = {"wall_s": wall_s, "cpu_s": cpu_s}
        for column, field in COMPILER_STAGES.items():
            by_dynamo_s = sum(getattr(metrics, field) or 0 for metrics in get_compilation_metrics()) / 1e6
            self.costs[column] = by_dynamo_s * wall_s / with_pauses_s


def reuses_outputs(spec: Spec) -> bool:
    """Whether a call of the compiled program may write over the outputs of the one before, as CUDA graphs do."""
    options = spec.options
    asked = (
        options.cudagraphs or options.backend == "cudagraphs" or options.compile_mode in ("reduce-overhead", "max-autotune")
    )
    return spec.device == "cuda" and (asked or torch._inductor.config.triton.cudagraphs)


def has_own_tensors(spec: Spec) -> bool:
    """Whether a program has copies of the weights and buffers, and leaves those of the model alone."""
    return spec.options.backend == "aot_inductor"


@contextmanager
def compiling(spec: Spec, cache: Cache, reporter: Reporter) -> Iterator[FirstIteration]:
    """Compile from nothing but what is in the cache, and report the stage `compile` while dynamo compiles, `run` in between.

    What belongs to the toolchain is built before the clock starts; where that fails, compiling will say so. An exception
    leaves the stage that it was raised in. Torch's settings are afterwards as they were.
    """

    def begin(_: Any) -> None:
        reporter.stage("compile")

    def end(_: Any) -> None:
        if sys.exc_info()[0] is None:
            reporter.stage("run")

    is_new = cache.open()
    if spec.options.backend in INDUCTOR_BACKENDS:
        try:
            build_toolchain(spec.device)
        except Exception:
            traceback.print_exc()
    torch._dynamo.reset()  # also forgets callbacks
    counters.clear()
    callback_handler.register_start_callback(begin)
    callback_handler.register_end_callback(end)
    first_iteration = FirstIteration(spec.device, reporter.clock, is_new)
    try:
        with torch_device.settings_kept(spec.device):
            yield first_iteration
    finally:
        callback_handler.clear()
    if is_new:
        cache.keep_cold(first_iteration.costs)


def check_compiled(spec: Spec) -> None:
    """Raise NothingCompiledError if dynamo has captured no graph since `compiling` began."""
    if spec.options.backend not in AHEAD_OF_TIME and not counters["stats"]["unique_graphs"]:
        raise NothingCompiledError("nothing was compiled: dynamo captured no graph, and eager ran in its place")


def statistics() -> dict[str, Any]:
    """What dynamo and inductor counted since `compiling` began, as columns of the row."""
    breaks = [reason for reason, count in counters["graph_break"].items() for _ in range(count)]
    return {
        "graph_breaks": len(breaks),
        "graph_break_reasons": breaks,
        "unique_graphs": counters["stats"]["unique_graphs"],
        "ops_captured": counters["stats"]["calls_captured"],
        "fallbacks_to_eager": counters["frames"]["total"] - counters["frames"]["ok"],
        "recompiles": sum(metrics.recompile_reason is not None for metrics in get_compilation_metrics()),
        "cudagraph_skips": counters["inductor"]["cudagraph_skips"],
    }
