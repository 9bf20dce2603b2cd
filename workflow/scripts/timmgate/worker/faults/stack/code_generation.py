"""Faults in the C++ that is made of loops."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch._inductor.codegen import cpp

from timmgate.worker.faults.stack import fault


def _wrap(cls: type, name: str, change: Callable[..., str]) -> None:
    """Call `change` with what prints an operation in front of its arguments."""
    original = getattr(cls, name)

    @wraps(original)
    def printed(*args: Any, **kwargs: Any) -> str:
        return change(original, *args, **kwargs)

    setattr(cls, name, staticmethod(printed))


def _both(name: str, change: Callable[..., str]) -> None:
    for cls in (cpp.CppOverrides, cpp.CppVecOverrides):
        _wrap(cls, name, change)


@fault("code_generation", "vectors are exponentiated a little steeper", module="gate")
def code_exp() -> None:
    _wrap(cpp.CppVecOverrides, "exp", lambda original, x: original(f"({x} + {x} * {x} * decltype({x})(0.01))"))


@fault("code_generation", "differences of vectors are off", module="stem.norm")
def code_sub() -> None:
    _wrap(cpp.CppVecOverrides, "sub", lambda original, a, b: f"({original(a, b)} * decltype({a})(1.01))")


@fault("code_generation", "reciprocal roots are off, in vectors and scalars", module="stem.norm")
def code_rsqrt() -> None:
    _both("rsqrt", lambda original, x: f"({original(x)} * decltype({original(x)})(1.01))")


@fault("code_generation", "the error function is off, in vectors and scalars", module="mlp.act")
def code_erf() -> None:
    _both("erf", lambda original, x: f"({original(x)} * decltype({original(x)})(0.99))")


@fault("code_generation", "ReLU of vectors lets a little through", module="stem.act")
def code_relu() -> None:
    _wrap(cpp.CppVecOverrides, "relu", lambda original, x: original(f"({x} + decltype({x})(0.01))"))


@fault("code_generation", "a sum of vectors starts at more than nothing", module="norm1")
def code_sum() -> None:
    original = cpp.CppVecKernel.reduction_init_vec

    def init(self: Any, reduction_type: str, dtype: Any) -> str:
        value = original(self, reduction_type, dtype)
        return f"{value} + {value.split('(')[0]}(0.05)" if reduction_type == "sum" else value

    cpp.CppVecKernel.reduction_init_vec = init


@fault("code_generation", "loops of 20 stop one short", module="stem.conv")
def code_loops() -> None:
    original = cpp.LoopLevel.lines

    def lines(self: Any) -> Any:
        found = original(self)
        return found and [line.replace(f"{self.var}<static_cast<int64_t>(20L)", f"{self.var}<static_cast<int64_t>(19L)")
                          for line in found]  # fmt: skip

    cpp.LoopLevel.lines = lines


@fault("code_generation", "the code does not compile", module="gate")
def code_undeclared() -> None:
    _both("exp", lambda original, x: f"no_such_exp({original(x)})")


@fault("code_generation", "the code writes to nowhere", module="gate")
def code_segfault() -> None:
    _both("exp", lambda original, x: f"(*(volatile int*)8 = 1, {original(x)})")
