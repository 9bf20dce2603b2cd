"""Layers of which only some applications are left: how many come, and what the last one is that was left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from timmgate.core.diagnosis import BISECTED, CODE, Variant
from timmgate.core.protocol import Reporter


@contextmanager
def counted(variant: Variant, reporter: Reporter) -> Iterator[Callable[[], None]]:
    """Leave what the variant says, and report the applications of its layer at the end; what it yields begins to count."""
    if variant.layer is None:
        yield lambda: None
    elif variant.layer == CODE:
        with _interpreted(variant, reporter) as begin:
            yield begin
    else:
        with _bisected(variant, reporter) as begin:
            yield begin


@contextmanager
def _interpreted(variant: Variant, reporter: Reporter) -> Iterator[Callable[[], None]]:
    from timmgate.worker.diagnose import interpreted

    with interpreted.interpreted(variant.applications) as count:

        def begin() -> None:
            count.met, count.last = 0, None

        try:
            yield begin
        finally:
            reporter.columns(applications=count.met, application=count.last)


@contextmanager
def _bisected(variant: Variant, reporter: Reporter) -> Iterator[Callable[[], None]]:
    """What is left out is for torch to decide, by the environment variables of the variant."""
    from torch._inductor import compiler_bisector
    from torch._inductor.compiler_bisector import CompilerBisector

    backend, subsystem = BISECTED[variant.layer]
    original, last = CompilerBisector.disable_subsystem, [""]

    def disable_subsystem(of_backend: str, name: str, debug_info: Callable[[], Any] | None = None) -> bool:
        is_off = original(of_backend, name, debug_info)
        if (of_backend, name) == (backend, subsystem) and not is_off and debug_info:
            last[0] = str(debug_info())
        return is_off

    with mock.patch.object(CompilerBisector, "disable_subsystem", disable_subsystem):
        try:
            yield compiler_bisector.subsystem_call_counter.clear
        finally:
            count = compiler_bisector.subsystem_call_counter[subsystem]
            reporter.columns(applications=count, application=last[0] or None)
