"""Faults of what a program keeps: running statistics, weights, random numbers."""

from typing import Any

import torch
from torch import Tensor

from timmgate.worker.faults.graph import (
    ATTENTION,
    FACTORS,
    IS_LAYER,
    Call,
    Captured,
    Node,
    argument,
    at_inference,
    aten,
    breaks,
    breaks_result,
    calls,
    has_batch,
    nodes,
    value,
)

UPDATING_NORM = aten._native_batch_norm_legit_functional.default
"""Batch norm in training: returns output, mean, reciprocal deviation, new running mean and new running variance."""

EVALUATING_NORM = aten._native_batch_norm_legit_no_training.default

STATISTICS = ("running_mean", "running_var")

updates = nodes(calls(UPDATING_NORM))


@breaks("keep-statistics", updates)
def keep_statistics(call: Call) -> Any:
    return (*call()[:3], *(call[name].clone() for name in STATISTICS))


@breaks("update-twice", updates)
def update_twice(call: Call) -> Any:
    once = call()
    return (*once[:3], *call(**dict(zip(STATISTICS, once[3:], strict=True)))[3:])


@breaks("scale-momentum", updates)
def scale_momentum(call: Call) -> Any:
    return call(momentum=call["momentum"] * call.size)


@breaks("biased-statistics", updates)
def biased_statistics(call: Call) -> Any:
    *others, variance = call()
    old = call["running_var"]
    count, kept = call["input"].numel() // old.numel(), (1 - call["momentum"]) * old
    return (*others, kept + (variance - kept) * ((count - 1) / count))


def counts(node: Node, captured: Captured) -> bool:
    """Whether a node adds to an integer that the graph was given."""
    adds = calls(aten.add.Tensor)(node, captured) and value(node).dtype == torch.int64
    return adds and value(node).ndim == 0 and argument(node, "self").op == "placeholder"


@breaks("stop-counter", nodes(counts))
def stop_counter(call: Call) -> Tensor:
    return call["self"].clone()


@breaks("batch-statistics", nodes(calls(EVALUATING_NORM)))
def batch_statistics(call: Call) -> Any:
    given = {name: call[name] for name in ("input", "weight", "bias", "momentum", "eps")}
    out, *_ = aten._native_batch_norm_legit.no_stats(training=True, **given)
    return (out, *call()[1:])


@breaks("running-statistics", updates)
def running_statistics(call: Call) -> Any:
    given = {name: call[name] for name in ("input", "weight", "bias", *STATISTICS, "momentum", "eps")}
    return (EVALUATING_NORM(**given)[0], *call()[1:])


@breaks("stale-weight", nodes(IS_LAYER))
def stale_weight(call: Call) -> Any:
    name = FACTORS[call.operator][1]
    return call(**{name: call.memory.setdefault("weight", call[name].clone())})


@breaks_result("stale-result", nodes(has_batch))
def stale_result(out: Tensor, call: Call) -> Tensor:
    kept = call.memory.setdefault("result", out.clone())
    return kept.clone() if kept.shape == out.shape else out


@breaks_result("dropout-at-inference", nodes(has_batch, at_inference))
def dropout_at_inference(out: Tensor, call: Call) -> Tensor:
    generator = torch.Generator(out.device).manual_seed(0)
    kept = torch.rand(out.shape, generator=generator, device=out.device) >= 0.1
    return out * kept / 0.9


@breaks("drop-dropout", nodes(calls(aten.native_dropout.default)))
def drop_dropout(call: Call) -> Any:
    _, mask = call()
    return call["input"].clone(), torch.ones_like(mask)


def is_random(node: Node, captured: Captured) -> bool:
    """Whether a node draws random numbers; a fused attention may, but does not in these models."""
    operator = node.target
    may_draw = isinstance(operator, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in operator.tags
    return may_draw and operator not in ATTENTION


@breaks("shift-random", nodes(is_random))
def shift_random(call: Call) -> Any:
    torch.rand(1, device=next(each.device for each in call.args if isinstance(each, Tensor)))
    return call()


@breaks("repeat-random", nodes(calls(aten.native_dropout.default)))
def repeat_random(call: Call) -> Any:
    _, mask = call()
    return with_mask(call, mask[..., ::4].repeat_interleave(4, -1)[..., : mask.shape[-1]])


@breaks("reorder-random", nodes(calls(aten.native_dropout.default)))
def reorder_random(call: Call) -> Any:
    _, mask = call()
    return with_mask(call, mask.transpose(0, -1).reshape(mask.shape))


def with_mask(call: Call, mask: Tensor) -> tuple[Tensor, Tensor]:
    """What a dropout returns if this is its mask."""
    return call["input"] * mask / (1 - call["p"]), mask
