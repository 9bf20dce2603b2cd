"""Compilers by name, their settings, and what happens when a mode asks for what there is not."""

import contextlib
import io
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import get_compilation_metrics

import specs
from said import Said
from timmgate.core.protocol import Reporter
from timmgate.core.spec import Spec
from timmgate.worker import backends
from timmgate.worker.compile_cache import Cache

IMAGES = torch.ones(2, 3)


class NoCache(Cache):
    """Leaves the compiler's cache as it is."""

    def _use(self):
        pass


def spec(traits: dict[str, Any] | None = None, **options: Any) -> Spec:
    return specs.spec("accuracy", options=options, traits=traits)


@pytest.mark.parametrize("backend", ["eager", "aot_eager", "export"])
def test_a_backend_computes_the_same(backend):
    model = torch.nn.Linear(3, 2)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = backends.compile_model(spec(backend=backend), model, IMAGES)
        torch.testing.assert_close(compiled(IMAGES), model(IMAGES))


def test_what_dynamo_counted_is_of_all_compilations_and_not_of_the_last_64(tmp_path):
    reporter = Reporter(io.StringIO())
    with backends.compiling(spec(backend="eager"), NoCache(tmp_path), reporter):
        for number in range(70):
            torch.compile(eval(f"lambda images: images + {number}"), backend="eager")(IMAGES)
    assert len(get_compilation_metrics()) == 70


@pytest.mark.compiles
def test_what_is_compiled_ahead_of_time_computes_the_same():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.ReLU())
    with torch.no_grad():
        compiled = backends.compile_model(spec(backend="aot_inductor"), model, IMAGES)
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
    made = spec({"emulate_precision_casts": True}, freezing=True, cudagraphs=True, inductor_config={"cpp.min_chunk_size": 7})
    before = (config.freezing, config.emulate_precision_casts, config.triton.cudagraphs, config.cpp.min_chunk_size)
    with backends.configured(made):
        assert config.fallback_random
        within = (config.freezing, config.emulate_precision_casts, config.triton.cudagraphs, config.cpp.min_chunk_size)
        assert within == (True, True, True, 7)
    assert (config.freezing, config.emulate_precision_casts, config.triton.cudagraphs, config.cpp.min_chunk_size) == before


def test_the_modes_own_inductor_option_wins():
    assert backends.inductor_changes(spec(inductor_config={"fallback_random": False}))["fallback_random"] is False


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("max_autotunee", True, "no inductor option 'max_autotunee'; did you mean max_autotune"),
        ("max_autotune", 7, "inductor option 'max_autotune' is 7; it must be of the type bool"),
        ("max_autotune", "yes", "inductor option 'max_autotune' is 'yes'; it must be of the type bool"),
        ("cpp.threads", 2.5, "inductor option 'cpp.threads' is 2.5; it must be of the type int"),
        ("cpp.threads", None, "inductor option 'cpp.threads' is None; it must be of the type int"),
        ("max_autotune_subproc_result_timeout_seconds", True, "it must be of the type float"),
        ("max_autotune_gemm_search_space", "EXHAUSTIV", "is 'EXHAUSTIV'; did you mean EXHAUSTIVE?"),
        ("post_grad_custom_pre_pass", "my_pass", "'post_grad_custom_pre_pass' is 'my_pass'; it must be of the type"),
        ("cpp", {"threads": 2}, "inductor option 'cpp' is a group; write its members with a dot, such as cpp.threads"),
    ],
)
def test_an_inductor_option_that_there_is_not_and_a_value_that_it_cannot_have_are_refused_in_a_sentence(
    key, value, sentence
):
    refused = pytest.raises(backends.InductorOptionError, match=re.escape(sentence))
    with refused, backends.configured(spec(inductor_config={key: value})):
        pass


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("cpp.threads", 2),
        ("max_autotune_subproc_result_timeout_seconds", 60),  # a whole number for a float
        ("max_autotune_gemm_search_space", "EXHAUSTIVE"),
        ("max_autotune", False),
        ("cpp.cxx", ["clang++", "g++"]),  # YAML has no tuples
        ("cpp.simdlen", None),
        ("cpp.simdlen", 256),
        ("force_disable_caches", True),  # which is an alias of another module's
    ],
)
def test_a_value_that_torch_takes_is_not_refused(key, value):
    backends.check_inductor_config({key: value})


