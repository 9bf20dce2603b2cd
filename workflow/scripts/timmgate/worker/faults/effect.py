"""How much a fault changes, in units of eager's own rounding error."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from timmgate.worker.compare import Leaf


def effect_of(reference: Sequence[Leaf], eager: Sequence[Leaf], healthy: Sequence[Leaf], faulty: Sequence[Leaf]) -> float:
    """|faulty - healthy| over |eager - reference|: the larger ratio of rms and of largest element, and the largest leaf's.

    An error is at least half a unit in the last place of the leaf's root mean square. Inf where a result is not finite, or
    not there.
    """
    if [leaf.name for leaf in faulty] != [leaf.name for leaf in healthy]:
        return math.inf
    ratios = [0.0]
    for leaves in zip(reference, eager, healthy, faulty, strict=True):
        values = [tree_leaves(leaf.value) for leaf in leaves]
        if len({len(each) for each in values}) > 1:
            return math.inf
        ratios += [ratio(*tensors) for tensors in zip(*values, strict=True) if all(map(torch.is_tensor, tensors))]
    return max(ratios)


def ratio(reference: Tensor, eager: Tensor, healthy: Tensor, faulty: Tensor) -> float:
    """The effect on one tensor."""
    if faulty.shape != healthy.shape:
        return math.inf
    change, error = (size(b.double() - a.double()) for a, b in ((healthy, faulty), (reference, eager)))
    rms, _ = size(reference.double())
    floor = rms * torch.finfo(eager.dtype).eps / 2 if eager.is_floating_point() else 0.0
    return max(quotient(each, max(allowed, floor)) for each, allowed in zip(change, error, strict=True))


def size(tensor: Tensor) -> tuple[float, float]:
    """Root mean square and largest absolute element; 0 of a tensor without elements."""
    if not tensor.numel():
        return 0.0, 0.0
    return tensor.square().mean().sqrt().item(), tensor.abs().max().item()


def quotient(change: float, error: float) -> float:
    """change / error; 0 where nothing changed, Inf where the error is 0 or the change no number."""
    if change == 0:
        return 0.0
    return change / error if error and math.isfinite(change) else math.inf
