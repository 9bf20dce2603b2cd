"""How often a layer is applied that torch's bisector can leave out, and what the last application is that is left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from timmgate.core.diagnosis import BISECTED, Variant
from timmgate.core.protocol import Reporter


@contextmanager
def counted(variant: Variant, reporter: Reporter) -> Iterator[Callable[[], None]]:
    """Report the applications of the variant's layer once the context is left; what it yields begins to count.

    What is left out is for torch to decide, by the environment variables of the variant.
    """
    if variant.layer is None:
        yield lambda: None
        return
    from torch._inductor import compiler_bisector
    from torch._inductor.compiler_bisector import CompilerBisector

    backend, subsystem = BISECTED[variant.layer]
    original, last = CompilerBisector.disable_subsystem, [""]

    def disable_subsystem(of_backend: str, name: str, debug_info: Callable[[], Any] | None = None) -> bool:
        is_off = original(of_backend, name, debug_info)
        if (of_backend, name) == (backend, subsystem) and not is_off and debug_info:
            last[0] = str(debug_info())
        return is_off

    CompilerBisector.disable_subsystem = disable_subsystem
    try:
        yield compiler_bisector.subsystem_call_counter.clear
    finally:
        CompilerBisector.disable_subsystem = original
        count = compiler_bisector.subsystem_call_counter[subsystem]
        reporter.columns(applications=count, application=last[0] or None)
