"""How a captured graph is broken: which nodes a fault applies to, and what runs there instead.

The graphs are those of AOTAutograd, forward and backward apart, with ATen operators and no decompositions. A fault edits a
node in one of two ways: it runs something else in the node's place (`breaks`, `breaks_result`), or it gives the node
other inputs (`rewires`).
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import Graph, Node

from timmgate.core.faults import Size

aten = torch.ops.aten


@dataclass(frozen=True)
class Captured:
    """A graph that AOTAutograd made.

    `batch` is the number of images, a symbol if it is dynamic and None if unknown. `training` is whether there is a backward
    pass, `backward` whether this is its graph. `size` is the fault's.
    """

    graph: Graph
    batch: Any = None
    training: bool = False
    backward: bool = False
    size: Any = None


Where = Callable[[Captured], Sequence[Node]]
"""The nodes of a graph that a fault applies to, in order."""


class Call:
    """One call of a node that is broken, at run time.

    `call["eps"]` is an argument by its name in the operator's schema, and `call(eps=0.0)` runs the original operator with
    that argument changed. `size` is the fault's; `memory` is kept from call to call and over recompilations.
    """

    def __init__(self, operator: Any, args: tuple, kwargs: dict, size: Any, memory: dict):
        self.operator, self.args, self.kwargs = operator, args, kwargs
        self.size, self.memory = size, memory

    @property
    def names(self) -> list[str]:
        """Names of the operator's parameters."""
        return [argument.name for argument in self.operator._schema.arguments]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> Any:
        index = self.names.index(name)
        if index < len(self.args):
            return self.args[index]
        return self.kwargs.get(name, self.operator._schema.arguments[index].default_value)

    def __call__(self, /, **changes: Any) -> Any:
        args, kwargs = list(self.args), dict(self.kwargs)
        for name, value in changes.items():
            index = self.names.index(name)
            if self.operator._schema.arguments[index].kwarg_only:
                kwargs[name] = value
            else:
                args += [argument.default_value for argument in self.operator._schema.arguments[len(args) : index + 1]]
                args[index] = value
        return self.operator(*args, **kwargs)


@dataclass(frozen=True)
class Edit:
    """What a fault does: `apply(node, size, memory)` edits one of the nodes `where` it applies.

    `memory` has, by name of a node, what it remembers from call to call, also where its graph is compiled again.
    """

    where: Where
    apply: Callable[[Node, Size | None, dict], None]


EDITS: dict[str, Edit] = {}
"""By name of the fault."""


def breaks(name: str, where: Where) -> Callable:
    """Registers `function(call)`, which runs in the place of the node and returns what the node should."""

    def register(function: Callable[[Call], Any]) -> Callable[[Call], Any]:
        def apply(node: Node, size: Size | None, memory: dict) -> None:
            operator, of_node = node.target, memory.setdefault(node.name, {})

            def broken(*args: Any, **kwargs: Any) -> Any:
                return function(Call(operator, args, kwargs, size, of_node))

            broken.__name__ = f"{name.replace('-', '_')}_{node.name}"
            node.target = broken

        EDITS[name] = Edit(where, apply)
        return function

    return register


def breaks_result(name: str, where: Where) -> Callable:
    """Registers `function(out, call)`, which gets the first tensor that the node returns and returns another for it."""

    def register(function: Callable[[Tensor, Call], Tensor]) -> Callable[[Tensor, Call], Tensor]:
        @breaks(name, where)
        def broken(call: Call) -> Any:
            result = call()
            return with_first(result, function(first(result), call))

        return function

    return register


def rewires(name: str, where: Where) -> Callable:
    """Registers `function(node, size)`, which changes the edges of the graph at the node."""

    def register(function: Callable[[Node, Any], None]) -> Callable:
        EDITS[name] = Edit(where, lambda node, size, memory: function(node, size))
        return function

    return register