@pytest.mark.parametrize(
    ("key", "typed", "taken"),
    [
        ("cuda.version", 12.4, "12.4"),
        ("cuda.arch", 90, "90"),
        ("cpp.enable_floating_point_contract_flag", "off", "off"),
        ("cpp.threads", "2", 2),
        ("max_autotune_subproc_result_timeout_seconds", "1e1", 10.0),
        ("max_autotune", True, True),
    ],
)
def test_a_value_has_the_type_that_torch_declares_however_it_was_typed(key, typed, taken):
    changes = backends.inductor_changes(spec(inductor_config={key: typed}))
    assert (changes[key], type(changes[key])) == (taken, type(taken))
    backends.check_inductor_config(changes)


def test_no_option_of_the_installed_torch_is_refused_its_own_value():
    torch_says = {name: getattr(torch._inductor.config, name) for name in backends.inductor_options()}
    backends.check_inductor_config(torch_says)
    refused = [
        name for name, value in torch_says.items() if not backends.is_of_type(value, backends.inductor_options()[name])
    ]
    assert refused == []


@pytest.mark.parametrize("value", [None, True, 7, 0.5, "a text", [1], {"a": 1}])
def test_any_value_of_any_option_is_taken_or_refused_and_nothing_else(value):
    for hint in backends.inductor_options().values():
        assert backends.is_of_type(value, hint) in (True, False)


@pytest.mark.parametrize("options", [{"precision": "bfloat16"}, {"precision": "amp"}, {"precision": "float32"}])
def test_a_precision_that_the_device_has_is_not_refused(options):
    backends.check_precision(spec(**options).options, "cpu")


def test_a_precision_that_the_device_does_not_have_is_refused():
    with pytest.raises(backends.UnsupportedDeviceError, match="meta cannot compute in amp"):
        backends.check_precision(spec(precision="amp", amp_dtype="float16").options, "meta")


def test_an_autocast_that_only_warns_is_refused(monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    with pytest.raises(backends.UnsupportedDeviceError, match="autocast on cpu does not compute in float16"):
        backends.check_precision(spec(precision="amp", amp_dtype="float16").options, "cpu")


def test_a_compiler_that_breaks_on_the_simplest_program_does_so_when_it_compiles_the_model(monkeypatch):
    def break_(_):
        raise RuntimeError("no such instruction")

    monkeypatch.setattr(backends, "build_toolchain", break_)
    said = Said()
    with backends.compiling(spec(), NoCache(Path()), said.reporter):
        torch.compile(torch.nn.Linear(3, 2), backend="eager")(IMAGES)
    assert said.stages == ["compile", "run"]


def test_stages_alternate_between_compile_and_run_also_for_the_backward_pass():
    said = Said()
    with backends.compiling(spec(backend="aot_eager"), NoCache(Path()), said.reporter):
        compiled = torch.compile(torch.nn.Linear(3, 2), backend="aot_eager")
        compiled(IMAGES).sum().backward()
        compiled(IMAGES)
    assert said.stages[:2] == ["compile", "run"]
    assert len(said.stages) % 2 == 0 and said.stages[-1] == "run"


def test_dynamos_own_times_are_without_the_time_that_the_process_was_paused():
    def clock() -> float:
        """Stands still half of the time."""
        return time.perf_counter() / 2

    with backends.compiling(spec(backend="aot_eager"), NoCache(Path()), Reporter(io.StringIO(), clock)) as first:
        torch.compile(torch.nn.Linear(3, 2), backend="aot_eager")(IMAGES)
        first.stop()
    assert 0 < first.costs["aot_autograd_s"] < first.costs["dynamo_s"] < first.costs["wall_s"]
