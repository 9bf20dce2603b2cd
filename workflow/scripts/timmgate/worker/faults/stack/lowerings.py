"""Faults in the lowerings of operators to loops."""

from collections.abc import Callable
from typing import Any

import torch
from torch._inductor import lowering
from torch._inductor.lowering import lowerings

from timmgate.worker.faults.stack import fault

aten = torch.ops.aten
TRAINING = {"options": {"training": True}}


def _wrap(operator: Any, change: Callable[..., Any]) -> None:
    """Call `change` with the lowering of an operator in front of its arguments."""
    original = lowerings[operator]
    lowerings[operator] = lambda *args, **kwargs: change(original, *args, **kwargs)


@fault("lowerings", "ReLU lets a little through", module="stem.act")
def lowering_relu() -> None:
    _wrap(aten.relu.default, lambda original, x: lowering.add(original(lowering.add(x, 0.01)), 0.0))


@fault("lowerings", "exp is steeper", module="gate")
def lowering_exp() -> None:
    _wrap(aten.exp.default, lambda original, x: original(lowering.mul(x, 1.01)))


@fault("lowerings", "the mean divides by one more", module="ends")
def lowering_mean() -> None:
    _wrap(aten.mean.dim, lambda original, x, *args, **kwargs: lowering.mul(original(x, *args, **kwargs), 0.98))


@fault("lowerings", "the error function is scaled", module="mlp.act")
def lowering_erf() -> None:
    _wrap(aten.erf.default, lambda original, x: lowering.mul(original(x), 0.99))


@fault("lowerings", "tensors are put together in the reverse order", module="ends")
def lowering_cat() -> None:
    _wrap(aten.cat.default, lambda original, tensors, dim=0: original([*reversed(tensors)], dim))


@fault("lowerings", "an average counts the padding", module="pool")
def lowering_pool() -> None:
    def pool(original: Any, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, *_: Any, **__: Any) -> Any:
        return original(x, kernel, stride, padding, False, False)

    _wrap(aten.avg_pool2d.default, pool)


@fault("lowerings", "sums of the backward pass lose a part", **TRAINING, module="stem.norm")
def lowering_sum() -> None:
    _wrap(aten.sum.dim_IntList, lambda original, *args, **kwargs: lowering.mul(original(*args, **kwargs), 0.97))


@fault("lowerings", "it raises at the largest value", module="attention.softmax")
def lowering_raises() -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("cannot lower amax")

    _wrap(aten.amax.default, fail)
