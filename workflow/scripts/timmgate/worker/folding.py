"""Norms folded into the convolutions before them: the same model, computed in another order."""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from timmgate.worker import models
from timmgate.worker.equivalence import are_the_same


@torch.no_grad()
def fold(model: nn.Module, images: Tensor) -> bool:
    """Fold what can be folded, in the dtype of the weights; whether that leaves the model the same but for rounding."""
    pairs = _convolutions_before_norms(model, images)
    if not pairs:
        return False
    exact, folded = models.in_float64(model), models.in_float64(model)
    _fold(folded, pairs)
    if not are_the_same(*(each(images.double()) for each in (exact, folded))):
        return False  # a convolution has another consumer, or uses its weights in its own way
    _fold(model, pairs)
    return True


def _convolutions_before_norms(model: nn.Module, images: Tensor) -> list[tuple[str, str]]:
    """Names of convolutions and of the norms that their outputs go into; of a copy, as a model may write to what it has."""
    model = copy.deepcopy(model)
    made_by: dict[int, tuple[str, Tensor]] = {}
    pairs = []

    def made(name: str, _: nn.Module, __: Any, output: Tensor) -> None:
        made_by[id(output)] = name, output

    def used(name: str, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if id(arguments[0]) in made_by:
            pairs.append((made_by[id(arguments[0])][0], name))

    for name, module in model.named_modules():
        if isinstance(module, _ConvNd):
            module.register_forward_hook(partial(made, name))
        elif isinstance(module, _BatchNorm) and module.running_var is not None:
            module.register_forward_pre_hook(partial(used, name))
    model(images[:1].clone())
    return pairs


def _fold(model: nn.Module, pairs: list[tuple[str, str]]) -> None:
    """Move what the norms do into the convolutions, and leave norms that do nothing."""
    for convolution, norm in ((model.get_submodule(one), model.get_submodule(other)) for one, other in pairs):
        factor = torch.rsqrt(norm.running_var + norm.eps)
        factor = factor if norm.weight is None else factor * norm.weight
        bias = -norm.running_mean if convolution.bias is None else convolution.bias - norm.running_mean
        bias = bias * factor if norm.bias is None else bias * factor + norm.bias
        convolution.weight.mul_(factor.reshape(-1, *[1] * (convolution.weight.ndim - 1)))
        convolution.bias = nn.Parameter(bias)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        if norm.weight is not None:
            norm.weight.fill_(1)
            norm.bias.zero_()
