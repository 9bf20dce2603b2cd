"""What differs between torch's device types: name, synchronisation, random state, autocast."""

import platform
import random
from pathlib import Path

import numpy as np
import torch


def name(device: str) -> str:
    """Marketing name of the processor or accelerator, as far as the machine tells it."""
    if device == "cpu":
        return _processor_name()
    if device in ("cuda", "xpu"):
        return getattr(torch, device).get_device_name()
    return device


def seed_everything(seed: int) -> None:
    """Seed python, numpy, torch and every accelerator (torch.manual_seed reaches all of its devices)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def synchronize(device: str) -> None:
    """Wait until everything that was launched on the device has finished."""
    if device != "cpu":
        getattr(torch, device).synchronize()


def autocast_dtype(device: str, requested: str | None) -> torch.dtype:
    """The dtype by its name, or torch's default for the device (bfloat16 on CPU, float16 on CUDA)."""
    return getattr(torch, requested) if requested else torch.get_autocast_dtype(device)


def make_deterministic() -> None:
    """Deterministic kernels, no TF32, no autotuned convolutions: the settings of benchmarks/dynamo's accuracy mode."""
    torch.use_deterministic_algorithms(True)
    torch.backends.mkldnn.deterministic = True
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(False)


def _processor_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []:
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
