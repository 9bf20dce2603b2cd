"""Gradients of a second loss, a random one.

The mean of the logits gives all images and classes the same weight: with that loss alone, a backward pass that mixes them up
is not seen.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from timmgate.core.verdict import OTHER_LOSS
from timmgate.worker.compare import Leaf
from timmgate.worker.training_step import gradient

KIND = "cotangent_gradient"
"""Kind of these leaves: they are larger than the gradients of the mean."""


def cotangent_leaves(
    model: nn.Module,
    forward: Callable[..., Any],
    images: Tensor,
    autocast: Callable[[], AbstractContextManager[Any]],
    seed: int,
) -> list[Leaf]:
    """Gradients of parameters and images, which require them, of <random cotangent, output>, after one more iteration.

    All tensors of the output have a part in it. Gradients that were there are replaced.
    """
    model.zero_grad(set_to_none=True)
    images.grad = None
    with autocast():
        outputs = differentiable(forward(images))
    drawn = cotangents(outputs, seed)
    torch.autograd.backward(outputs, [one.to(output) for one, output in zip(drawn, outputs, strict=True)])
    named = [("input_gradient", images), *((f"gradient.{name}", weight) for name, weight in model.named_parameters())]
    return [Leaf(f"{OTHER_LOSS}{name}", KIND, gradient(tensor)) for name, tensor in named]


def differentiable(output: Any) -> list[Tensor]:
    """The tensors of an output, which may be a tree, that a gradient can start from, in order."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad]


def cotangents(outputs: Sequence[Tensor], seed: int) -> list[Tensor]:
    """One for each of these tensors: standard normal over the square root of its number of elements, drawn on the CPU."""
    return [_cotangent(output.shape, seed + number) for number, output in enumerate(outputs)]


def _cotangent(shape: torch.Size, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(shape.numel())
