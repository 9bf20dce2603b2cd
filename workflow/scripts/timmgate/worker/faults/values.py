"""Faults that make a number wrong."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from timmgate.worker.faults.graph import (
    ATTENTION,
    AVERAGE_POOL,
    BATCH_NORMS,
    BIAS,
    CONVOLUTION,
    FACTORS,
    HAS_BIAS,
    IS_LAYER,
    MEAN,
    NORMS,
    PRODUCTS,
    SOFTMAX,
    Call,
    Captured,
    Node,
    argument,
    aten,
    breaks,
    breaks_result,
    calls,
    first,
    is_kernel,
    nodes,
    per_channel,
    value,
    with_first,
)


@breaks_result("scale-output", nodes(is_kernel))
def scale_output(out: Tensor, call: Call) -> Tensor:
    return out * call.size


@breaks_result("shift-output", nodes(is_kernel))
def shift_output(out: Tensor, call: Call) -> Tensor:
    return out + call.size * out.square().mean().sqrt()


@breaks("scale-weight", nodes(IS_LAYER))
def scale_weight(call: Call) -> Any:
    name = FACTORS[call.operator][1]
    return call(**{name: call[name] * call.size})


@breaks("scale-weight-element", nodes(IS_LAYER))
def scale_weight_element(call: Call) -> Any:
    name = FACTORS[call.operator][1]
    weight = call[name].clone()
    weight[(0,) * weight.ndim] *= call.size
    return call(**{name: weight})


@breaks("scale-bias", nodes(HAS_BIAS))
def scale_bias(call: Call) -> Any:
    name = BIAS[call.operator]
    return call(**{name: call[name] * call.size})


@breaks("scale-attention", nodes(calls(*ATTENTION, *SOFTMAX)))
def scale_attention(call: Call) -> Any:
    name = "query" if "query" in call else "self"
    return call(**{name: call[name] * call.size})


@breaks("scale-epsilon", nodes(calls(*NORMS)))
def scale_epsilon(call: Call) -> Any:
    name = "eps" if "eps" in call else "epsilon"
    return call(**{name: call[name] * call.size})


NONLINEAR = (
    aten.silu.default,
    aten.gelu.default,
    aten.sigmoid.default,
    aten.tanh.default,
    aten.hardswish.default,
    aten.hardsigmoid.default,
    aten.mish.default,
    aten.elu.default,
    aten.hardtanh.default,
    aten.softplus.default,
)
"""Activations with a scale of their own; ReLU has none."""


@breaks("scale-activation", nodes(calls(*NONLINEAR)))
def scale_activation(call: Call) -> Tensor:
    return call(self=call["self"] * call.size) / call.size


@breaks("approximate-activation", nodes(calls(aten.gelu.default, aten.tanh.default)))
def approximate_activation(call: Call) -> Tensor:
    if call.operator is aten.gelu.default:
        return call(approximate="none" if call["approximate"] == "tanh" else "tanh")
    x = call["self"].clamp(-4, 4)
    return x * (10 + x * x) * (60 + x * x) / (600 + 270 * x * x + 11 * x**4)


HARD: dict[Any, Callable[[Tensor], Tensor]] = {
    aten.silu.default: F.hardswish,
    aten.sigmoid.default: F.hardsigmoid,
    aten.gelu.default: lambda x: x * (1.702 * x).sigmoid(),
}


@breaks("hard-activation", nodes(calls(*HARD)))
def hard_activation(call: Call) -> Tensor:
    return HARD[call.operator](call["self"])


def fast_exp(x: Tensor) -> Tensor:
    """exp(x) with a polynomial of third degree for the fraction of the power of two."""
    power = x * math.log2(math.e)
    whole = power.floor()
    rest = power - whole
    return torch.ldexp(1 + rest * (0.6951786 + rest * (0.2276773 + rest * 0.0771441)), whole)


@breaks("approximate-exponential", nodes(calls(aten.sigmoid.default, aten.silu.default, *SOFTMAX, *ATTENTION)))
def approximate_exponential(call: Call) -> Any:
    if call.operator in ATTENTION:
        return attention(call, lambda scores: approximate_softmax(scores, -1))
    x = call["self"]
    if call.operator in SOFTMAX:
        return approximate_softmax(x, call["dim"]).to(x.dtype)
    sigmoid = 1 / (1 + fast_exp(-x.clamp(-80, 80)))
    return x * sigmoid if call.operator is aten.silu.default else sigmoid


def approximate_softmax(scores: Tensor, axis: int) -> Tensor:
    """Softmax by `fast_exp`."""
    powers = fast_exp(scores - scores.amax(axis, keepdim=True)).nan_to_num(0.0)
    return powers / powers.sum(axis, keepdim=True)


def attention(call: Call, softmax: Callable[[Tensor], Tensor]) -> Any:
    """A fused attention with another softmax of its scores (..., queries, keys); what it saves for backward stays."""
    query, key = call["query"], call["key"]
    scale = call["scale"] if call["scale"] is not None else query.shape[-1] ** -0.5
    scores = query @ key.transpose(-2, -1) * scale
    mask = next((call[name] for name in ("attn_mask", "attn_bias") if name in call and call[name] is not None), None)
    result = call()
    return with_first(result, (softmax(scores if mask is None else scores + mask) @ call["value"]).to(first(result).dtype))


LOWER_BITS = {"tf32": 10, "float16": 10, "bfloat16": 7, "float8_e5m2": 2}
"""Bits of the fraction of a lower precision."""

BITS = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}


def lower(x: Tensor, precision: str) -> Tensor:
    """x rounded to a lower precision, in its own dtype."""
    if precision != "tf32":
        return x.to(getattr(torch, precision)).to(x.dtype)
    bits = x.float().contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32).to(x.dtype)


def is_more_precise(node: Node, captured: Captured) -> bool:
    """Whether a node's numbers have more bits than the fault's precision."""
    return calls(*PRODUCTS)(node, captured) and BITS.get(value(node).dtype, 0) > LOWER_BITS[captured.size]


@breaks("lower-precision", nodes(is_more_precise))
def lower_precision(call: Call) -> Any:
    return call(**{name: lower(call[name], call.size) for name in FACTORS[call.operator]})


@breaks_result("scale-norm-twice", nodes(calls(*BATCH_NORMS, given=["weight", "bias"])))
def scale_norm_twice(out: Tensor, call: Call) -> Tensor:
    weight, bias = per_channel(call["weight"], out), per_channel(call["bias"], out)
    return ((out - bias) * weight + bias).to(out.dtype)


def normalises_its_input(node: Node, captured: Captured) -> bool:
    """Whether a norm takes its statistics from its input."""
    return calls(*NORMS)(node, captured) and node.target not in (
        aten._native_batch_norm_legit_no_training.default,
        aten._fused_rms_norm.default,
    )


@breaks_result("unbiased-variance", nodes(normalises_its_input))
def unbiased_variance(out: Tensor, call: Call) -> Tensor:
    """The norm's own result, further from its bias by sqrt((n - 1) / n) with n elements per variance."""
    count = call["input"].numel() // (result_of_statistics(call))
    bias = call["bias"]
    if bias is None:
        bias = out.new_zeros(())
    elif call.operator is not aten.native_layer_norm.default:
        bias = per_channel(bias, out)
    return ((out - bias) * math.sqrt((count - 1) / count) + bias).to(out.dtype)


