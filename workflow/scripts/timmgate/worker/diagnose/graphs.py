"""The smallest graph that still goes wrong: of the operators of a module, forward or backward, those that it takes.

The module is captured as AOTAutograd captures it, with the tensors that its graphs are given in eager. Of the graph that
goes wrong, first what comes after the first wrong value is left out, then as much as possible of what comes before it, whose
values are given instead. Both are bisected: it takes about twice the logarithm of the number of operators.

In float32 alone: elsewhere casts are operators, and a graph with casts has no float64 run that is exact.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from operator import getitem
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, fx
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

from timmgate.core.diagnosis import GRAPH, GRAPH_SCRIPT, TrialRequest
from timmgate.core.faults import is_fault
from timmgate.core.files import write_text
from timmgate.core.protocol import Reporter
from timmgate.core.spec import Spec
from timmgate.worker import backends, strict_verdict
from timmgate.worker.diagnose.places import Fed, Place
from timmgate.worker.training_step import Setup

FAMILIES = ["eager", "operands", "operands", "outputs", "outputs", "library"]
"""Null runs of a graph: those that apply to any function of tensors."""

INPUTS = "inputs.safetensors"
"""The file with the tensors that the graph is given, beside its script."""

RMS = "rms"
"""The statistic that decides: one that a script can say in a line."""


@dataclass(frozen=True)
class Graph:
    """A graph of aten operators and the tensors that it is given, in order."""

    module: fx.GraphModule
    inputs: Sequence[Any]

    @property
    def operators(self) -> list[fx.Node]:
        """Its calls of operators."""
        return [node for node in self.module.graph.nodes if node.op == "call_function"]

    @property
    def size(self) -> int:
        """Their number."""
        return len(self.operators)

    def outputs(self) -> dict[str, Any]:
        """By the name that its value has as a leaf, each node that is returned."""
        (end,) = (node for node in self.module.graph.nodes if node.op == "output")
        returned = end.args[0]
        if not isinstance(returned, (list, tuple)):
            return {"output": returned}
        return {f"output.{number}": node for number, node in enumerate(returned)}


def is_float(value: Any) -> bool:
    """Whether it is a tensor of floats with something in it."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.numel() > 0


def can_be_searched(spec: Spec) -> bool:
    """Whether the graphs of a cell say something: it computes in float32, and its compiler gets graphs from dynamo."""
    options = spec.options
    return options.precision == "float32" and not is_fault(options.backend) and options.backend not in backends.AHEAD_OF_TIME


def captured(spec: Spec, model: torch.nn.Module, images: Tensor) -> list[tuple[str, Graph]]:
    """The graphs of one iteration in the order in which they run, each `forward` or `backward`."""
    found: list[tuple[str, Graph]] = []

    def keeper(direction: str) -> Any:
        def keep(graph: fx.GraphModule, _: Any) -> Any:
            def call(*inputs: Any) -> Any:
                given = [each.detach().clone() if isinstance(each, Tensor) else each for each in inputs]
                found.append((direction, Graph(graph, given)))
                return graph(*inputs)

            return make_boxed_func(call)

        return keep

    backend = aot_autograd(fw_compiler=keeper("forward"), bw_compiler=keeper("backward"))
    model = copy.deepcopy(model)
    torch._dynamo.reset()
    strict_verdict.run(spec, model, images, torch.compile(model, backend=backend))
    return found


class Search:
    """Asks of parts of a graph whether they go wrong, each compiled by itself as the cell is."""

    def __init__(self, spec: Spec, setup: Setup, reporter: Reporter):
        self._spec = replace(spec, options=replace(spec.options, training=False, optimizer=None))
        self._setup, self._reporter = setup, reporter

    def margins(self, graph: Graph) -> dict[str, tuple[float, float]]:
        """By output, how far compiled is off over what null runs allow, and that.

        Nothing where it cannot be compiled, and of constants, which null runs do not move.
        """
        if not any(map(is_float, graph.inputs)):
            return {}
        called = Fed(graph.module, tuple(graph.inputs), {})
        with torch.no_grad():
            judge = strict_verdict.prepare(self._spec, called, called.images, FAMILIES)
            with backends.compiling(self._spec, self._setup.cache, self._reporter):
                compiled = copy.deepcopy(called)
                try:
                    forward = backends.compile_model(self._spec, compiled, called.images)
                    leaves = strict_verdict.run(self._spec, compiled, called.images, forward)
                except Exception:
                    return {}
        errors, limits = judge.reference.errors(leaves), judge.limits()
        return {
            name: (errors[name].statistics[RMS].value / limit[RMS], limit[RMS])
            for name, limit in limits.items()
            if limit[RMS] and RMS in errors[name].statistics
        }

    def is_wrong(self, graph: Graph) -> bool:
        """Whether its one output is."""
        return any(margin > 1 for margin, _ in self.margins(graph).values())

    def smallest(self, graph: Graph) -> Graph | None:
        """The smallest part that is wrong; None if the whole is not."""
        values, margins = Values(graph), self.margins(graph)
        wrong = [node for name, node in graph.outputs().items() if name in margins and margins[name][0] > 1]
        parts = (values.part(graph.operators, node) for node in wrong if node in graph.operators)
        part = next(filter(self.is_wrong, parts), None)
        while part:
            smaller = self.bisected(part)
            if smaller.size >= part.size:
                break
            part = smaller
        return part

    def bisected(self, graph: Graph) -> Graph:
        """Of a graph whose one output is wrong, the part up to the first value that is, and from as late as possible on."""
        values, nodes = Values(graph), graph.operators
        ends = [node for node in nodes if is_float(values.of[node])]
        right, wrong = -1, ends.index(graph.outputs()["output"])
        while wrong - right > 1:
            middle = (right + wrong) // 2
            right, wrong = (right, middle) if self.is_wrong(values.part(nodes, ends[middle])) else (middle, wrong)
        last = ends[wrong]
        begin, too_late = 0, nodes.index(last.args[0] if last.target is getitem else last) + 1
        while too_late - begin > 1:
            middle = (begin + too_late) // 2
            is_wrong = self.is_wrong(values.part(nodes[middle:], last))
            begin, too_late = (middle, too_late) if is_wrong else (begin, middle)
        return values.part(nodes[begin:], last)


