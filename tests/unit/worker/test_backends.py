"""Compilers by name, their settings, and what happens when a mode asks for what there is not."""

import io
import json
from pathlib import Path

import pytest
import torch

from timmgate.core.protocol import Reporter
from timmgate.core.spec import Mode, Spec, Traits
from timmgate.worker import backends
from timmgate.worker.compile_cache import Cache

IMAGES = torch.ones(2, 3)


class NoCache(Cache):
    """Leaves the compiler's cache as it is."""

    def _use(self):
        pass


def spec(traits: Traits | None = None, device: str = "cpu", **options) -> Spec:
    return Spec("accuracy", device, "m", "test_vit", "random", "2", "1", options=Mode(**options), traits=traits or Traits())


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "export"])
def test_a_backend_computes_the_same(backend):
    model = torch.nn.Linear(3, 2)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = backends.compile_model(spec(backend=backend), model, IMAGES)
        torch.testing.assert_close(compiled(IMAGES), model(IMAGES))


def test_a_dynamic_export_takes_other_batch_sizes():
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        compiled = backends.compile_model(spec(backend="export", dynamic=True), model, IMAGES)
        torch.testing.assert_close(compiled(torch.ones(5, 3)), model(torch.ones(5, 3)))


def test_an_export_under_amp_rounds_as_eager_does():
    model, made = torch.nn.Linear(3, 2), spec(backend="export", precision="amp")
    with torch.no_grad():
        compiled = backends.compile_model(made, model, IMAGES)
        assert compiled(IMAGES).dtype == torch.bfloat16


def test_an_unknown_backend_is_refused_with_near_matches():
    with pytest.raises(backends.UnknownBackendError, match="'inducter'; did you mean inductor"):
        backends.compile_model(spec(backend="inducter"), torch.nn.Identity(), IMAGES)


@pytest.mark.parametrize("options", [{"backend": "cudagraphs"}, {"cudagraphs": True}])
def test_cuda_graphs_are_refused_without_cuda(options):
    with pytest.raises(backends.UnsupportedDeviceError, match="CUDA graphs need device cuda, this is cpu"):
        backends.compile_model(spec(**options), torch.nn.Identity(), IMAGES)


def test_settings_of_mode_and_suite_are_in_force_and_gone_afterwards():
    config = torch._inductor.config
    made = spec(
        Traits(emulate_precision_casts=True), freezing=True, cudagraphs=True, inductor_config={"cpp.min_chunk_size": 7}
    )
    before = (config.freezing, config.emulate_precision_casts, config.triton.cudagraphs, config.cpp.min_chunk_size)
    with backends.configured(made):
        assert config.fallback_random
        within = (config.freezing, config.emulate_precision_casts, config.triton.cudagraphs, config.cpp.min_chunk_size)
        assert within == (True, True, True, 7)
    assert (config.freezing, config.emulate_precision_casts, config.triton.cudagraphs, config.cpp.min_chunk_size) == before


def test_the_modes_own_inductor_option_wins():
    assert backends.inductor_changes(spec(inductor_config={"fallback_random": False}))["fallback_random"] is False


def test_an_unknown_inductor_option_is_refused_with_near_matches():
    refused = pytest.raises(backends.UnknownInductorOptionError, match="'max_autotun'; did you mean max_autotune")
    with refused, backends.configured(spec(inductor_config={"max_autotun": True})):
        pass


def test_stages_alternate_between_compile_and_run_also_for_the_backward_pass():
    stream = io.StringIO()
    with backends.compiling(spec(backend="aot_eager"), NoCache(Path()), Reporter(stream)):
        compiled = torch.compile(torch.nn.Linear(3, 2), backend="aot_eager")
        compiled(IMAGES).sum().backward()
        compiled(IMAGES)
    stages = [json.loads(line)["stage"] for line in stream.getvalue().splitlines()]
    assert stages[:2] == ["compile", "run"]
    assert len(stages) % 2 == 0 and stages[-1] == "run"
