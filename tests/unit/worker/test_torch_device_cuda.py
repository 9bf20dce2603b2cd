"""What runs on CUDA only, against stand-ins for the calls of torch.cuda: which calls are made, and in which order."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch._dynamo.exc import BackendCompilerFailed

import specs
from timmgate.core.protocol import Reporter
from timmgate.core.spec import Spec
from timmgate.system import gpus
from timmgate.worker import __main__ as worker_main
from timmgate.worker import (
    accuracy,
    backends,
    compile_cache,
    models,
    peak_memory,
    performance,
    resource_errors,
    timing,
    torch_device,
    training_step,
)
from timmgate.worker.training_step import Setup

GIBIBYTE = 1 << 30


def spec(check: str = "performance", traits: dict[str, Any] | None = None, device: str = "cuda", **options: Any) -> Spec:
    return specs.spec(check, device=device, options=options, traits=traits)


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """The calls of torch.cuda, and of what marks a step of CUDA graphs, by name and in order."""
    made = []

    def record(where, name, returned=None):
        monkeypatch.setattr(where, name, lambda *_: made.append(name) or returned)

    record(torch.cuda, "synchronize")
    record(torch.cuda, "reset_peak_memory_stats")
    record(torch.cuda, "max_memory_allocated", 3 * GIBIBYTE)
    record(torch.cuda, "get_device_name", "NVIDIA H100")
    record(torch.compiler, "cudagraph_mark_step_begin")
    return made


class Clock:
    """Counts its readings, and writes them down among the calls."""

    def __init__(self, calls):
        self._calls, self._now = calls, 0.0

    def __call__(self):
        self._calls.append("clock")
        self._now += 1.0
        return self._now


class Quiet:
    """A pipe that nobody reads."""

    def write(self, text):
        pass

    def flush(self):
        pass


@pytest.fixture
def one_linear(calls):
    """Iterations on a layer that lies on the CPU, as if it lay on a GPU."""
    model, reporter = torch.nn.Linear(3, 2), Reporter(Quiet(), Clock(calls))
    made = performance.Iterations(spec(), model, [torch.ones(4, 3), torch.ones(2, 3)], reporter)
    calls.clear()
    return made, model


def test_the_name_of_the_gpu_is_the_drivers(calls):
    assert torch_device.name("cuda") == "NVIDIA H100"


@pytest.mark.parametrize(("requested", "dtype"), [(None, torch.float16), ("bfloat16", torch.bfloat16)])
def test_autocast_is_in_float16_unless_the_mode_says_otherwise(requested, dtype):
    assert torch_device.autocast_dtype("cuda", requested) == dtype


@pytest.mark.parametrize(
    ("options", "dtype", "traits"),
    [
        ({"precision": "amp"}, torch.float16, {}),
        ({"precision": "amp", "amp_dtype": "bfloat16"}, torch.bfloat16, {}),
        ({"precision": "bfloat16"}, torch.bfloat16, {"force_amp": True}),
    ],
)
def test_the_model_runs_under_cudas_autocast_but_the_reference_does_not(options, dtype, traits, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda device, dtype: (device, dtype))
    made = spec(traits=traits, **options)
    assert models.autocast(made, torch.ones(1)) == ("cuda", dtype)
    assert isinstance(models.autocast(made, torch.ones(1, dtype=torch.float64)), contextlib.nullcontext)


@pytest.fixture
def flags():
    """Everything that `set_deterministic` sets, as it was before."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark
    sdp = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    cudnn.allow_tf32 = matmul.allow_tf32 = cudnn.benchmark = True
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    yield
    torch_device.set_deterministic(False)
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark = before
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(sdp)


@pytest.mark.parametrize("deterministic", [True, False])
def test_tf32_and_autotuned_convolutions_are_off_for_both_checks_and_determinism_as_asked(deterministic, flags):
    torch_device.set_deterministic(deterministic)
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    assert not (cudnn.allow_tf32 or matmul.allow_tf32 or cudnn.benchmark)
    assert "tf32" not in (cudnn.conv.fp32_precision, matmul.fp32_precision)
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    assert cudnn.deterministic == torch.are_deterministic_algorithms_enabled() == deterministic


