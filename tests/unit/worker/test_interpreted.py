"""Loops that are interpreted compute what eager does, and are not what C++ is generated from."""

import pytest
import torch
from torch.nn import functional

from timmgate.worker.diagnose.interpreted import interpreted

torch.manual_seed(0)
IMAGES, TOKENS = torch.randn(4, 6, 10, 10), torch.randn(4, 50, 20)
PROGRAMS = {
    "softmax": (lambda x: torch.softmax(x, -1), TOKENS),
    "layer_norm": (lambda x: functional.layer_norm(x, (20,)), TOKENS),
    "avg_pool": (lambda x: functional.avg_pool2d(x, 3, 1, 1), IMAGES),
    "max_pool": (lambda x: functional.max_pool2d(x, 3, 2, 1), IMAGES),
    "cat": (lambda x: torch.cat([x.mean(1), x.amax(1)], 1), TOKENS),
    "gelu": (functional.gelu, TOKENS),
    "gather": (lambda x: x[:, torch.tensor([3, 0, -1])] * 2, TOKENS),
    "pad": (lambda x: functional.pad(x, (1, 2), value=3.0).flip(1), IMAGES),
    "bfloat16": (lambda x: x.bfloat16().float() * 1.5, TOKENS),
    "in_place": (lambda x: (x.sin() @ torch.ones(20, 20)).relu() + 1, TOKENS),
}


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        yield


@pytest.mark.compiles
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_computes_what_eager_computes(name):
    program, values = PROGRAMS[name]
    expected = program(values.clone())
    with interpreted(), torch.no_grad():
        found = torch.compile(program)(values.clone())
    torch.testing.assert_close(found, expected)


@pytest.mark.compiles
def test_no_code_is_generated(monkeypatch):
    from torch._inductor.codegen import cpp

    def refuse(*_):
        raise AssertionError("C++ was generated")

    monkeypatch.setattr(cpp.CppKernelProxy, "codegen_nodes", refuse)
    with interpreted(), torch.no_grad():
        torch.compile(lambda x: x.exp() + 1)(TOKENS)
