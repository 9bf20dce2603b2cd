"""The worker: its environment, its last words, and the shell command that a person runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from timmgate.core.spec import Mode, Spec
from timmgate.worker import __main__ as worker_main

SPEC = Spec("accuracy", "cpu", "m", "test_vit", "random", "2", "1", batch_size=2, options=Mode(backend="eager"))
PACKAGE_ROOT = Path(worker_main.__file__).parents[1]


def run_by_hand(spec: Spec, cache: Path, threads: int = 1) -> tuple[int, list[dict]]:
    command = [sys.executable, "-m", "timmgate.worker", "--threads", str(threads), "--cache", str(cache), spec.to_json()]
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_by_hand_it_prints_its_messages_and_ends_with_a_result(tmp_path):
    code, messages = run_by_hand(SPEC, tmp_path)
    assert code == 0
    assert [messages[0]["check"], messages[1]["stage"]] == ["accuracy", "import"]
    assert messages[-1]["result"]["status"] == "pass"
    times = [message["elapsed_s"] for message in messages]
    assert times == sorted(times)


def test_an_exception_is_its_last_word(tmp_path):
    unknown = Spec.from_dict({**SPEC.to_dict(), "model": "test_vitt"})
    code, messages = run_by_hand(unknown, tmp_path)
    assert code == 1
    assert messages[-1]["failure"]["cause"] == "UnknownModelError"
    assert "did you mean test_vit" in messages[-1]["failure"]["message"]


def test_threads_reach_torch_openmp_and_the_compilers_pool(tmp_path):
    probe = (
        "import os, sys, pathlib; from timmgate import worker; worker.set_environment(1, pathlib.Path(sys.argv[1]));"
        "import torch, torch._inductor.config as config;"
        "print(torch.get_num_threads(), config.compile_threads, os.environ['OMP_NUM_THREADS'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(PACKAGE_ROOT), "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", probe, tmp_path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1", "1"]


def chained(outer: Exception, inner: Exception) -> Exception:
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory"), True),
        (chained(RuntimeError("backend failed"), MemoryError()), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory is a band"), False),
    ],
)
def test_out_of_memory_is_told_from_other_errors(error, expected):
    assert worker_main.is_out_of_memory(error) is expected
