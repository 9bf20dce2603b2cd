"""Faults in the table of decompositions."""

from collections.abc import Callable
from typing import Any

import torch
from torch._inductor.decomposition import decompositions

from timmgate.worker.faults.stack import fault

aten = torch.ops.aten
TRAINING = {"options": {"training": True}}


def _wrap(name: str, change: Callable[..., Any]) -> None:
    """Call `change` with the decomposition of an operator in front of its arguments."""
    packet = getattr(aten, name)
    for overload in packet.overloads():
        operator = getattr(packet, overload)
        if operator in decompositions:
            original = decompositions[operator]
            decompositions[operator] = lambda *args, _original=original, **kwargs: change(_original, *args, **kwargs)


@fault("decompositions", "LayerNorm takes another epsilon", module="norm1")
def decomposition_layer_norm() -> None:
    _wrap("native_layer_norm", lambda original, *args: original(*args[:-1], 0.1))


@fault("decompositions", "SiLU has another slope", module="gate")
def decomposition_silu() -> None:
    _wrap("silu", lambda original, x, *args, **kwargs: original(x * 1.01))


@fault("decompositions", "GELU takes its approximation", module="mlp.act")
def decomposition_gelu() -> None:
    _wrap("gelu", lambda original, x, *args, **kwargs: original(x, approximate="tanh"))


@fault("decompositions", "softmax runs along another axis", module="attention.softmax")
def decomposition_softmax() -> None:
    _wrap("_softmax", lambda original, x, dim, half: original(x, -2, half))


@fault("decompositions", "Hardswish is shifted", module="hard")
def decomposition_hardswish() -> None:
    _wrap("hardswish", lambda original, x: original(x + 0.01))


@fault("decompositions", "the backward pass of GELU loses its second term", **TRAINING, module="mlp.act")
def decomposition_gelu_backward() -> None:
    _wrap("gelu_backward", lambda original, gradient, x, *args, **kwargs: gradient * (x > 0).to(x.dtype))


@fault("decompositions", "the backward pass of SiLU is that of the identity", **TRAINING, module="gate")
def decomposition_silu_backward() -> None:
    _wrap("silu_backward", lambda original, gradient, x, *args, **kwargs: gradient * torch.sigmoid(x))


@fault("decompositions", "it raises at softmax", module="attention.softmax")
def decomposition_raises() -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("cannot take softmax apart")

    _wrap("_softmax", fail)
