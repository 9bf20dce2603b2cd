"""Faults before inductor: dynamo's guards and capture, AOTAutograd, the partitioner."""

from functools import wraps
from inspect import signature
from typing import Any

import torch
from torch._dynamo import guards, output_graph
from torch._functorch import partitioners
from torch._functorch._aot_autograd import graph_compile
from torch._inductor import compile_fx

from timmgate.worker.faults.stack import fault
from timmgate.worker.faults.stack.edits import bypass, scale

BLOCKS = {"model": "small_blocks"}


def _drop(*methods: str) -> None:
    """Let guards of these kinds not be built."""
    for name in methods:
        setattr(guards.GuardBuilder, name, lambda self, guard, *args, **kwargs: None)


@fault("guards", "plain constants are not guarded", **BLOCKS)
def guard_constants() -> None:
    _drop("CONSTANT_MATCH", "EQUALS_MATCH", "BOOL_MATCH")


@fault("guards", "functions are not guarded", **BLOCKS)
def guard_functions() -> None:
    _drop("FUNCTION_MATCH", "CLOSURE_MATCH", "ID_MATCH", "BUILTIN_MATCH")


@fault("guards", "nothing is guarded", **BLOCKS)
def guard_nothing() -> None:
    original = guards.CheckFunctionManager.__init__

    def without(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature(original).bind(self, *args, **kwargs)
        given.arguments["guard_filter_fn"] = lambda entries: [False] * len(entries)
        original(*given.args, **given.kwargs)

    guards.CheckFunctionManager.__init__ = without


@fault("guards", "booleans are not guarded", **BLOCKS)
def guard_booleans() -> None:
    original = guards.GuardBuilder.CONSTANT_MATCH

    def match(self: Any, guard: Any) -> None:
        if not isinstance(self.get(guard), bool):
            original(self, guard)

    guards.GuardBuilder.CONSTANT_MATCH = match
    _drop("BOOL_MATCH")


@fault("guards", "a guard cannot be built", **BLOCKS)
def guard_raises() -> None:
    def match(self: Any, guard: Any, *args: Any, **kwargs: Any) -> None:
        raise AssertionError("no guard for a tensor")

    guards.GuardBuilder.TENSOR_MATCH = match


@fault("guards", "guards stop to hold after some calls", check="performance")
def guard_expires() -> None:
    original = guards.CheckFunctionManager.__init__

    def expiring(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        calls = []

        def holds(_: Any) -> bool:
            calls.append(1)
            return len(calls) < 4

        self.guard_manager.root.add_lambda_guard(holds, ["it holds"], None)

    guards.CheckFunctionManager.__init__ = expiring


def _captured(edit: Any) -> None:
    original = output_graph.OutputGraph.call_user_compiler

    @wraps(original)
    def call(self: Any, gm: torch.fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        edit(gm)
        return original(self, gm, *args, **kwargs)

    output_graph.OutputGraph.call_user_compiler = call


@fault("capture", "a ReLU is left out", module="stem.act")
def capture_relu() -> None:
    _captured(lambda gm: bypass(gm, functional_relu))


def functional_relu(node: torch.fx.Node) -> bool:
    """Whether a node of dynamo's graph is a ReLU."""
    return node.target in (torch.relu, torch.nn.functional.relu)


@fault("capture", "it raises at a pooling", module="pool")
def capture_raises() -> None:
    def edit(gm: torch.fx.GraphModule) -> None:
        if any("avg_pool2d" in str(node.target) for node in gm.graph.nodes):
            raise AssertionError("cannot capture a pooling")

    _captured(edit)


def _traced(edit: Any) -> None:
    original = graph_compile.aot_dispatch_base_graph

    @wraps(original)
    def dispatch(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        edit(found[0])
        return found

    graph_compile.aot_dispatch_base_graph = dispatch


@fault("aot_autograd", "the traced graph loses an activation", module="stem.act")
def aot_relu() -> None:
    _traced(lambda gm: bypass(gm, torch.ops.aten.relu.default))


@fault("aot_autograd", "a bias is traced twice as large", module="attention.qkv")
def aot_addmm() -> None:
    _traced(lambda gm: scale(gm, torch.ops.aten.addmm.default, 2.0, of=0))


def _partitioned(edit: Any) -> None:
    original = partitioners.min_cut_rematerialization_partition

    @wraps(original)
    def partition(*args: Any, **kwargs: Any) -> Any:
        found = original(*args, **kwargs)
        if kwargs.get("compiler") == "inductor":
            edit(*found)
        return found

    for module in (partitioners, compile_fx, torch._dynamo.backends.debugging):
        module.min_cut_rematerialization_partition = partition


@fault("partitioner", "what is recomputed is recomputed with another factor", options={"training": True})
def partition_backward() -> None:
    _partitioned(lambda forward, backward: scale(backward, torch.ops.aten.mul.Tensor, 1.5, of=0))


@fault("partitioner", "a sum of the backward graph is lost", options={"training": True})
def partition_sum() -> None:
    _partitioned(lambda forward, backward: scale(backward, torch.ops.aten.sum.dim_IntList, 0.0))