def choose(nodes: Sequence[Node], place: str, name: str) -> list[Node]:
    """Those of the nodes that are at the place; `name` is what the random one is drawn by."""
    if place == "all":
        return list(nodes)
    index = {
        "first": 0,
        "middle": len(nodes) // 2,
        "last": -1,
        "one": zlib.crc32(name.encode()) % len(nodes),
    }[place]
    return [nodes[index]]


# What a node computes


def first(result: Any) -> Tensor:
    """The first tensor of what an operator returns."""
    return result[0] if isinstance(result, (tuple, list)) else result


def with_first(result: Any, tensor: Tensor) -> Any:
    """What an operator returns, with another first tensor, laid out in memory as the original is: views depend on it."""
    original = first(result)
    if tensor.shape == original.shape and tensor.stride() != original.stride():
        tensor = torch.empty_like(original).copy_(tensor)
    return (tensor, *result[1:]) if isinstance(result, (tuple, list)) else tensor


def value(node: Any) -> Any:
    """The first tensor that a node returns, as a fake one with shape and dtype; None if it is no tensor."""
    found = node.meta.get("val") if isinstance(node, Node) else None
    found = found[0] if isinstance(found, (tuple, list)) and found else found
    return found if isinstance(found, Tensor) else None


def is_float(node: Any) -> bool:
    """Whether a node returns a floating-point tensor."""
    found = value(node)
    return found is not None and found.is_floating_point()


def position(node: Node, name: str) -> int | None:
    """Index of an argument of a node by its name in the operator's schema; None if there is none."""
    operator: Any = node.target
    names = [argument.name for argument in operator._schema.arguments]
    return names.index(name) if name in names else None


def argument(node: Node, name: str) -> Any:
    """The same argument: a node, a number, or its default. None if there is none."""
    index, operator = position(node, name), cast(Any, node.target)
    if index is None:
        return None
    default = operator._schema.arguments[index].default_value
    return node.args[index] if index < len(node.args) else node.kwargs.get(name, default)


def set_argument(node: Node, name: str, value: Any) -> None:
    """Change an argument of a node."""
    index = position(node, name)
    if index is not None and index < len(node.args):
        node.update_arg(index, value)
    else:
        node.update_kwarg(name, value)


def same(a: Any, b: Any) -> bool:
    """Whether two sizes are equal, without a guard on a symbol."""
    return str(a) == str(b)


def weaken(node: Node, operand: int, factor: float) -> None:
    """Multiply an operand of a node by a factor. What the node returns keeps its memory layout even with a factor of 0."""
    with node.graph.inserting_before(node):
        node.update_arg(operand, node.graph.call_function(aten.mul.Tensor, (node.args[operand], factor)))


# Which nodes: predicates on (node, captured), and lists of nodes made of them

COPIES = (
    aten.clone.default,
    aten._to_copy.default,
    aten._unsafe_view.default,
    aten.copy.default,
    aten.copy_.default,
    aten.as_strided_scatter.default,
)
"""Operators that only move elements, besides views."""


def is_kernel(node: Node, captured: Captured) -> bool:
    """Whether a node computes a floating-point tensor from others: no view, no copy, no constant."""
    return (
        node.op == "call_function"
        and isinstance(node.target, torch._ops.OpOverload)
        and not node.target.is_view
        and node.target not in COPIES
        and is_float(node)
        and any(isinstance(each, Node) for each in node.all_input_nodes)
        and not node.target.name().startswith(("aten::new_", "aten::empty", "aten::full", "aten::expand"))
    )


def has_batch(node: Node, captured: Captured) -> bool:
    """Whether the first axis of what a kernel returns is the batch."""
    found = value(node)
    return (
        is_kernel(node, captured) and found.ndim >= 2 and captured.batch is not None and same(found.shape[0], captured.batch)
    )


