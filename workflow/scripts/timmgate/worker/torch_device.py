"""What differs between torch's device types: name, synchronisation, random state, autocast, cores."""

import os
import platform
import random
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

from timmgate.system.cpu_topology import available

CONTROL_REPEATS = 9

CONTROL_SIDE = {"cpu": 512}
"""Rows of the matrix of the control kernel. 4096 on an accelerator: 0.1 Tflop are milliseconds there, and not the launch."""


def name(device: str) -> str:
    """Marketing name of the processor or accelerator, as far as the machine tells it."""
    if device == "cpu":
        return _processor_name()
    accelerator = getattr(torch, device)
    return accelerator.get_device_name() if hasattr(accelerator, "get_device_name") else device


def count(device: str) -> int:
    """How many devices of the type this process sees, as far as torch counts them."""
    accelerator = getattr(torch, device)
    return accelerator.device_count() if device != "cpu" and hasattr(accelerator, "device_count") else 1


def use(device: str, number: int | None) -> None:
    """Make one of several devices of the type the one that its plain name means; of a CPU all is one device to torch."""
    if number is not None and device != "cpu":
        getattr(torch, device).set_device(number)


def answer(device: str) -> None:
    """Have the device compute something. Raises what torch raises if it cannot."""
    torch.ones(1, device=device).add_(1)
    synchronize(device)


