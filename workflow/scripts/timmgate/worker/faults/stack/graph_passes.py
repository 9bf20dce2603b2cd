"""Faults in inductor's passes: before gradients, over the joint graph, and over the graphs after partitioning."""

from collections.abc import Callable
from typing import Any

import torch
from torch._inductor.fx_passes import joint_graph, post_grad, pre_grad
from torch._inductor.pattern_matcher import PatternMatcherPass
from torch.fx import GraphModule, Node

from timmgate.worker.faults.stack import fault
from timmgate.worker.faults.stack.edits import bypass, edited, scale

aten = torch.ops.aten


def _after(module: Any, name: str, edit: Callable[[GraphModule], None]) -> None:
    """Let a pass change the graph once more; it gets a graph or its module, among others."""
    original = getattr(module, name)

    def run(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        graph = next(each for each in args if isinstance(each, (GraphModule, torch.fx.Graph)))
        gm = graph if isinstance(graph, GraphModule) else graph.owning_module
        edit(found if isinstance(found, GraphModule) else gm)
        return found

    setattr(module, name, run)


def _pattern(passes: list[PatternMatcherPass], edit: Callable[[GraphModule], None]) -> None:
    """Let the last of some passes of patterns change the graph once more."""
    original = passes[-1].apply

    def apply(graph: Any) -> int:
        count = original(graph)
        edit(graph if isinstance(graph, GraphModule) else graph.owning_module)
        return count

    passes[-1].apply = apply


def _is_mean(node: Node) -> bool:
    return node.target is aten.mean.dim


@fault("joint_graph", "removing what does nothing removes a ReLU", module="stem.act")
def joint_noop() -> None:
    original = post_grad.remove_noop_ops

    def remove(graph: Any) -> None:
        original(graph)
        if "joint" in _caller():
            bypass(graph.owning_module, aten.relu.default)

    post_grad.remove_noop_ops = remove


def _caller() -> str:
    """Names of the functions that called, in one text."""
    import traceback

    return " ".join(frame.name for frame in traceback.extract_stack())


@fault("joint_graph", "folding of uniform constants scales a sum", module="attention.softmax")
def joint_folding() -> None:
    _after(joint_graph, "constant_fold_uniform_value", lambda gm: scale(gm, aten.sum.dim_IntList, 1.01))


@fault("joint_graph", "a pattern halves the mean of tokens", module="ends")
def joint_pattern() -> None:
    _pattern(joint_graph.pass_patterns, lambda gm: scale(gm, _is_mean, 0.5))


@fault("joint_graph", "canonical operators lose an activation", module="mlp.act")
def joint_canonical() -> None:
    _after(joint_graph, "canonicalize_aten_ir_passes", lambda gm: bypass(gm, aten.erf.default))


@fault("joint_graph", "an early pattern swaps maximum for minimum", module="ends")
def joint_early() -> None:
    def edit(node: Node) -> None:
        node.target = aten.amin.default

    original = joint_graph.early_patterns.apply

    def apply(graph: Any) -> int:
        count = original(graph)
        edited(graph.owning_module, lambda node: node.target is aten.amax.default and len(node.args[1]) == 1
               and node.args[1][0] == 1, edit)  # fmt: skip
        return count

    joint_graph.early_patterns.apply = apply


@fault("joint_graph", "it raises at an activation", module="stem.act")
def joint_raises() -> None:
    def edit(gm: GraphModule) -> None:
        if any(node.target is aten.relu.default for node in gm.graph.nodes):
            raise AssertionError("a pass over the joint graph cannot go on")

    _after(joint_graph, "constant_fold_uniform_value", edit)


@fault("post_grad", "sorting a graph scales an operand", module="stem.act")
def post_sort() -> None:
    _after(post_grad, "stable_topological_sort", lambda gm: scale(gm, aten.relu.default, 1.01))


@fault("post_grad", "moving nodes for locality loses a ReLU", module="stem.act")
def post_locality() -> None:
    _after(post_grad, "reorder_for_locality", lambda gm: bypass(gm, aten.relu.default))


@fault("post_grad", "a pattern takes the padding of a pooling for none", module="pool")
def post_pattern() -> None:
    def edit(node: Node) -> None:
        node.args = (*node.args[:4], False, False)  # count_include_pad

    _pattern(post_grad.pass_patterns, lambda gm: edited(gm, aten.avg_pool2d.default, edit))


@fault("post_grad", "removing asserts removes an activation", module="mlp.act")
def post_asserts() -> None:
    _after(post_grad, "remove_assert_ops", lambda gm: bypass(gm, aten.erf.default))


@fault("post_grad", "reinplacing scales what is exponentiated", module="gate")
def post_reinplace() -> None:
    _after(post_grad, "reinplace_inplaceable_ops", lambda gm: scale(gm, aten.exp.default, 1.01, of=0))


@fault("post_grad", "it raises at an activation", module="mlp.act")
def post_raises() -> None:
    def edit(gm: GraphModule) -> None:
        if any(node.target is aten.erf.default for node in gm.graph.nodes):
            raise AssertionError("a pass over the graph cannot go on")

    _after(post_grad, "remove_assert_ops", edit)


@fault("pre_grad", "a pass over the captured graph loses a ReLU", module="stem.act")
def pre_identity() -> None:
    from timmgate.worker.faults.stack.front import functional_relu

    original = pre_grad.pre_grad_passes

    def passes(gm: GraphModule, *args: Any, **kwargs: Any) -> Any:
        found = original(gm, *args, **kwargs)
        bypass(found if isinstance(found, GraphModule) else gm, functional_relu)
        return found

    pre_grad.pre_grad_passes = passes
    torch._inductor.compile_fx.pre_grad_passes = passes
