"""Faults with NaN, infinity, denormals and signed zeros."""

import torch
from torch import Tensor

from timmgate.worker.faults.gradients import with_element
from timmgate.worker.faults.graph import MAX_POOL, Call, breaks_result, calls, is_kernel, nodes


@breaks_result("one-nan", nodes(is_kernel))
def one_nan(out: Tensor, call: Call) -> Tensor:
    return with_element(out, float("nan"))


@breaks_result("all-nan", nodes(is_kernel))
def all_nan(out: Tensor, call: Call) -> Tensor:
    return torch.full_like(out, float("nan"))


@breaks_result("one-infinity", nodes(is_kernel))
def one_infinity(out: Tensor, call: Call) -> Tensor:
    return with_element(out, float("inf"))


@breaks_result("pool-infinity", nodes(calls(MAX_POOL)))
def pool_infinity(out: Tensor, call: Call) -> Tensor:
    out = out.clone()
    out[..., -1, :] = -float("inf")
    return out


@breaks_result("flush-denormals", nodes(is_kernel))
def flush_denormals(out: Tensor, call: Call) -> Tensor:
    return torch.where(out.abs() < torch.finfo(out.dtype).tiny, torch.zeros_like(out), out)


@breaks_result("negative-zero", nodes(is_kernel))
def negative_zero(out: Tensor, call: Call) -> Tensor:
    return torch.where(out == 0, -torch.zeros_like(out), out)