def has_rows(node: Node, captured: Captured) -> bool:
    """Whether a kernel returns vectors of more than 4 elements or more of them."""
    found = value(node)
    return is_kernel(node, captured) and found.ndim >= 2 and isinstance(found.shape[-1], int) and found.shape[-1] > 4


def is_image(node: Node, captured: Captured) -> bool:
    """Whether a kernel returns a batch of images of more than one channel and pixel."""
    if not has_batch(node, captured) or value(node).ndim != 4:
        return False
    channels, *pixels = value(node).shape[1:]
    return channels != 1 and pixels != [1, 1]


def calls(*operators: Any, given: Iterable[str] = ()) -> Callable[[Node, Captured], bool]:
    """Whether a node calls one of these operators, with all the optional arguments `given`."""
    given = tuple(given)
    return lambda node, captured: (
        node.op == "call_function" and node.target in operators and all(argument(node, name) is not None for name in given)
    )


def nodes(*conditions: Callable[[Node, Captured], bool]) -> Where:
    """The nodes for which all conditions hold."""
    return lambda captured: [node for node in captured.graph.nodes if all(each(node, captured) for each in conditions)]


def either(*conditions: Callable[[Node, Captured], bool]) -> Callable[[Node, Captured], bool]:
    """Whether one of the conditions holds."""
    return lambda node, captured: any(each(node, captured) for each in conditions)


def at_inference(node: Node, captured: Captured) -> bool:
    """Whether the graph has no backward pass."""
    return not captured.training


# Operators by what they do

CONVOLUTION = aten.convolution.default
LINEAR = (aten.addmm.default, aten.mm.default)
PRODUCTS = (CONVOLUTION, *LINEAR, aten.bmm.default)

BATCH_NORMS = (
    aten._native_batch_norm_legit_functional.default,
    aten._native_batch_norm_legit_no_training.default,
    aten._native_batch_norm_legit.no_stats,
)
NORMS = (*BATCH_NORMS, aten.native_layer_norm.default, aten.native_group_norm.default, aten._fused_rms_norm.default)

ATTENTION = (
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
)
SOFTMAX = (aten._softmax.default, aten._safe_softmax.default)

MAX_POOL = aten.max_pool2d_with_indices.default
AVERAGE_POOL = aten.avg_pool2d.default
MEAN = aten.mean.dim

IS_CONVOLUTION = calls(CONVOLUTION)
IS_LINEAR = calls(*LINEAR)
IS_LAYER = either(IS_CONVOLUTION, IS_LINEAR)


FACTORS: dict[Any, tuple[str, str]] = {
    CONVOLUTION: ("input", "weight"),
    aten.addmm.default: ("mat1", "mat2"),
    aten.mm.default: ("self", "mat2"),
    aten.bmm.default: ("self", "mat2"),
}
"""What the schemas of products call both factors. The second is a layer's weight; a linear layer's is transposed."""

BIAS: dict[Any, str] = {CONVOLUTION: "bias", aten.addmm.default: "self"}
"""What they call the bias."""


HAS_BIAS = either(calls(CONVOLUTION, given=["bias"]), calls(aten.addmm.default))


def has_kernel(node: Node, captured: Captured) -> bool:
    """Whether a node is a convolution whose kernel is wider than one pixel."""
    return IS_CONVOLUTION(node, captured) and value(argument(node, "weight")).shape[-1] > 1


def has_padding(node: Node, captured: Captured) -> bool:
    """Whether a node is a convolution in two dimensions or a pooling that pads its input."""
    operator = calls(CONVOLUTION, MAX_POOL, AVERAGE_POOL)(node, captured)
    padded = argument(node, "padding") if operator else ()
    return any(padded) and value(node).ndim == 4 and not argument(node, "transposed")


def per_channel(parameter: Tensor, like: Tensor) -> Tensor:
    """A vector over channels, in the shape that multiplies `like` (images, channels, ...)."""
    return parameter.reshape(1, -1, *([1] * (like.ndim - 2)))
