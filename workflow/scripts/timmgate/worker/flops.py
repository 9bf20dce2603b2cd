"""How much a model computes: multiply-accumulate operations and activations of the forward pass of one image."""

import copy
import traceback
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

aten = torch.ops.aten
PRODUCTS = {aten.convolution, aten._convolution, aten.mm, aten.addmm, aten.bmm, aten.baddbmm}
"""Operators whose outputs are activations, as in fvcore's ActivationCountAnalysis."""


class ActivationCounter(TorchDispatchMode):
    """Adds up the output elements of convolutions and matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = operator(*args, **(kwargs or {}))
        if operator.overloadpacket in PRODUCTS:
            self.total += output.numel()
        return output


def count(model: torch.nn.Module, image: torch.Tensor) -> dict[str, float]:
    """The columns `gmacs` and `mactivations` for a batch of one image; nothing where a model cannot be counted.

    Attention is taken apart into its matrix products, so that they are in both. The counter takes what requires a gradient
    for part of a backward pass, also without one (a view of a parameter, as in pooling by attention): so nothing does.
    """
    flops, activations = FlopCounterMode(display=False), ActivationCounter()
    try:
        counted = copy.deepcopy(model).eval().requires_grad_(False)  # it may write to what it has
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), flops, activations:
            counted(image.clone())
    except Exception:
        traceback.print_exc()
        return {}
    return {"gmacs": flops.get_total_flops() / 2e9, "mactivations": activations.total / 1e6}
