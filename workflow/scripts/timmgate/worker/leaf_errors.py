"""The errors of a run against a reference, as the statistics that `core.verdict` judges."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from timmgate.core.verdict import OUTPUTS, Errors, LeafErrors, Statistic
from timmgate.worker.compare import Leaf, is_half
from timmgate.worker.cotangent import KIND

GRADIENTS = ("gradient", KIND)
"""Kinds of leaves that have a typical size: the median over those of a kind."""

SLICED = 2
"""Slices are taken along so many of the first dimensions: samples and classes, output and input channels."""


def measure(run: Iterable[Leaf], reference: Iterable[Leaf], dtype: torch.dtype) -> Errors:
    """Errors of all leaves of `run`, matched by name with those of `reference` (in float64, or a run to be judged against).

    `dtype` is what the run computes in. A leaf that is a tree of tensors counts as many, and a tensor that both runs have
    an equal number of NaN or Inf in, at the same places, is judged by the rest.
    """
    run, reference = dict(tensors(run)), dict(tensors(reference))
    resolutions = _resolutions(reference, dtype)
    return {name: _leaf_errors(name, run.get(name), reference.get(name), resolutions, dtype) for name in (reference | run)}


def scales(reference: Iterable[Leaf], dtype: torch.dtype) -> dict[str, float]:
    """What errors of each leaf are relative to: its rms, if that is not too small; 1 for integers. Only finite ones."""
    reference = dict(tensors(reference))
    resolutions = _resolutions(reference, dtype)
    return {
        name: (max(_rms(value), resolutions.get(kind, 0.0)) if value.is_floating_point() else 0.0) or 1.0
        for name, (kind, value) in reference.items()
        if isinstance(value, Tensor) and value.numel() and torch.isfinite(value).all()
    }


def _resolutions(reference: dict[str, tuple[str, Any]], dtype: torch.dtype) -> dict[str, float]:
    """By kind of gradient, the size below which nothing can be told from zero."""
    return {kind: torch.finfo(dtype).eps * _typical_size(reference, kind) for kind in GRADIENTS}


def tensors(run: Iterable[Leaf]) -> Iterator[tuple[str, tuple[str, Any]]]:
    """Name, and kind and value, of every tensor or plain value."""
    for leaf in run:
        for name, value in _flat(leaf.name, leaf.value):
            yield name, (leaf.kind, value)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, (dict, list, tuple)):
        yield name, value
        return
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _flat(f"{name}.{key}", child)


def _typical_size(reference: dict[str, tuple[str, Any]], kind: str) -> float:
    """Median over the leaves of a kind of their rms, 0 where there are none."""
    sizes = [_rms(value.double()) for each, value in reference.values() if each == kind and value.numel()]
    return torch.tensor(sizes).median().item() if sizes else 0.0


def _leaf_errors(name: str, found: Any, expected: Any, resolutions: dict[str, float], dtype: torch.dtype) -> LeafErrors:
    """Errors of one leaf. A gradient that vanishes, for its terms cancel, may be off by half of the digits of a typical one.

    What rounding leaves of it depends on the size of these terms, which the gradient does not show: from 0.01 to 1000
    resolutions in layers of one network, and in one layer 50 times as much compiled as in eager.
    """
    kind = (found or expected)[0]
    if found is None or expected is None:
        return LeafErrors(name, kind, mismatch=f"missing in the {'run' if found is None else 'reference'}")
    run, reference = found[1], expected[1]
    if mismatch := _mismatch(run, reference):
        return LeafErrors(name, kind, mismatch=mismatch)
    if not isinstance(run, Tensor) or not run.is_floating_point() or not run.numel():
        return LeafErrors(name, kind, {"rms": Statistic(0.0, 0.0)})
    half_ulp = torch.finfo(run.dtype).eps / 2
    finite = torch.isfinite(reference)
    run, reference = (torch.where(finite, tensor.double(), 0.0) for tensor in (run, reference))
    size, resolution = _rms(reference), resolutions.get(kind, 0.0)
    scale = max(size, resolution) or 1.0
    error, relative = (run - reference) / scale, reference / scale
    statistics = _statistics(error, relative, half_ulp)
    if kind in OUTPUTS and error.ndim > 1 and is_half(dtype):
        statistics["contrast"] = _contrast(error, relative, half_ulp)
    vanishes = kind in GRADIENTS and size <= resolution
    if vanishes:
        half_of_digits = torch.finfo(dtype).eps ** -0.5
        statistics = {key: each._replace(floor=half_of_digits) for key, each in statistics.items()}
    return LeafErrors(name, kind, statistics, vanishes)


def _mismatch(run: Any, reference: Any) -> str:
    """What differs whatever the rounding, or ""."""
    if not isinstance(run, Tensor) or not isinstance(reference, Tensor):
        return "" if run == reference else f"{run!r} instead of {reference!r}"
    if run.shape != reference.shape:
        return f"shape {list(run.shape)} instead of {list(reference.shape)}"
    if not run.is_floating_point():
        return "" if torch.equal(run, reference.to(run.dtype)) else "other integers than the reference"
    special = ~torch.isfinite(reference)
    same = torch.equal(special, ~torch.isfinite(run)) and torch.equal(
        torch.nan_to_num(run[special].double(), nan=0.0), torch.nan_to_num(reference[special].double(), nan=0.0)
    )
    return "" if same else "NaN or Inf at other places than in the reference"


def _statistics(error: Tensor, size: Tensor, half_ulp: float) -> dict[str, Statistic]:
    """By name, of `error`, d = run - reference, and `size`, the reference r, both over the scale, in float64, of any shape.

    `rms` and `max` of the elements; `projection`, mean(d r), which finds what is scaled; `mean`; and the largest mean and
    rms of a slice along one of the first dimensions.
    """
    floor, independent = half_ulp * _rms(size), 1 / math.sqrt(_independent(error.shape))
    statistics = {
        "rms": Statistic(_rms(error), floor),
        "max": Statistic(error.abs().max().item(), half_ulp * size.abs().max().item()),
        "projection": Statistic((error * size).mean().abs().item(), floor * _rms(size), independent * _rms(size)),
        "mean": Statistic(error.mean().abs().item(), floor, independent),
    }
    for axis in range(min(SLICED, error.ndim) if error.ndim > 1 else 0):
        slices, sizes = (tensor.movedim(axis, 0).flatten(1) for tensor in (error, size))
        floors = half_ulp * sizes.square().mean(1).sqrt().max().item()
        statistics[f"slice_mean_{axis}"] = Statistic(
            slices.mean(1).abs().max().item(), floors, 1 / math.sqrt(slices.shape[1])
        )
        statistics[f"slice_rms_{axis}"] = Statistic(slices.square().mean(1).sqrt().max().item(), floors)
    return statistics


def _contrast(error: Tensor, size: Tensor, half_ulp: float) -> Statistic:
    """mean(d c) with c = r less its mean over the samples, which are the first dimension; d and r as in `_statistics`.

    What samples have in common is most of an output of random weights. A fault that mixes samples up, or loses what tells
    them apart, leaves that as it is and takes away of c; rounding in half precision has nothing to do with c, and hides much
    of what the other statistics would show. Of a sample with n elements the square root of n count as independent, as a
    rounded feature is in all of them: the cosine of null runs' errors with c has a standard deviation of 0.05 in outputs of
    8 x 1000, where this gives 0.06.
    """
    contrast = size - size.mean(0)
    from_rms = _rms(contrast) / math.sqrt(len(error) * math.sqrt(error[0].numel()))
    return Statistic((error * contrast).mean().abs().item(), half_ulp * _rms(size) * from_rms, from_rms)


def _independent(shape: torch.Size) -> int:
    """How many elements of an error are independent at least.

    The gradient of a matrix under the mean of the logits has rank 1, and so has what a rounded feature does to it.
    """
    return min(shape[0], shape[1:].numel()) if len(shape) > 1 else shape.numel()


def _rms(tensor: Tensor) -> float:
    return tensor.square().mean().sqrt().item()
