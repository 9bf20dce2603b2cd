"""Gradients of a second loss, a random one.

The mean of the logits gives all images and classes the same weight: with that loss alone, a backward pass that mixes them up
is not seen.
"""

import math
from collections.abc import Callable
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
        outputs = [leaf for leaf in tree_leaves(forward(images)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    torch.autograd.backward(
        outputs, [cotangent_of(output.shape, seed + number).to(output) for number, output in enumerate(outputs)]
    )
    named = [("input_gradient", images), *((f"gradient.{name}", weight) for name, weight in model.named_parameters())]
    return [Leaf(f"{OTHER_LOSS}{name}", KIND, gradient(tensor)) for name, tensor in named]


def cotangent_of(shape: torch.Size, seed: int) -> Tensor:
    """The cotangent of an output of this shape: standard normal over the square root of their number, drawn on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(shape.numel())