def seed_everything(seed: int) -> None:
    """Seed python, numpy, torch and every accelerator (torch.manual_seed reaches all of its devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def generator(device: torch.device, seed: int) -> torch.Generator:
    """A generator of random numbers on the device; on the host, where the device has none."""
    try:
        return torch.Generator(device).manual_seed(seed)
    except RuntimeError:
        return torch.Generator().manual_seed(seed)


@cache
def has_float64(device: str) -> bool:
    """Whether the device computes in float64, as Apple's GPUs do not."""
    try:
        torch.ones(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return False
    return True


def with_float64(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor where it can be made float64: on the host, if its device cannot do that."""
    return tensor if has_float64(tensor.device.type) else tensor.cpu()


def as_real(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, a complex one as real and imaginary parts along one dimension more, the last."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def wide(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in float64, a complex one as its parts."""
    return with_float64(as_real(tensor)).double()


def synchronize(device: str) -> None:
    """Wait until everything that was launched on the device has finished."""
    if device != "cpu":
        getattr(torch, device).synchronize()


def free_bytes(device: str) -> int:
    """Memory of an accelerator that this process may take in addition; 0 where it does not tell."""
    accelerator = getattr(torch, device)
    if not hasattr(accelerator, "mem_get_info"):
        return 0
    try:
        free, _ = accelerator.mem_get_info()
    except RuntimeError:  # not every Intel GPU tells
        return 0
    return free + accelerator.memory_reserved() - accelerator.memory_allocated()


def release_free_memory(device: str) -> None:
    """Give back what an accelerator's allocator keeps for later: another cell on the device may need it."""
    if device != "cpu" and hasattr(getattr(torch, device), "empty_cache"):
        getattr(torch, device).empty_cache()


def autocast_dtype(device: str, requested: str | None) -> torch.dtype:
    """The dtype by its name, or torch's default for the device (bfloat16 on CPU, float16 on CUDA)."""
    return getattr(torch, requested) if requested else torch.get_autocast_dtype(device)


class NarrowDraws(TorchFunctionMode):
    """Draws random numbers in float32 where a float64 model asks for them.

    With one seed torch gives other numbers for float64 than for narrower types (ATen/native/cuda/DistributionTemplates.h,
    uniform_and_transform; on a CPU random64 instead of random), and a reference with other masks or noise is none.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        """Call `function`; what it draws in float64 is drawn in float32, but of `torch.rand` from a generator of its own."""
        kwargs = kwargs or {}
        if function in _DRAWN_INTO and args[0].dtype == torch.float64:
            return args[0].copy_(function(args[0].float(), *args[1:], **kwargs))
        if function in _DRAWN and "generator" not in kwargs and _dtype_of_draw(args, kwargs) == torch.float64:
            return function(*args, **{**kwargs, "dtype": torch.float32}).double()
        if function is torch.bernoulli and args[0].dtype == torch.float64:
            return function(args[0].float(), *args[1:], **kwargs).double()
        if function in _DROPPED and args[0].dtype == torch.float64:
            ones = torch.ones_like(args[0], dtype=torch.float32).requires_grad_(args[0].requires_grad)
            mask = function(ones, *args[1:], **{**kwargs, "inplace": False}).detach()
            return args[0].mul_(mask) if kwargs.get("inplace") else args[0] * mask
        return function(*args, **kwargs)


_TENSOR, _FUNCTIONAL = torch.Tensor, torch.nn.functional
_DRAWN_INTO = {_TENSOR.bernoulli_, _TENSOR.normal_, _TENSOR.uniform_, _TENSOR.exponential_, _TENSOR.log_normal_}
_DRAWN = {torch.rand, torch.randn, torch.rand_like, torch.randn_like}
_DROPPED = {_FUNCTIONAL.dropout, _FUNCTIONAL.dropout1d, _FUNCTIONAL.dropout2d, _FUNCTIONAL.dropout3d}


def _dtype_of_draw(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.dtype | None:
    """The dtype that `torch.rand` and its like give; of a size alone it is torch's default."""
    like = args[0].dtype if args and isinstance(args[0], torch.Tensor) else None
    return kwargs.get("dtype") or like


_ATTRIBUTES = (
    *("fp32_precision", "cudnn.fp32_precision", "mkldnn.fp32_precision"),  # before those which inherit it
    *("cudnn.enabled", "cudnn.benchmark", "cudnn.deterministic", "mkldnn.enabled", "mkldnn.deterministic"),
    *("cudnn.allow_tf32", "cudnn.conv.fp32_precision", "cudnn.rnn.fp32_precision", "cuda.matmul.fp32_precision"),
    *("cuda.matmul.allow_fp16_accumulation", "cuda.matmul.allow_fp16_reduced_precision_reduction"),
    *("cuda.matmul.allow_bf16_reduced_precision_reduction", "mkldnn.conv.fp32_precision"),
    *("mkldnn.matmul.fp32_precision", "mkldnn.rnn.fp32_precision"),
)
"""Settings in torch.backends."""


@contextmanager
def settings_kept(device: str) -> Iterator[None]:
    """Have the settings of torch that there were, whatever a compiler makes of them: precisions, kernels, threads, autocast.

    Else eager, and the null runs that a program is held against, would compute as coarsely as a compiler may have told
    torch to, and eager would be timed so.
    """
    settings = _settings(device)
    before = {name: _told(get) for name, (get, _) in settings.items()}
    try:
        yield
    finally:
        for name, (get, put) in settings.items():
            if before[name] is not None and _told(get) != before[name]:  # torch forbids to mix old names and new ones
                with suppress(RuntimeError, AttributeError, TypeError):
                    put(before[name])


def _told(get: Callable[[], Any]) -> Any:
    """What a setting is; None where torch does not tell, as of an old name of what was set by a new one, or has none."""
    try:
        return get()
    except (RuntimeError, AttributeError):
        return None


def _settings(device: str) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """By name, how to read and to set what is torch's own, and changes what eager computes or how long it takes."""
    attributes = {name: (partial(attrgetter(name), torch.backends), partial(_set, name)) for name in _ATTRIBUTES}
    autocast = {
        f"autocast.{each}.{what}": (partial(get, each), partial(put, each))
        for each in dict.fromkeys(("cpu", "cuda", device))
        for what, get, put in (
            ("enabled", torch.is_autocast_enabled, torch.set_autocast_enabled),
            ("dtype", torch.get_autocast_dtype, torch.set_autocast_dtype),
        )
    }
    of_cuda = torch.backends.cuda
    attention = {
        kind: (getattr(of_cuda, f"{kind}_enabled"), getattr(of_cuda, f"enable_{kind}"))
        for kind in ("flash_sdp", "mem_efficient_sdp", "math_sdp", "cudnn_sdp")
    }
    others = {
        "gradients": (torch.is_grad_enabled, torch.set_grad_enabled),
        "threads": (torch.get_num_threads, torch.set_num_threads),
        "dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "float32_matmul_precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        "deterministic": (
            lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
            lambda both: torch.use_deterministic_algorithms(both[0], warn_only=both[1]),
        ),
    }
    return others | autocast | attention | attributes  # in this order, as a word of the others sets several attributes


def _set(name: str, value: Any) -> None:
    holder, _, attribute = f"backends.{name}".rpartition(".")
    setattr(attrgetter(holder)(torch), attribute, value)


def set_deterministic(deterministic: bool) -> None:
    """Deterministic kernels or the fastest ones; no TF32 and no autotuned convolutions in either case.

    The rest of benchmarks/dynamo's accuracy mode is in force for both checks, so that they run the same program.
    """
    torch.use_deterministic_algorithms(deterministic, warn_only=True)  # some backward passes have no such kernel
    torch.backends.mkldnn.deterministic = deterministic
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)


@contextmanager
def pinned(device: str, threads: int) -> Iterator[None]:
    """On a CPU, all threads of this process on the best of its cores, so many that none moves. Linux only."""
    if device != "cpu" or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = {int(task.name): os.sched_getaffinity(int(task.name)) for task in Path("/proc/self/task").iterdir()}
    cores = available()[:threads]
    for task in before:
        os.sched_setaffinity(task, cores)
    try:
        yield
    finally:
        for task, allowed in before.items():
            with suppress(ProcessLookupError):
                os.sched_setaffinity(task, allowed)


def control_s(device: str, clock: Callable[[], float]) -> float:
    """Median duration in seconds of a fixed matrix product and convolution, which tells how fast the machine is now."""
    side = CONTROL_SIDE.get(device, 4096)
    matrix, image = torch.ones(side, side, device=device), torch.ones(1, 64, 56, 56, device=device)
    kernels = torch.ones(64, 64, 3, 3, device=device)
    durations = []
    for _ in range(CONTROL_REPEATS):
        synchronize(device)
        start = clock()
        matrix @ matrix
        torch.nn.functional.conv2d(image, kernels, padding=1)
        synchronize(device)
        durations.append(clock() - start)
    return statistics.median(durations)


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