class Values(fx.Interpreter):
    """What each node of a graph computes in eager."""

    def __init__(self, graph: Graph):
        super().__init__(graph.module, garbage_collect_values=False)
        self.of: dict[fx.Node, Any] = {}
        with torch.no_grad():
            self.run(*graph.inputs)

    def run_node(self, node: fx.Node) -> Any:
        """As ever; a tensor that a later node changes in place is kept as it was."""
        value = super().run_node(node)
        self.of[node] = value.clone() if isinstance(value, Tensor) else value
        return value

    def part(self, nodes: Sequence[fx.Node], last: fx.Node) -> Graph:
        """What computes `last` out of these nodes; everything else that it takes is given."""
        inside, needed, waiting = set(nodes), set[fx.Node](), [last]
        while waiting:
            node = waiting.pop()
            if node in needed or node not in inside or (node.target is getitem and node.args[0] not in inside):
                continue
            needed.add(node)
            waiting += node.all_input_nodes
        graph, copies, inputs = fx.Graph(), dict[fx.Node, fx.Node](), []
        users = [node for node in nodes if node in needed]
        for node in users:
            for source in node.all_input_nodes:
                if source not in needed and source not in copies:
                    copies[source] = graph.placeholder(f"given_{len(inputs)}")
                    inputs.append(self.of[source])
        for node in users:
            copies[node] = graph.node_copy(node, copies.__getitem__)
        graph.output(copies[last])
        return Graph(fx.GraphModule(torch.nn.Module(), graph), inputs)


def search(spec: Spec, setup: Setup, place: Place, request: TrialRequest, reporter: Reporter) -> None:
    """Report the smallest graph of a place that goes wrong, and keep it with a script."""
    searching = Search(spec, setup, reporter)
    for direction, graph in captured(spec, place.fed, place.fed.images):
        if direction == place.direction and (found := searching.smallest(graph)):
            write(found, searching, spec, request)
            names = [str(node.target) for node in found.operators if node.target is not getitem]
            reporter.columns(graph=", ".join(names), graph_operators=len(names))
            return


def write(found: Graph, searching: Search, spec: Spec, request: TrialRequest) -> None:
    """Keep the graph as a script that needs torch alone and ends with 1 if it goes wrong, with its tensors beside it."""
    folder = request.kept / GRAPH
    folder.mkdir(parents=True, exist_ok=True)
    ((_, limit),) = searching.margins(found).values()
    tensors = {f"given_{number}": value for number, value in enumerate(found.inputs) if isinstance(value, Tensor)}
    save_file({name: value.contiguous().clone() for name, value in tensors.items()}, folder / INPUTS)
    given = [f"inputs['given_{n}']" if isinstance(value, Tensor) else repr(value) for n, value in enumerate(found.inputs)]
    mode = "" if spec.options.compile_mode == "default" else f", mode={spec.options.compile_mode!r}"
    dynamic = ", dynamic=True" if spec.options.dynamic else ""
    build = request.run.build
    imported = [f"sys.path += {places}" for places in [build.import_places()] if places]
    imported += [f"import {name}" for name in build.import_]
    write_text(
        folder / GRAPH_SCRIPT,
        TEXT.format(
            environment=build.script_environment(request.run.threads, spec.device),
            imports="".join(f"{line}\n" for line in imported),
            config=backends.inductor_changes(spec),
            code="\n".join(f"    {line}" if line.strip() else "" for line in found.module.code.strip().splitlines()),
            device=spec.device,
            given=", ".join(given),
            backend=f"backend={spec.options.backend!r}{mode}{dynamic}",
            limit=f"{limit:.3g}",
        ),
    )


TEXT = '''"""The smallest graph that is wrong. Exit code 1 if it is off from float64 by more than null runs allow, else 0."""
import os, sys
os.environ |= {environment}
{imports}import torch
from math import inf, nan
from safetensors.torch import load_file
from torch import device

torch.set_grad_enabled(False)
torch.backends.cudnn.allow_tf32 = False
torch._inductor.config.patch({config}).__enter__()


class Graph(torch.nn.Module):
{code}


inputs = load_file(sys.path[0] + "/inputs.safetensors", {device!r})
given = [{given}]
eager, compiled = Graph()(*given), torch.compile(Graph(), {backend})(*given)
wide = [each.double() if torch.is_tensor(each) and each.is_floating_point() else each for each in given]
exact = Graph()(*wide)
error, usual = (((each.double() - exact).norm() / exact.norm()).item() for each in (compiled, eager))
print(f"output is off from float64 by {{error:.2g}} of its size, {{error / usual if usual else inf:,.3g}} times as far as"
      f" eager ({{usual:.2g}}); its error is {{error / {limit}:,.3g}} times what null runs allow")
sys.exit(not error <= {limit})
'''
"""Of the script."""
