"""The dynamo rule judges models with timm's own weights as the check of PyTorch's benchmarks does, which is told anew."""

import copy
import logging
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import same

import specs
from said import listen
from timmgate.core.faults import parse
from timmgate.core.spec import Spec
from timmgate.worker import accuracy
from timmgate.worker.compile_cache import Cache
from timmgate.worker.faults.backend import FaultBackend
from timmgate.worker.training_step import Setup, make

TOLERANCE = {"inference": 1e-3, "training": 1e-2}
ITERATIONS = 2


@pytest.fixture(autouse=True)
def quiet_and_without_a_cache_of_our_own(monkeypatch):
    monkeypatch.setattr(Cache, "_use", lambda cache: None)
    threads = torch.get_num_threads()
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def verdict_of_the_reference(spec: Spec, model: torch.nn.Module, images: torch.Tensor) -> str:
    """check_accuracy of benchmarks/dynamo: float64, two eager runs, the compiled one, and torch's `same` on all of it."""
    is_training, is_amp = spec.options.training, spec.options.precision == "amp"

    def run(model, images, forward=None):
        forward = model if forward is None else forward
        torch.manual_seed(1337)
        for _ in range(ITERATIONS):
            given = images.clone().requires_grad_(is_training)
            with torch.autocast("cpu", dtype=torch.bfloat16) if is_amp else nullcontext():
                if not is_training:
                    result = forward(given)
                    continue
                model.zero_grad(set_to_none=True)
                output = forward(given)
                loss = output.sum() / output.numel()
            loss.backward()
            state = (dict(model.named_parameters()), dict(model.named_buffers()))
            gradients = {name: torch.zeros_like(each) if each.grad is None else each.grad for name, each in state[0].items()}
            result = [output, loss, gradients, *state, given.grad]
        return result

    with torch.set_grad_enabled(is_training):
        exact = run(copy.deepcopy(model).double(), images.double())
        eager, again = (run(copy.deepcopy(model), images) for _ in range(2))
        if not same(eager, again, None, tol=0):
            return "eager_two_runs_differ"
        torch._dynamo.reset()
        one = copy.deepcopy(model)
        backend = FaultBackend(parse(spec.options.backend))
        compiled = run(one, images, torch.compile(one, backend=backend.compile))
        assert backend.broken, "the fault does not apply"
        tolerance = TOLERANCE["training" if is_training else "inference"]
        is_same = same(eager, compiled, exact, tol=tolerance, equal_nan=spec.options.precision != "float32")
    return "pass" if is_same else "fail_accuracy"


FAULTS = {
    "inference": ("scale-output-1.01", "scale-bias-2", "drop-skip", "one-nan"),
    "training": ("scale-gradient-1.01", "zero-gradient", "scale-bias-2", "gradient-nan"),
}


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("test_resnet", {}),
        ("test_resnet", {"precision": "bfloat16"}),
        ("test_vit", {"precision": "amp"}),
        ("test_vit", {"training": True}),
    ],
    ids=str,
)
def test_the_verdict_on_a_fault_is_that_of_the_reference(model, options):
    found = {}
    for fault in FAULTS["training" if options.get("training") else "inference"]:
        mode = {"backend": f"fault:{fault}", "batch_size": 2, **options}
        spec = specs.spec("accuracy", model=model, weights="random-timm", options=mode)
        setup = Setup(threads=1, cache=Cache(Path("unused")), batch_size=2, strict=False)
        said = listen("accuracy", lambda reporter, spec=spec, setup=setup: accuracy.measure(spec, setup, reporter))
        assert said.result["status"] == verdict_of_the_reference(spec, *make(spec, setup)), fault
        found[said.result["status"]] = fault
    assert found.keys() == {"pass", "fail_accuracy"}, "both verdicts are tried"
