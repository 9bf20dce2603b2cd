"""The figures of a cell whose changes matter, and what must be equal for two measurements of them to be comparable."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A column of `cells` of which less is better, and the classes of a change to more and to less.

    `threshold` is the key of the configuration with the relative change from which on the gate fails; None for a count, of
    which one more is a change. With `over` the figure is no column but one column over another.
    """

    column: str
    worse: str
    better: str
    threshold: str | None = None
    over: tuple[str, str] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that it is made of: one, or what is divided and by what."""
        return self.over or (self.column,)

    def of(self, row: Row) -> float | None:
        """Its value in a row; None where that is not known."""
        one, *others = (row[name] for name in self.columns)
        if not others:
            value: float | None = one
            return value
        return one / others[0] if one and others[0] else None

    @property
    def is_count(self) -> bool:
        """Whether its changes are differences, and not ratios."""
        return self.threshold is None

    def known_in(self, rows: Iterable[Row]) -> list[tuple[Row, float]]:
        """The rows in which it can be compared, each with its value: of ratios, those where it is not 0."""
        values = ((row, self.of(row)) for row in rows)
        return [(row, value) for row, value in values if value is not None and (value or self.is_count)]

    def move(self, value: float, level: float) -> float:
        """How far a value is from a level: the logarithm of the ratio, of a count the difference."""
        return value - level if self.is_count else math.log(value / level)


COMPILED = Figure("compiled_ms", "slower", "faster", "max_slowdown")

COMPILE_COLD = Figure("compile_cold_cpu_s", "slower_compile", "faster_compile", "max_compile_growth")
"""CPU seconds do not suffer from neighbours. On an accelerator too they depend on the number of threads."""

MEMORY = Figure("compiled_allocated_bytes", "more_memory", "less_memory", "max_memory_growth")
"""What torch's allocator gave out is equal in every process. The peak of the resident set of a small model scatters by 3 to
13 %.
"""

GRAPH_BREAKS = Figure("graph_breaks", "more_graph_breaks", "fewer_graph_breaks")
"""A count, which has no chance in it: one more is a change."""

FIGURES = (COMPILED, COMPILE_COLD, MEMORY, GRAPH_BREAKS)

EAGER = Figure("eager_ms", "eager_slower", "eager_faster", "max_slowdown")
"""What compiled is held against. It says whether the compiler or the ground below it moved; no gate fails by it."""

RELATIVE = Figure("relative_time", "slower", "faster", "max_slowdown", over=("compiled_ms", EAGER.column))
"""The inverse of a speedup. Eager and compiled take turns in a process, and nearly all of what makes one process slower than
the next slows both down: between processes on a busy machine either scattered by 3 %, and their ratio by 1 %.
"""

JUDGED = (RELATIVE, *FIGURES[1:])
"""What the gate and the history look at."""


def comparable(check: str) -> tuple[str, ...]:
    """Columns in which two measurements of a check of one cell must agree."""
    conditions = ("allocator", "relocate") if check == "performance" else ()
    return (f"{check}_protocol", "device_name", "weights", "options", f"{check}_batch_size", f"{check}_threads", *conditions)
