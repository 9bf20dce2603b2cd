"""Faults inside the compiler's stack itself, as against those of `faults`, which are a backend over eager.

Each changes the torch that is installed, for the life of a process, and is put there by importing this package: the variable
TIMMGATE_STACK_FAULT has its name. A build does both:

    broken: {import: [timmgate.worker.faults.stack], env: {TIMMGATE_STACK_FAULT: lowering_relu}}

What `snakemake diagnose` makes of them is known: that is what they are for (benchmarks/diagnosis.py).
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

VARIABLE = "TIMMGATE_STACK_FAULT"


@dataclass(frozen=True)
class StackFault:
    """A fault of the stack.

    * `layer`: where it sits, a word of `core.diagnosis.LAYERS`; `does`: what it breaks there.
    * `model`, `options`, `check`: a model, options of a mode and a check that show it.
    * `module`: the smallest module of that model that has what it breaks, the first of several; None if there is none.
    """

    name: str
    layer: str
    does: str
    apply: Callable[[], None]
    model: str = "small_stack"
    options: dict[str, Any] = field(default_factory=dict)
    check: str = "accuracy"
    module: str | None = None


FAULTS: dict[str, StackFault] = {}


def fault(layer: str, does: str, **fields: Any) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Enter a function that breaks something as a fault of its name."""

    def enter(apply: Callable[[], None]) -> Callable[[], None]:
        FAULTS[apply.__name__] = StackFault(apply.__name__, layer, does, apply, **fields)
        return apply

    return enter


from timmgate.worker.faults.stack import (  # noqa: E402
    code_generation,
    decompositions,
    freezing,
    front,
    graph_passes,
    lowerings,
    subjects,
)

__all__ = ["code_generation", "decompositions", "freezing", "front", "graph_passes", "lowerings", "subjects"]

if os.environ.get(VARIABLE):
    FAULTS[os.environ[VARIABLE]].apply()
