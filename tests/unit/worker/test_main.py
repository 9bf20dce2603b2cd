"""The worker: its environment, its final message, and the shell command that a person runs."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import specs
from timmgate import PACKAGE_ROOT
from timmgate.core.protocol import Request
from timmgate.core.run_options import RunOptions
from timmgate.worker import __main__ as worker_main
from timmgate.worker import accuracy, resource_errors

WITHOUT = """
from importlib.machinery import PathFinder

absent = {"pyarrow", "pandas", "scipy", "psutil", "snakemake", "jsonschema", "rich", "tenacity", "pytest", "hypothesis"}
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, *rest: None if name.partition(".")[0] in absent else find_spec(name, *rest)
"""
"""A sitecustomize.py that makes an environment without what only the workflow needs."""


def request(tmp_path: Path, *checks: str, **fields) -> Request:
    cell = specs.cell(**{"batch_size": 2, "options": {"backend": "eager"}, **fields})
    return Request([cell.spec(check) for check in checks], RunOptions(cache=tmp_path / "cache", timing_limit=1))


def test_by_hand_in_an_environment_with_nothing_but_torch_and_timm_it_prints_its_messages(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(WITHOUT)
    command = [sys.executable, "-m", "timmgate.worker", request(tmp_path, "accuracy", "performance").to_json()]
    environment = {**os.environ, "PYTHONPATH": f"{PACKAGE_ROOT}{os.pathsep}{tmp_path}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert [messages[0]["check"], messages[1]["stage"]] == ["accuracy", "import"]
    assert [message["result"]["status"] for message in messages if "result" in message] == ["pass", "pass"]
    times = [message["elapsed_s"] for message in messages]
    assert times == sorted(times)


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run the worker's main function in this process; its exit code and its final message."""
    monkeypatch.setattr(os, "environ", os.environ.copy())
    monkeypatch.setattr(worker_main, "keep_freed_memory", lambda: None)

    def main(asked: Request) -> tuple[int, dict]:
        with (tmp_path / "messages").open("w+b") as file, monkeypatch.context() as patch:
            patch.setattr(worker_main, "die_with_parent", lambda by: None)
            messages = Request(asked.specs, asked.run, messages=file.fileno())
            code = worker_main.main([messages.to_json()])
            file.seek(0)
            return code, json.loads(file.readlines()[-1])

    return main


def test_an_exception_is_its_final_message(tmp_path, run):
    code, message = run(request(tmp_path, "accuracy", model="test_vitt"))
    assert code == 1
    assert (message["failure"]["cause"], message["failure"]["is_ours"]) == ("UnknownModelError", False)
    assert "did you mean test_vit" in message["failure"]["message"]


def test_a_column_that_no_table_has_is_a_mistake_of_ours(tmp_path, run, monkeypatch):
    monkeypatch.setattr(accuracy, "measure", lambda spec, setup, reporter: reporter.columns(accuracyy=1))
    code, message = run(request(tmp_path, "accuracy"))
    assert (code, message["failure"]["cause"], message["failure"]["is_ours"]) == (1, "ReportError", True)


@pytest.mark.parametrize("arguments", [[], ["x"], ["{}"], ['{"specs": [], "run": {"colour": 1}}'], ["{}", "{}"], ["[]"]])
def test_what_is_no_request_is_said_to_the_person_who_typed_it(arguments, capsys):
    assert worker_main.main(arguments) == 2
    assert "usage: python -m timmgate.worker REQUEST" in capsys.readouterr().err


def test_threads_reach_torch_openmp_and_the_compilers_pool(tmp_path):
    probe = (
        "import os, sys, pathlib; from timmgate.worker import __main__ as worker;"
        "worker.set_environment(1, pathlib.Path(sys.argv[1]));"
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
    assert resource_errors.is_out_of_memory(error) is expected


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (chained(RuntimeError("backend failed"), OSError(errno.EDQUOT, "quota")), True),
        (RuntimeError("g++: fatal error: error writing to /tmp/x.s: No space left on device"), True),
        (OSError(errno.ENOENT, "no such file"), False),
        (RuntimeError("no space for this shape"), False),
    ],
)
def test_a_full_disk_is_told_from_errors_of_the_compiler(error, expected):
    assert resource_errors.is_disk_full(error) is expected
