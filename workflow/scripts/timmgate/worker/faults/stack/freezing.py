"""Faults in freezing."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch._inductor import freezing
from torch._inductor.fx_passes import freezing_patterns
from torch.fx import GraphModule

from timmgate.worker.faults.stack import fault
from timmgate.worker.faults.stack.edits import bypass, scale

aten = torch.ops.aten
FROZEN = {"options": {"freezing": True}}


def _after(module: Any, name: str, edit: Callable[[GraphModule], None]) -> None:
    original = getattr(module, name)

    @wraps(original)
    def run(gm: GraphModule, *args: Any, **kwargs: Any) -> Any:
        found = original(gm, *args, **kwargs)
        edit(gm)
        return found

    setattr(module, name, run)


@fault("freezing", "constants are a little larger than the weights", **FROZEN)
def freezing_constants() -> None:
    original = freezing.replace_node_with_constant
    freezing.replace_node_with_constant = lambda gm, node, constant, *args: original(
        gm, node, constant * 1.01 if constant.is_floating_point() else constant, *args
    )


@fault("freezing", "vectors become constants of the wrong sign", **FROZEN)
def freezing_biases() -> None:
    original = freezing.replace_node_with_constant
    freezing.replace_node_with_constant = lambda gm, node, constant, *args: original(
        gm, node, -constant if constant.ndim == 1 else constant, *args
    )


@fault("freezing", "folding constants scales those of matrices", **FROZEN)
def freezing_folding() -> None:
    def edit(gm: GraphModule) -> None:
        for name, value in gm.named_buffers():
            if "_frozen_param" in name and value.ndim == 2:
                value.data = value.data * 1.01

    _after(freezing, "constant_fold", edit)


@fault("freezing", "the passes over a frozen graph lose a ReLU", **FROZEN, module="stem.act")
def freezing_relu() -> None:
    _after(freezing, "freezing_passes", lambda gm: bypass(gm, aten.relu.default))


@fault("freezing", "equal expressions are found where there are none", **FROZEN, module="gate")
def freezing_cse() -> None:
    original = freezing.fx_graph_cse

    def cse(graph: torch.fx.Graph) -> torch.fx.Graph:
        found = original(graph)
        for node in found.nodes:
            if node.target is aten.exp.default:
                node.target = aten.erf.default
        return found

    freezing.fx_graph_cse = cse


@fault("freezing", "folding of a norm scales the activation after it", **FROZEN, module="stem.act")
def freezing_binary() -> None:
    original = freezing_patterns.binary_folding_pass.apply

    def apply(graph: Any) -> int:
        count = original(graph)
        scale(graph.owning_module, aten.relu.default, 1.01)
        return count

    freezing_patterns.binary_folding_pass.apply = apply


@fault("freezing", "it raises", **FROZEN)
def freezing_raises() -> None:
    def fail(gm: GraphModule) -> None:
        raise AssertionError("cannot freeze")

    _after(freezing, "constant_fold", fail)
