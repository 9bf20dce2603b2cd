"""The smallest graph that goes wrong: what is captured, what is left of it, and a script that repeats it."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from specs import spec
from timmgate.core.build import BuildOptions
from timmgate.core.diagnosis import TrialRequest
from timmgate.core.protocol import Reporter
from timmgate.core.run_options import RunOptions
from timmgate.diagnosis import ladder
from timmgate.worker.compile_cache import Cache
from timmgate.worker.diagnose import graphs
from timmgate.worker.diagnose.graphs import Graph, Search, captured
from timmgate.worker.training_step import Setup

aten = torch.ops.aten


def function(images, factor):
    """Nine operators, of which one returns several tensors."""
    normed = torch.nn.functional.layer_norm(images * factor, images.shape[-1:])
    return torch.erf(normed).softmax(-1) @ factor, normed.sum(0)


@pytest.fixture
def graph():
    inputs = [torch.randn(6, 6), torch.rand(6, 6) + 0.5]
    return Graph(make_fx(function)(*inputs), inputs)


@pytest.fixture
def searching(monkeypatch, tmp_path):
    """A search for whom a graph is wrong in each output that depends on an operator; it says what it has compiled."""

    def make(culprit):
        compiled = []

        def margins(_, graph):
            compiled.append(graph.size)
            reached = set()
            for node in graph.operators:
                if node.target is culprit or reached & {*node.all_input_nodes}:
                    reached.add(node)
            return {name: (9.0 if node in reached else 0.1, 1e-7) for name, node in graph.outputs().items()}

        monkeypatch.setattr(Search, "margins", margins)
        return Search(spec(), Setup(1, Cache(tmp_path), 4), Reporter(io.StringIO())), compiled

    return make


@pytest.mark.parametrize("culprit", [aten.erf.default, aten._softmax.default, aten.mul.Tensor, aten.sum.dim_IntList])
def test_one_operator_is_left_whichever_it_is(graph, searching, culprit):
    search, compiled = searching(culprit)
    found = search.smallest(graph)
    assert [node.target for node in found.operators] == [culprit]
    assert len(compiled) < 4 * graph.size
    expected = graph.module(*graph.inputs)
    assert found.module(*found.inputs).shape in {(6, 6), (6,)} and expected[0].shape == (6, 6)


def test_an_operator_that_returns_several_tensors_stays_with_the_one_that_is_taken(graph, searching):
    search, _ = searching(aten.native_layer_norm.default)
    found = search.smallest(graph)
    assert [getattr(node.target, "__name__", str(node.target)) for node in found.operators] == [
        "native_layer_norm.default",
        "getitem",
    ]
    assert torch.is_tensor(found.module(*found.inputs))


def test_a_graph_that_is_right_has_no_part_that_is_wrong(graph, searching):
    assert searching(aten.cos.default)[0].smallest(graph) is None


def test_a_part_that_is_given_nothing_is_a_constant_that_null_runs_do_not_judge(tmp_path):
    part = Graph(make_fx(lambda: torch.full((3,), 0.5) + 1)(), [])
    assert Search(spec(), Setup(1, Cache(tmp_path), 4), Reporter(io.StringIO())).margins(part) == {}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 6)

    def forward(self, images):
        return torch.nn.functional.gelu(self.linear(images))


def test_the_graphs_of_a_module_are_captured_with_what_they_are_given():
    images = torch.randn(4, 6)
    (forward,) = captured(spec(), Block(), images)
    assert forward[0] == "forward" and aten.gelu.default in {node.target for node in forward[1].operators}
    with torch.enable_grad():
        directions = dict(captured(spec(options={"training": True}), Block(), images))
    assert set(directions) == {"forward", "backward"}
    assert aten.gelu_backward.default in {node.target for node in directions["backward"].operators}
    gradients = directions["backward"].module(*directions["backward"].inputs)
    assert any(torch.is_tensor(each) for each in gradients)


@pytest.mark.parametrize(("options", "can"), [({}, True), ({"precision": "amp"}, False), ({"backend": "export"}, False)])
def test_graphs_are_searched_where_float64_is_exact_and_dynamo_captures(options, can):
    assert graphs.can_be_searched(spec(options=options)) is can


BACKEND = """
import torch
from torch._dynamo import register_backend

@register_backend
def off_by_a_tenth(graph, inputs):
    return lambda *given: tuple(each * 1.1 for each in graph(*given))
"""


def test_a_search_keeps_a_script_that_fails_in_a_fresh_process_and_says_how_far(tmp_path, monkeypatch, graph):
    (tmp_path / "wrong_plugin.py").write_text(BACKEND)
    monkeypatch.syspath_prepend(str(tmp_path))
    import wrong_plugin  # noqa: F401

    cell = spec(options={"backend": "off_by_a_tenth"})
    build = BuildOptions(import_=["wrong_plugin"], env={"PYTHONPATH": str(tmp_path)})
    request = TrialRequest(cell, RunOptions(build=build), ladder.REPEAT, 4, tmp_path / "kept")
    searching = Search(cell, Setup(1, Cache(tmp_path / "cache"), 4), Reporter(io.StringIO()))
    found = searching.smallest(graph)
    assert found.size == 1
    graphs.write(found, searching, cell, request)
    path = tmp_path / "kept" / "graph" / "graph.py"
    done = subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(tmp_path), "PATH": str(Path(sys.executable).parent)},
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "output is off from float64 by 0.1 of its size" in done.stdout
