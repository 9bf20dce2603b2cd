"""Backends that break what they compile, in one known way each: `fault:<name>[@place]` (core.faults)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._guards import CompileContext

from timmgate.core.faults import DEFAULT_PLACE, Choice, FaultNotApplicable, parse
from timmgate.worker.faults import gradients, indices, process, special_values, state, structure, values
from timmgate.worker.faults.graph import EDITS, Captured, choose

FAMILIES = (gradients, indices, process, special_values, state, structure, values)
"""The modules that fill EDITS."""


def compile_model(backend: str, model: torch.nn.Module, dynamic: bool | None = None) -> "CompiledWithFault":
    """`model`, compiled with the fault. Raises UnknownFaultError."""
    return CompiledWithFault(parse(backend), model, dynamic)


class CompiledWithFault:
    """A model that torch.compile runs with a fault in it.

    Calls raise FaultNotApplicable as soon as it is known that there is nothing to break: after the first call, or with a
    fault of the backward pass in the second one, as the backward graph may be compiled late. `check` asks for it.
    """

    def __init__(self, choice: Choice, model: torch.nn.Module, dynamic: bool | None):
        self.choice, self.backend, self._calls = choice, FaultBackend(choice), 0
        self._recompiling = process.Recompiling(model) if choice.fault.name == process.RECOMPILE else None
        self._compiled = torch.compile(self._recompiling or model, backend=self.backend.compile, dynamic=dynamic)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._calls and self.choice.fault.backward:
            self.check()
        self._calls += 1
        if self._recompiling:
            self._recompiling.count()
        result = self._compiled(*args, **kwargs)
        if not self.choice.fault.backward or not torch.is_grad_enabled():
            self.check()
        return result

    def check(self) -> None:
        """Raise FaultNotApplicable if no graph so far has the fault."""
        if not self.backend.broken and self.choice.fault.name != process.RECOMPILE:
            fault = self.choice.fault
            where = "backward" if fault.backward else "forward"
            raise FaultNotApplicable(
                f"{self.choice} does not apply: no {where} graph of this model has a place for it ({fault.description})"
            )


class FaultBackend:
    """A fault as a backend of torch.compile: `compile` is what torch.compile is given.

    In a model of several graphs a place is counted in the first graph that the fault applies to; `all` is in all of them.
    A graph that is compiled again is broken again.

    * `broken`: names of the nodes that were broken, in order, or of the fault itself where it has no places.
    """

    def __init__(self, choice: Choice):
        self.choice = choice
        self.broken: list[str] = []
        self._frame: int | None = None
        self._memory: dict[int | None, dict] = {}

    def compile(self, graph_module: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        """Compile one graph of dynamo's."""
        return capture(self._compile, graph_module, example_inputs)

    def _compile(self, module: torch.fx.GraphModule, captured: Captured) -> Callable[..., Any]:
        run = module.forward
        if captured.backward == self.choice.fault.backward:
            if self.choice.fault.name in EDITS:
                self._break(self.choice, replace(captured, size=self.choice.size))
                module.recompile()
                run = module.forward
            else:
                run = self._break_process(self.choice.fault.name, run)
        return make_boxed_func(run)

    def _break(self, choice: Choice, captured: Captured) -> None:
        """Edit the graph where the fault applies."""
        edit, frame = EDITS[choice.fault.name], compiled_frame()
        if choice.place != "all" and self._frame not in (None, frame):
            return
        sites = edit.where(captured)
        if not sites:
            return
        self._frame = frame
        for node in choose(sites, choice.place or DEFAULT_PLACE, str(choice)):
            self.broken.append(node.name)
            edit.apply(node, choice.size, self._memory.setdefault(frame, {}))

    def _break_process(self, name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        """The compiled graph with what happens before it runs, if the compiler gets that far."""
        self.broken.append(name)
        process.COMPILING.get(name, lambda: None)()
        before = process.RUNNING.get(name, lambda: None)

        def broken(*args: Any) -> Any:
            before()
            return run(*args)

        return broken


def capture(
    compile_graph: Callable[[torch.fx.GraphModule, Captured], Callable[..., Any]],
    graph_module: torch.fx.GraphModule,
    example_inputs: list[Any],
) -> Callable[..., Any]:
    """Compile one graph of dynamo's, whose forward and backward graphs `compile_graph` makes a function of."""
    batch = leading_size(graph_module)

    def compiler(training: bool, backward: bool) -> Callable[..., Any]:
        return lambda module, inputs: compile_graph(module, Captured(module.graph, batch, training, backward))

    return aot_autograd(
        fw_compiler=compiler(training=True, backward=False),
        bw_compiler=compiler(training=True, backward=True),
        inference_compiler=compiler(training=False, backward=False),
        keep_inference_input_mutations=True,
    )(graph_module, example_inputs)


def leading_size(graph_module: torch.fx.GraphModule) -> Any:
    """Size of the first axis of what a graph of dynamo's returns first; None if that is no tensor with axes."""
    (output,) = graph_module.graph.find_nodes(op="output")
    examples = [node.meta.get("example_value") for node in output.all_input_nodes[:1]]
    shape = [each.shape for each in examples if isinstance(each, torch.Tensor)]
    return shape[0][0] if shape and len(shape[0]) else None


def compiled_frame() -> int | None:
    """Dynamo's number of the frame that is being compiled: equal when the same code is compiled again."""
    compile_id = CompileContext.current_compile_id()
    return compile_id.frame_id if compile_id else None
