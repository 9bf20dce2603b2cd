"""Changes of a graph that faults make."""

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node


def _is(node: Node, target: Any) -> bool:
    if isinstance(target, torch._ops.OpOverload):
        return node.target is target
    return bool(target(node))


def find(gm: GraphModule, target: Any, number: int = 0) -> Node | None:
    """The node with this number of those that call an operator, or that a function says yes to."""
    found = [node for node in gm.graph.nodes if node.op == "call_function" and _is(node, target)]
    return found[number] if number < len(found) else None


def edited(gm: GraphModule, target: Any, edit: Callable[[Node], Any], number: int = 0) -> None:
    """Change a node, where there is one, and have the graph run as it is then."""
    if node := find(gm, target, number):
        edit(node)
        gm.graph.lint()
        gm.recompile()


def bypass(gm: GraphModule, target: Any) -> None:
    """Give a node's first operand to those that use the node."""

    def edit(node: Node) -> None:
        node.replace_all_uses_with(node.args[0])
        gm.graph.erase_node(node)

    edited(gm, target, edit)


def scale(gm: GraphModule, target: Any, factor: float, of: int | None = None, number: int = 0) -> None:
    """Multiply what a node computes, or its operand with the number `of`."""

    def edit(node: Node) -> None:
        if of is None:
            with gm.graph.inserting_after(node):
                scaled = gm.graph.call_function(torch.ops.aten.mul.Tensor, (node, factor))
            node.replace_all_uses_with(scaled, delete_user_cb=lambda user: user is not scaled)
            scaled.meta = dict(node.meta)
            return
        operand = node.args[of]
        with gm.graph.inserting_before(node):
            scaled = gm.graph.call_function(torch.ops.aten.mul.Tensor, (operand, factor))
        scaled.meta = dict(operand.meta)
        node.update_arg(of, scaled)

    edited(gm, target, edit, number)
