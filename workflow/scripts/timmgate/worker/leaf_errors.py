"""The errors of a run against a reference, as the statistics that `core.verdict` judges."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from timmgate.core.verdict import OUTPUTS, Errors, LeafErrors, Statistic
from timmgate.worker.compare import Leaf, is_half
from timmgate.worker.cotangent import KIND
from timmgate.worker.torch_device import as_real, with_float64

GRADIENTS = ("gradient", KIND)
"""Kinds of leaves that have a typical size: the median over those of a kind."""

VANISHING = 1e-7
"""A gradient in float64 of at most this share of a typical one is zero but for rounding: float32's resolution."""

SLICED = 2
"""Slices are taken along so many of the first dimensions: samples and classes, output and input channels."""

Value = tuple[str, Any, str]
"""Kind of a leaf, a tensor of real numbers or a plain value, and the dtype that it had, or its type."""


@dataclass(frozen=True)
class Size:
    """Of a leaf of the reference.

    * `scale`: what errors are relative to: its rms, if that is not too small; 1 for zeros. The others are over it.
    * `rms`, `max`: of its elements; `slices`: the largest rms of a slice along each of the first dimensions.
    * `vanishes`: it is zero but for the rounding of the reference itself.
    * `is_finite`: there is no NaN or Inf in it; else all is of the rest.
    """

    scale: float
    rms: float
    max: float
    slices: tuple[float, ...]
    vanishes: bool
    is_finite: bool


class Reference:
    """The `leaves` that runs are held against (in float64, or of a run), and what is needed of them for every run.

    `dtype` is what the runs compute in. A leaf that is a tree of tensors counts as many.
    """

    def __init__(self, leaves: Iterable[Leaf], dtype: torch.dtype):
        self.leaves, self.dtype = list(leaves), dtype
        self._values = dict(tensors(self.leaves))
        typical = {kind: self._typical_size(kind) for kind in GRADIENTS}
        self._sizes = {
            name: _size(value, typical.get(kind, 0.0), dtype)
            for name, (kind, value, _) in self._values.items()
            if isinstance(value, Tensor) and value.numel()
        }

    def _typical_size(self, kind: str) -> float:
        """Median over the leaves of a kind of their rms, of those that are not 0; 0 where there are none."""
        sizes = [_rms(value.double()) for each, value, _ in self._values.values() if each == kind and value.numel()]
        sizes = [size for size in sizes if size > 0]
        return torch.tensor(sizes).median().item() if sizes else 0.0

    def scales(self) -> dict[str, float]:
        """What errors of each leaf are relative to; 1 for integers. Only of leaves without NaN or Inf."""
        return {
            name: size.scale if self._values[name][1].is_floating_point() else 1.0
            for name, size in self._sizes.items()
            if size.is_finite
        }

    def errors(self, run: Iterable[Leaf]) -> Errors:
        """Errors of all leaves of a run, matched by name.

        A tensor that has as many NaN or Inf as the reference, at the same places, is judged by the rest.
        """
        found = dict(tensors(run))
        return {name: self._leaf_errors(name, found.get(name)) for name in (self._values | found)}

    def _leaf_errors(self, name: str, found: Value | None) -> LeafErrors:
        """Errors of one leaf; of integers, the root of the share that differs, as rounding may decide which is the largest.

        A gradient that vanishes, for its terms cancel, may be off by half of a typical one's digits. What rounding leaves
        of it depends on the size of these terms, which the gradient does not show: from 0.01 to 1000 times the smallest that
        can be told from zero in layers of one network, and in one layer 50 times as much compiled as in eager.
        """
        expected, size = self._values.get(name), self._sizes.get(name)
        if found is None or expected is None:
            kind = (found or expected)[0]
            return LeafErrors(name, kind, mismatch=f"missing in the {'run' if found is None else 'reference'}")
        (_, run, dtype), (kind, reference, _) = found, expected
        if mismatch := _mismatch(run, reference, size):
            return LeafErrors(name, kind, mismatch=mismatch)
        if not isinstance(run, Tensor) or not size:
            return LeafErrors(name, kind, {"rms": Statistic(0.0, 0.0)}, dtype=dtype)
        if not run.is_floating_point():
            share = (run != reference.to(run.dtype)).double().mean().item()
            return LeafErrors(name, kind, {"rms": Statistic(math.sqrt(share), 0.0)}, dtype=dtype)
        half_ulp = torch.finfo(run.dtype).eps / 2
        expected64, error = _finite(reference.double(), reference, size), _finite(run.double() - reference, reference, size)
        statistics = _statistics(error, expected64, size, half_ulp)
        if kind in OUTPUTS and error.ndim > 1 and is_half(self.dtype):
            statistics["contrast"] = _contrast(error / size.scale, expected64 / size.scale, half_ulp)
        if size.vanishes:
            half_of_digits = torch.finfo(self.dtype).eps ** -0.5
            statistics = {key: each._replace(floor=half_of_digits) for key, each in statistics.items()}
        return LeafErrors(name, kind, statistics, size.vanishes, dtype=dtype)