def test_the_control_kernels_are_timed_until_the_gpu_is_done(monkeypatch, calls):
    monkeypatch.setattr(torch_device, "synchronize", lambda device: calls.append(f"synchronize {device}"))
    monkeypatch.setattr(torch.nn.functional, "conv2d", lambda *_, **__: calls.append("run"))
    assert torch_device.control_s("meta", Clock(calls)) == 1.0  # a device of torch that computes nothing
    assert calls == ["synchronize meta", "clock", "run", "synchronize meta", "clock"] * torch_device.CONTROL_REPEATS


def test_threads_are_not_pinned_for_a_gpu(monkeypatch):
    monkeypatch.setattr(os, "sched_setaffinity", lambda *_: pytest.fail("pinned"))
    with torch_device.pinned("cuda", 1):
        pass


def test_peak_memory_is_the_allocators_between_two_synchronisations(calls):
    assert peak_memory.peak_bytes("cuda", lambda: calls.append("run"), resident=7) == 3 * GIBIBYTE
    assert calls == ["synchronize", "reset_peak_memory_stats", "run", "synchronize", "max_memory_allocated"]


def test_free_memory_is_what_the_driver_has_and_what_the_allocator_keeps_for_later(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10 * GIBIBYTE, 80 * GIBIBYTE))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 5 * GIBIBYTE)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 2 * GIBIBYTE)
    assert torch_device.free_bytes("cuda") == 13 * GIBIBYTE
    assert torch_device.free_bytes("mps") == 0, "which does not tell"


def test_memory_is_given_back_to_the_neighbours_of_a_gpu(monkeypatch):
    released = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: released.append("cuda"))
    for device in ("cpu", "cuda"):
        torch_device.release_free_memory(device)
    assert released == ["cuda"]


def test_a_device_whose_allocator_keeps_no_peak_has_none_but_runs(calls):
    assert peak_memory.peak_bytes("mps", lambda: calls.append("run"), resident=7) is None
    assert calls == ["run"]


def test_an_iteration_is_timed_from_an_idle_gpu_to_an_idle_gpu(one_linear, calls):
    made, model = one_linear
    assert made.timed(lambda images: calls.append("run") or model(images)) == 1.0
    assert calls == ["synchronize", "clock", "cudagraph_mark_step_begin", "run", "run", "synchronize", "clock"]


def test_a_step_of_cuda_graphs_begins_once_for_all_batches_of_an_iteration(one_linear, calls):
    made, model = one_linear
    assert made.run(model).shape == (4, 2)
    assert calls == ["cudagraph_mark_step_begin"]


def test_weights_stay_where_they_are_on_a_gpu(one_linear):
    made, model = one_linear
    before = model.weight.data_ptr()
    made.relocate()
    assert model.weight.data_ptr() == before


def test_samples_are_taken_alone_on_this_gpu_after_another_warm_up(one_linear, calls, monkeypatch):
    made, model = one_linear

    @contextlib.contextmanager
    def alone(device):
        calls.append(f"alone on {device}")
        yield
        calls.append("not alone")

    monkeypatch.setenv(gpus.VISIBLE, "GPU-a")
    monkeypatch.setattr(performance.timing_turns.timing_lock, "exclusive_device", alone)
    monkeypatch.setattr(torch_device, "control_s", lambda *_: calls.append("control") or 1.0)
    monkeypatch.setattr(timing, "warm_up", lambda run: calls.append("warm-up"))
    monkeypatch.setattr(timing, "collect", lambda *_, **__: calls.append("samples"))
    setup = Setup(threads=1, cache=compile_cache.Cache(Path("unused")), batch_size=4)
    reporter = Reporter(Quiet())
    reporter.check("performance")
    performance.take_samples(spec(), setup, model, model, made, reporter)
    assert calls == ["alone on GPU-a", "warm-up", "control", "samples", "control", "not alone"]


