"""Faults that drop, replace or exchange nodes and edges of a graph."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from timmgate.worker.faults.graph import (
    ATTENTION,
    BIAS,
    FACTORS,
    HAS_BIAS,
    IS_LAYER,
    NORMS,
    SOFTMAX,
    Call,
    Captured,
    Node,
    argument,
    aten,
    breaks,
    calls,
    is_float,
    nodes,
    rewires,
    same,
    set_argument,
    value,
    weaken,
)


def is_residual(node: Node, captured: Captured) -> bool:
    """Whether a node adds two floating-point tensors of one shape that are both computed in the graph or its input."""
    if not calls(aten.add.Tensor, aten.add_.Tensor)(node, captured) or not is_float(node):
        return False
    a, b = node.args[:2]
    return is_float(a) and is_float(b) and same(value(a).shape, value(b).shape) and value(a).ndim > 1 and a is not b


def skip_and_branch(node: Node) -> tuple[int, int]:
    """Which operand of an addition is computed earlier, and which later."""
    order = {each: number for number, each in enumerate(node.graph.nodes)}
    return (0, 1) if order[node.args[0]] < order[node.args[1]] else (1, 0)


@rewires("drop-skip", nodes(is_residual))
def drop_skip(node: Node, size: Any) -> None:
    weaken(node, skip_and_branch(node)[0], 0.0)


@rewires("drop-branch", nodes(is_residual))
def drop_branch(node: Node, size: Any) -> None:
    weaken(node, skip_and_branch(node)[1], 0.0)


@rewires("weaken-skip", nodes(is_residual))
def weaken_skip(node: Node, size: Any) -> None:
    weaken(node, skip_and_branch(node)[0], size)


@rewires("overwrite-skip", nodes(is_residual))
def overwrite_skip(node: Node, size: Any) -> None:
    skip, branch = skip_and_branch(node)
    node.update_arg(skip, node.args[branch])


@breaks("drop-bias", nodes(HAS_BIAS))
def drop_bias(call: Call) -> Any:
    name = BIAS[call.operator]
    return call(**{name: call[name] * 0})


@breaks("drop-affine", nodes(calls(*NORMS, given=["weight"])))
def drop_affine(call: Call) -> Any:
    return call(**{name: None for name in ("weight", "bias") if name in call})


REPLACEMENTS: dict[Any, Callable[[Tensor], Tensor]] = {
    aten.relu.default: lambda x: F.leaky_relu(x, 0.01),
    **dict.fromkeys(
        (
            aten.hardtanh.default,
            aten.leaky_relu.default,
            aten.elu.default,
            aten.silu.default,
            aten.gelu.default,
            aten.mish.default,
            aten.hardswish.default,
        ),
        F.relu,
    ),
}
"""Activations, and what computes something close to them."""


@breaks("drop-activation", nodes(calls(*REPLACEMENTS)))
def drop_activation(call: Call) -> Tensor:
    return call["self"].clone()


@breaks("replace-activation", nodes(calls(*REPLACEMENTS)))
def replace_activation(call: Call) -> Tensor:
    return REPLACEMENTS[call.operator](call["self"])


def mask_name(node: Node) -> str | None:
    """What a fused attention calls its mask, if it has one."""
    return next((name for name in ("attn_mask", "attn_bias") if argument(node, name) is not None), None)


def is_masked(node: Node, captured: Captured) -> bool:
    """Whether a node is a fused attention with a mask, or adds the mask of one that is not fused."""
    if calls(*ATTENTION)(node, captured):
        return mask_name(node) is not None
    if not calls(aten.add.Tensor)(node, captured) or not is_float(node):
        return False
    users = [user for direct in node.users for user in (direct, *direct.users)]
    return any(calls(*SOFTMAX)(user, captured) for user in users)


@rewires("ignore-mask", nodes(is_masked))
def ignore_mask(node: Node, size: Any) -> None:
    scores = node.args[0]
    if node.target is aten.add.Tensor and isinstance(scores, Node):
        node.replace_all_uses_with(scores)
        return
    set_argument(node, mask_name(node) or "", None)


ORDERED: dict[Any, tuple[str, str]] = {
    aten.sub.Tensor: ("self", "other"),
    aten.div.Tensor: ("self", "other"),
    **dict.fromkeys(ATTENTION, ("query", "key")),
}
"""Operators whose operands must not be exchanged."""


def has_two_operands(node: Node, captured: Captured) -> bool:
    """Whether a node's operands could be exchanged: two tensors of one shape."""
    if not calls(*ORDERED)(node, captured):
        return False
    a, b = (argument(node, name) for name in ORDERED[node.target])
    return is_float(a) and is_float(b) and same(value(a).shape, value(b).shape)


@breaks("swap-inputs", nodes(has_two_operands))
def swap_inputs(call: Call) -> Any:
    a, b = ORDERED[call.operator]
    return call(**{a: call[b], b: call[a]})


def weight_of(node: Node) -> Node:
    """The weight of a layer."""
    return argument(node, FACTORS[node.target][1])


def earlier_weights(node: Node, captured: Captured) -> list[Node]:
    """Weights of earlier layers that would fit, nearest last."""
    layers = nodes(IS_LAYER)(captured)
    return [
        weight_of(other)
        for other in layers[: layers.index(node)]
        if other.target is node.target
        and weight_of(other) is not weight_of(node)
        and same(value(weight_of(other)).shape, value(weight_of(node)).shape)
    ]


def follows_a_like_layer(node: Node, captured: Captured) -> bool:
    """Whether a layer has an earlier one with a weight of the same shape."""
    return IS_LAYER(node, captured) and bool(earlier_weights(node, captured))


@rewires("reuse-weight", nodes(follows_a_like_layer))
def reuse_weight(node: Node, size: Any) -> None:
    weight = earlier_weights(node, Captured(node.graph))[-1]
    set_argument(node, FACTORS[node.target][1], weight)