def _size(value: Tensor, typical: float, dtype: torch.dtype) -> Size:
    """The size of a leaf. `typical` is that of its kind, if there is one, and `dtype` what runs compute in.

    A gradient whose terms cancel is 1e-16 of a typical one in float64; in a reference that is a run itself, as much as that
    resolves. What it is in a run depends on the run's own resolution.
    """
    is_finite = bool(torch.isfinite(value).all())
    resolution = torch.finfo(dtype).eps * typical
    smallest = VANISHING * typical if value.dtype == torch.float64 else resolution
    value = value.double()
    if not is_finite:
        value = torch.where(torch.isfinite(value), value, 0.0)
    rms = _rms(value)
    vanishes = bool(typical) and rms <= min(smallest, resolution)
    scale = (resolution if vanishes else rms) or 1.0
    slices = tuple(_slices(value, axis)[1].max().item() / scale for axis in _axes(value))
    return Size(scale, rms / scale, _largest(value) / scale, slices, vanishes, is_finite)


def _finite(tensor: Tensor, reference: Tensor, size: Size) -> Tensor:
    """`tensor`, with 0 where the reference is not finite."""
    return tensor if size.is_finite else torch.where(torch.isfinite(reference), tensor, 0.0)


def tensors(run: Iterable[Leaf]) -> Iterator[tuple[str, Value]]:
    """Name and `Value` of every tensor or plain value."""
    for leaf in run:
        for name, value in _flat(leaf.name, leaf.value):
            if isinstance(value, Tensor):
                yield name, (leaf.kind, with_float64(as_real(value)), str(value.dtype).removeprefix("torch."))
            else:
                yield name, (leaf.kind, value, type(value).__name__)


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, (dict, list, tuple)):
        yield name, value
        return
    for key, child in value.items() if isinstance(value, dict) else enumerate(value):
        yield from _flat(f"{name}.{key}", child)


def _mismatch(run: Any, reference: Any, size: Size | None) -> str:
    """What differs whatever the rounding, or "". `size` is the reference's, if it is a tensor with elements."""
    if not isinstance(run, Tensor) or not isinstance(reference, Tensor):
        return "" if run == reference else f"{run!r} instead of {reference!r}"
    if run.shape != reference.shape:
        return f"shape {list(run.shape)} instead of {list(reference.shape)}"
    if not run.is_floating_point() or size is None or _has_specials_of(run, reference, size):
        return ""
    return "NaN or Inf at other places than in the reference"


def _has_specials_of(run: Tensor, reference: Tensor, size: Size) -> bool:
    """Whether NaN and Inf are the same in both."""
    finite = torch.isfinite(run)
    is_finite = bool(finite.all())
    if size.is_finite or is_finite:
        return size.is_finite == is_finite
    special = ~torch.isfinite(reference)
    return torch.equal(special, ~finite) and torch.equal(
        torch.nan_to_num(run[special].double(), nan=0.0), torch.nan_to_num(reference[special].double(), nan=0.0)
    )


def _statistics(error: Tensor, expected: Tensor, size: Size, half_ulp: float) -> dict[str, Statistic]:
    """By name, of `error`, d = run - reference, and `expected`, the reference r, in float64, of any shape; over the scale.

    `rms` and `max` of the elements; `projection`, mean(d r), which finds what is scaled; `mean`; and the largest mean and
    rms of a slice along one of the first dimensions.
    """
    floor, independent = half_ulp * size.rms, 1 / math.sqrt(_independent(error.shape))
    projection = torch.dot(error.flatten(), expected.flatten()).abs().item() / error.numel() / size.scale**2
    statistics = {
        "rms": Statistic(_rms(error) / size.scale, floor),
        "max": Statistic(_largest(error) / size.scale, half_ulp * size.max),
        "projection": Statistic(projection, floor * size.rms, independent * size.rms),
        "mean": Statistic(error.mean().abs().item() / size.scale, floor, independent),
    }
    for axis, largest in zip(_axes(error), size.slices, strict=True):
        means, rms = (each.abs().max().item() / size.scale for each in _slices(error, axis))
        floor = half_ulp * largest
        statistics[f"slice_mean_{axis}"] = Statistic(means, floor, math.sqrt(error.shape[axis] / error.numel()))
        statistics[f"slice_rms_{axis}"] = Statistic(rms, floor)
    return statistics


def _axes(tensor: Tensor) -> range:
    """The dimensions along which there are slices."""
    return range(min(SLICED, tensor.ndim) if tensor.ndim > 1 else 0)


def _slices(tensor: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Mean and rms of every slice along an axis."""
    others = [other for other in range(tensor.ndim) if other != axis]
    elements = tensor.numel() / tensor.shape[axis]
    return tensor.mean(others), torch.linalg.vector_norm(tensor, dim=others) / math.sqrt(elements)


def _contrast(error: Tensor, size: Tensor, half_ulp: float) -> Statistic:
    """mean(d c) with c = r less its mean over the samples, which are the first dimension; d and r over the scale.

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
    return torch.linalg.vector_norm(tensor).item() / math.sqrt(tensor.numel())


def _largest(tensor: Tensor) -> float:
    return torch.linalg.vector_norm(tensor, math.inf).item()