def test_a_run_of_the_accuracy_check_ends_when_the_gpu_is_done(calls):
    images = torch.ones(2, 3)
    found = accuracy.run(spec("accuracy"), torch.nn.Linear(3, 2), images, after_first=lambda: calls.append("first"))
    (leaf,) = found.leaves
    assert leaf.value.shape == (2, 2)
    assert calls == ["first", "synchronize"]


def test_the_first_iteration_lasts_until_the_gpu_is_done(calls):
    first = backends.FirstIteration("cuda", Clock(calls), was_cold=True)
    first.stop()
    assert first.costs["wall_s"] == 1.0
    assert calls == ["clock", "synchronize", "clock"]


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({"cudagraphs": True}, {"backend": "inductor", "dynamic": None}),
        ({"backend": "cudagraphs"}, {"backend": "cudagraphs", "dynamic": None}),
        ({"compile_mode": "reduce-overhead"}, {"backend": "inductor", "dynamic": None, "mode": "reduce-overhead"}),
    ],
)
def test_cuda_graphs_are_compiled_on_cuda(options, arguments, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model, **given: given)
    assert backends.compile_model(spec(**options), torch.nn.Identity(), torch.ones(1)) == arguments


def test_inductors_cuda_graphs_are_on_where_the_mode_asks_for_them():
    with backends.configured(spec(cudagraphs=True)):
        assert torch._inductor.config.triton.cudagraphs
    with backends.configured(spec()):
        assert not torch._inductor.config.triton.cudagraphs


@pytest.mark.parametrize(
    ("check", "traits", "kind"),
    [
        ("performance", {}, torch.optim.Adam),
        ("performance", {"training_optimizer": "sgd"}, torch.optim.SGD),
        ("accuracy", {"accuracy_optimizer": "sgd"}, torch.optim.SGD),
        ("performance", {"training_optimizer": "none"}, type(None)),
    ],
)
def test_training_on_cuda_has_the_optimizer_of_the_suite(check, traits, kind):
    made = spec(check, traits, training=True)
    assert type(training_step.make_optimizer(made, torch.nn.Linear(3, 2))) is kind


def test_adams_step_can_be_captured_in_a_cuda_graph():
    adam = training_step.make_optimizer(spec(training=True), torch.nn.Linear(3, 2))
    assert (adam.defaults["capturable"], adam.defaults["foreach"]) == (True, True)
    elsewhere = training_step.make_optimizer(spec(training=True, optimizer="adam", device="cpu"), torch.nn.Linear(3, 2))
    assert elsewhere.defaults["capturable"] is False


def test_the_model_is_made_on_the_cpu_and_moved_so_that_weights_do_not_depend_on_the_device(monkeypatch):
    moved = []

    class Model(torch.nn.Linear):
        def to(self, *where, **how):
            moved.append((self.weight.device.type, *where))
            return self

    monkeypatch.setattr(timm, "create_model", lambda *_, **__: Model(3, 2))
    models.create(spec())
    assert moved == [("cpu", "cuda")]


def test_images_are_made_on_the_device():
    assert models.noise(spec(device="meta"), (3, 4, 4), 2).device.type == "meta"


def test_kernels_of_triton_lie_in_the_cache_of_the_program(tmp_path, monkeypatch):
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "elsewhere")
    compile_cache.OwnCache(tmp_path / "program", None).open()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "program")
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "program" / "triton")


def test_a_worker_lets_cublas_be_deterministic_and_keeps_triton_out_of_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "environ", {})
    worker_main.set_environment(1, tmp_path)
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "triton")


def in_a_circle() -> Exception:
    one, other = RuntimeError("no"), RuntimeError("neither")
    one.__cause__, other.__cause__ = other, one
    return one


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),
        (RuntimeError("Triton Error [CUDA]: out of memory"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (BackendCompilerFailed(lambda: None, torch.OutOfMemoryError("CUDA out of memory"), None), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (RuntimeError("out of resource: shared memory, Required: 200000, Hardware limit: 101376"), False),
        (in_a_circle(), False),
    ],
)
def test_every_way_in_which_gpu_memory_runs_out_is_told_from_other_errors(error, expected):
    assert resource_errors.is_out_of_memory(error) is expected
