"""Whether two models are the same but for the order in which they compute, as a family of null runs takes for granted."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

ERROR = 1e-9
"""Relative error in float64 up to which two outputs are the same but for rounding."""


def are_the_same(one: Any, other: Any) -> bool:
    """Whether two outputs in float64, trees of tensors, are the same but for rounding, each tensor by itself."""
    ones, others = tree_flatten(one), tree_flatten(other)
    return ones[1] == others[1] and all(map(_is_the_same, ones[0], others[0]))


def _is_the_same(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return bool(one == other)
    if one.shape != other.shape:
        return False
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    return torch.equal(one, other) or bool(torch.linalg.vector_norm(one - other) <= ERROR * torch.linalg.vector_norm(one))
