"""On a real GPU: its lease, its memory, its numbers, and the tiny suite from end to end. `make test-gpu` runs them."""

import contextlib
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from conftest import ROOT
from specs import cell as new_cell
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Mode
from timmgate.supervisor import cell
from timmgate.supervisor.journal import Journal
from timmgate.system import device_locks, gpus
from timmgate.system.device_locks import SlotRequest
from timmgate.worker import peak_memory, torch_device

MEBIBYTE = 1 << 20

TOO_MANY_IMAGES = 1 << 22
"""Of 3 x 160 x 160 int64: 2.6 TB, more than any GPU has."""

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def gpu():
    """The UUID of the first GPU, which is the only one that these tests use."""
    visible = gpus.visible()
    if not visible:
        pytest.skip("there is no GPU: CUDA_VISIBLE_DEVICES is empty, or NVIDIA's driver shows none")
    if not torch.cuda.is_available():
        pytest.skip(f"this torch cannot use the GPU: it is built for CUDA {torch.version.cuda}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(gpus.VISIBLE, visible[0])
        yield visible[0]


@pytest.fixture
def measure(tmp_path, monkeypatch):
    """Supervise a real worker."""
    monkeypatch.delenv("TIMMGATE_WORKER", raising=False)

    def run(*checks, batch_size=2, **options):
        measured = new_cell(device="cuda", model="test_resnet", batch_size=batch_size, options=Mode(**options))
        specs = [measured.spec(check) for check in checks]
        policy = RunOptions(timeout=600, attempts=1, cache=tmp_path / "cache", jobs_per_gpu=1, timing_limit=3)
        return cell.supervise(specs, policy, tmp_path / "worker.log", Journal(tmp_path / "attempts.jsonl"))

    return run


def test_the_driver_names_the_gpu_that_it_is_told_to_show(gpu):
    assert gpus.ask_driver() == [gpu]


def test_a_process_with_a_lease_sees_its_gpu_and_no_other(gpu):
    code = "import torch; print(torch.cuda.device_count(), torch.cuda.get_device_properties(0).uuid)"
    with contextlib.closing(device_locks.lease(SlotRequest((gpu,), slots=(0,)))) as lease:
        environment = {**os.environ, **gpus.only(lease.device)}
        printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert printed.stdout.split() == ["1", gpu.removeprefix("GPU-")]


def test_peak_memory_is_what_was_allocated():
    def allocate():
        torch.ones(100 * MEBIBYTE, dtype=torch.uint8, device="cuda")

    before = torch.cuda.memory_allocated()
    assert peak_memory.peak_bytes("cuda", allocate, resident=0) - before == 100 * MEBIBYTE


def test_products_and_convolutions_have_the_precision_of_float32():
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch_device.set_deterministic(False)
    matrix = torch.full((256, 256), 1 + 2**-12, device="cuda")  # TF32 would round it to 1
    image, kernels = matrix.reshape(1, 64, 32, 32), matrix[:, :64].reshape(256, 64, 1, 1)
    exact = (1 + 2**-12) ** 2
    assert (matrix @ matrix).double().sub(256 * exact).abs().max() < 1e-3
    assert torch.nn.functional.conv2d(image, kernels).double().sub(64 * exact).abs().max() < 1e-3


def test_what_was_launched_is_done_after_a_synchronisation():
    matrix, done = torch.ones(8192, 8192, device="cuda"), torch.cuda.Event()
    for _ in range(20):
        matrix @ matrix
    done.record()
    assert not done.query(), "the product should still be computed"
    torch_device.synchronize("cuda")
    assert done.query()


@pytest.mark.parametrize("check", ["accuracy", "performance"])
def test_a_batch_that_no_gpu_can_hold_is_out_of_memory(check, measure, monkeypatch):
    monkeypatch.setattr(cell, "next_batch_size", lambda size: 0)
    (outcome,) = measure(check, batch_size=TOO_MANY_IMAGES)
    assert (outcome.verdict.status, outcome.verdict.cause, outcome.result.stage) == ("OOM", "OutOfMemoryError", "load")


@pytest.mark.parametrize("training", [False, True])
def test_cuda_graphs_run_and_compute_the_right_thing(training, measure, gpu):
    accuracy, performance = measure("accuracy", "performance", cudagraphs=True, training=training)
    assert (accuracy.verdict.status, performance.verdict.status) == ("pass", "pass"), performance.verdict.message
    columns = performance.result.columns
    assert (columns["device_uuid"], columns["cudagraph_skips"], columns["timed_output_ok"]) == (gpu, 0, True)
    assert columns["eager_peak_bytes"] > 0


@pytest.fixture(scope="module")
def cells(tmp_path_factory, gpu):
    """The tiny suite, both checks, through the workflow."""
    folder = tmp_path_factory.mktemp("run")
    snakemake = Path(sys.executable).with_name("snakemake")
    command = [
        snakemake,
        "--cores",
        str(len(os.sched_getaffinity(0))),
        "--snakefile",
        ROOT / "Snakefile",
        "--directory",
        folder,
    ]
    config = ["device=cuda", "suite=tiny", "weights=random", "modes=inference,training", "jobs_per_gpu=4", "timing_limit=3"]
    subprocess.run([*command, "--config", *config], check=True)
    return pq.read_table(folder / "results" / "cuda" / "cells.parquet").to_pylist()


@pytest.mark.parametrize("check", ["accuracy", "performance"])
def test_the_tiny_suite_passes(check, cells):
    said = {(cell["mode"], cell["model"]): (cell[check], cell[f"{check}_message"]) for cell in cells}
    assert len(said) == 12
    assert {cell: words for cell, words in said.items() if words[0] != "pass"} == {}


def test_every_row_names_the_gpu_and_has_its_memory(cells, gpu):
    assert {cell["device_uuid"] for cell in cells} == {gpu}
    assert {cell["device_name"] for cell in cells} == {torch.cuda.get_device_name()}
    assert all(cell["eager_peak_bytes"] > 0 and cell["compiled_peak_bytes"] > 0 for cell in cells)


def test_no_two_cells_are_timed_at_once_on_one_gpu(cells):
    windows = sorted((cell["timing_started_at"], cell["timing_ended_at"]) for cell in cells)
    assert all(end <= start for (_, end), (start, _) in pairwise(windows))
