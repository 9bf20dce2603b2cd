"""Compilers: one model in, the same model compiled out, by the options of a mode."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._dynamo.callback import callback_handler

from timmgate.messages import Reporter
from timmgate.settings import did_you_mean
from timmgate.spec import Spec


class UnknownBackendError(ValueError):
    """torch.compile has no backend of that name; the message has near matches."""


class UnknownInductorOptionError(ValueError):
    """torch._inductor.config has no key of that name; the message has near matches."""


def compile_model(spec: Spec, model: torch.nn.Module) -> Callable[..., Any]:
    """`model` compiled with the mode's backend. Nothing is compiled until the first call. Raises UnknownBackendError."""
    options, known = spec.options, torch.compiler.list_backends(exclude_tags=())
    if options.backend not in known:
        raise UnknownBackendError(f"no torch.compile backend {options.backend!r}{did_you_mean(options.backend, known)}")
    compile_mode = {} if options.compile_mode == "default" else {"mode": options.compile_mode}
    return torch.compile(model, backend=options.backend, dynamic=options.dynamic, **compile_mode)


@contextmanager
def configured(spec: Spec) -> Iterator[None]:
    """Dynamo's and inductor's settings for the mode, in force while models are compiled and run.

    Raises UnknownInductorOptionError.
    """
    changes = inductor_changes(spec)
    known = torch._inductor.config.get_config_copy()
    for key in changes:
        if key not in known:
            raise UnknownInductorOptionError(f"no inductor option {key!r}{did_you_mean(key, list(known))}")
    with torch._inductor.config.patch(changes), torch._dynamo.config.patch(suppress_errors=False):
        yield


def inductor_changes(spec: Spec) -> dict[str, Any]:
    """What the mode and the suite's table set in torch._inductor.config; the mode's `inductor_config` wins."""
    return {
        "fallback_random": True,  # the random numbers of eager, so that dropout drops the same
        "freezing": spec.options.freezing,
        "triton.cudagraphs": spec.options.cudagraphs,
        "emulate_precision_casts": spec.traits.emulate_precision_casts,
        **spec.options.inductor_config,
    }


@contextmanager
def compile_stages(reporter: Reporter) -> Iterator[None]:
    """Forget what was compiled before, then report the stage `compile` while dynamo compiles and `run` in between.

    An exception leaves the stage that it was raised in.
    """

    def begin(_: Any) -> None:
        reporter.stage("compile")

    def end(_: Any) -> None:
        if sys.exc_info()[0] is None:
            reporter.stage("run")

    torch._dynamo.reset()  # also forgets callbacks
    callback_handler.register_start_callback(begin)
    callback_handler.register_end_callback(end)
    try:
        yield
    finally:
        callback_handler.clear()
