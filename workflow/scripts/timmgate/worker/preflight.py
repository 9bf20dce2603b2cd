"""Is what was requested possible here, before any cell is measured? In the environment and on the device that will measure.

It also builds what the compiler needs once per machine.
"""

import os
import sys
import traceback
from collections.abc import Iterator

import timm
import torch
from torch._inductor.cpp_builder import get_cpp_compiler

from timmgate.core import packages
from timmgate.core.faults import is_fault
from timmgate.core.names import UnknownModelError, check_name
from timmgate.core.preflight import Answer, Question
from timmgate.core.spec import INDUCTOR_BACKENDS
from timmgate.worker import backends, compile_cache, torch_device

DEVICES = ("cpu", "cuda", "xpu", "mps")

OF_TRITON = ("cuda", "xpu")
"""Those for which inductor writes kernels in Triton."""


def answer(question: Question) -> Answer:
    """What is wrong with the request, one sentence each, and what is known of the device."""
    problem = device_problem(question.device)
    unknown_models = {} if problem else model_problems(question)
    problems = [problem] if problem else [*mode_problems(question), *package_problems(question)]
    if not question.may_lack_models:
        problems += unknown_models.values()
    if problems:
        return Answer(problems)
    return Answer(
        unknown_models=unknown_models,
        devices=torch_device.count(question.device),
    )


def build_toolchain(question: Question) -> None:
    """Build what belongs to no model, after the answer: a compiler that breaks or crashes on the simplest program is what
    the cells are about to say, and no reason not to measure them.
    """
    if question.toolchain and uses_inductor(question):
        try:
            compile_cache.fill_toolchain(question.toolchain, question.device, question.software)
        except Exception:
            traceback.print_exc()


def device_problem(device: str) -> str | None:
    """Why the device does not answer, None if it does."""
    try:
        torch_device.answer(device)
    except Exception as error:
        others = ", ".join(each for each in DEVICES if each != device and _answers(each)) or "no other"
        return f"device: {device} does not answer ({backends.first_line(error)}); this machine has {others}"
    return None


def _answers(device: str) -> bool:
    try:
        torch.ones(1, device=device)
    except Exception:
        return False
    return True


def mode_problems(question: Question) -> Iterator[str]:
    """What is wrong with the modes."""
    for name, mode in question.modes.items():
        try:
            backends.check_backend(mode, question.device)
            backends.check_precision(mode, question.device)
            backends.check_inductor_config(backends.as_declared(mode.inductor_config))
            load_backend(mode.backend)
        except ValueError as error:
            yield f"mode {name!r}: {error}"
    is_off = torch._dynamo.config.disable or os.environ.get("TORCHDYNAMO_DISABLE") == "1"
    if is_off and any(mode.backend not in backends.AHEAD_OF_TIME for mode in question.modes.values()):
        yield "torch.compile is switched off and would compile nothing; unset TORCHDYNAMO_DISABLE and TORCH_COMPILE_DISABLE"
    if question.device == "cpu" and uses_inductor(question):
        try:
            get_cpp_compiler()
        except Exception as error:
            reason = backends.first_line(error)
            yield f"there is no C++ compiler that works, and inductor needs one on a CPU ({reason}); install g++, or set CXX"

    if question.device in OF_TRITON and uses_inductor(question):
        try:
            from triton.runtime import driver

            driver.active.get_current_target()
        except Exception as error:
            reason = f"{type(error).__name__}: {backends.first_line(error)}"
            yield f"triton does not work on {question.device}, and inductor needs it ({reason}); it needs gcc and Python.h"


def package_problems(question: Question) -> Iterator[str]:
    """Which packages of data this environment lacks."""
    for package in question.packages:
        if not packages.is_installed(package):
            yield f"weights: with packaged ones models see photos of {package}, which {sys.executable} lacks; install it"


def load_backend(backend: str) -> None:
    """Import the package that registers a backend, as torch.compile would in each cell. Raises UnknownBackendError."""
    if backend in backends.AHEAD_OF_TIME or is_fault(backend):
        return
    try:
        torch._dynamo.lookup_backend(backend)
    except Exception as error:
        reason = f"{type(error).__name__}: {backends.first_line(error)}"
        raise backends.UnknownBackendError(f"the backend {backend!r} cannot be imported ({reason})") from error


def model_problems(question: Question) -> dict[str, str]:
    """Which of the models that somebody typed do not exist, each with a sentence."""
    problems = {}
    for model in question.models:
        try:
            check_name(model, timm)
        except UnknownModelError as error:
            problems[model] = f"models: {error}"
    return problems


def uses_inductor(question: Question) -> bool:
    """Whether any mode needs what the compiler builds once per machine."""
    return any(mode.backend in INDUCTOR_BACKENDS for mode in question.modes.values())