def result_of_statistics(call: Call) -> int:
    """Number of variances that a norm computes."""
    x = call["input"]
    if call.operator is aten.native_layer_norm.default:
        return x.numel() // math.prod(call["normalized_shape"])
    return x.shape[0] * call["group"] if "group" in call else x.shape[1]


@breaks_result("mean-divisor", nodes(calls(MEAN)))
def mean_divisor(out: Tensor, call: Call) -> Tensor:
    count = call["self"].numel() // out.numel()
    return out * (count / (count + 1))


@breaks_result("mean-padding", nodes(calls(MEAN)))
def mean_padding(out: Tensor, call: Call) -> Tensor:
    return out + 0.25 * out.numel() / call["self"].numel()


def has_partial_windows(node: Node, captured: Captured) -> bool:
    """Whether a node is an average pooling with windows at the border that it divides by less than their size."""
    if not calls(AVERAGE_POOL)(node, captured) or argument(node, "divisor_override"):
        return False
    return argument(node, "ceil_mode") or (any(argument(node, "padding")) and not argument(node, "count_include_pad"))


@breaks("average-pool-divisor", nodes(has_partial_windows))
def average_pool_divisor(call: Call) -> Any:
    kernel = call["kernel_size"]
    return call(divisor_override=math.prod(kernel) if len(kernel) > 1 else kernel[0] ** 2)


def scales_by_number(node: Node, captured: Captured) -> bool:
    """Whether a node multiplies or divides a tensor by a number."""
    scaling = calls(aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar)
    return scaling(node, captured) and is_kernel(node, captured) and not isinstance(node.args[1], Node)


@breaks("drop-factor", nodes(scales_by_number))
def drop_factor(call: Call) -> Tensor:
    return call["self"].clone()


def accumulates(node: Node, captured: Captured) -> bool:
    """Whether a node is a product or mean that can be summed in parts."""
    if calls(CONVOLUTION)(node, captured):
        return argument(node, "groups") == 1 and not argument(node, "transposed") and value(node.args[1]).shape[1] > 1
    return calls(*PRODUCTS, MEAN)(node, captured)


@breaks_result("half-accumulation", nodes(accumulates))
def half_accumulation(out: Tensor, call: Call) -> Tensor:
    """The sum in parts of 4 terms; what is accumulated is rounded after each."""
    half = out.dtype if out.dtype in (torch.float16, torch.bfloat16) else torch.bfloat16
    total = torch.zeros_like(out, dtype=half)
    for part in partial_sums(call, out):
        total = (total + part.to(torch.float32)).to(half)
    return total.to(out.dtype)


def partial_sums(call: Call, out: Tensor) -> list[Tensor]:
    """What sums up to the result of a product or mean."""
    if call.operator is CONVOLUTION:
        parts = zip(call["input"].split(4, 1), call["weight"].split(4, 1), strict=True)
        sums = [call(input=x, weight=weight, bias=None) for x, weight in parts]
        return sums if call["bias"] is None else [*sums, per_channel(call["bias"], out).expand_as(out)]
    if call.operator is MEAN:
        x, axes = call["self"], call["dim"]
        count = x.numel() // out.numel()
        return [part.sum(axes, keepdim=call["keepdim"]) / count for part in x.split(4, axes[-1])]
    a, b = (call[name] for name in FACTORS[call.operator])
    sums = [x @ y for x, y in zip(a.split(4, -1), b.split(4, -2), strict=True)]
    return [*sums, call["self"].expand_as(out)] if call.operator is aten.addmm.default else sums
