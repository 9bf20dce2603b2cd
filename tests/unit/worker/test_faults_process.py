"""Faults of the process: each in a process of its own, or raised here."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from timmgate.core.faults import FAULTS
from timmgate.worker import faults
from timmgate.worker.faults.backend import CompiledWithFault
from timmgate.worker.faults.process import InjectedError

ENDS = {
    "exit": ("code", 3),
    "kill": ("signal", signal.SIGKILL),
    "segfault": ("signal", signal.SIGSEGV),
    "hang-compile": ("alive", 0),
    "hang-run": ("alive", 0),
    "exhaust-memory": ("code", 1),
}
"""How a process ends that runs a fault, if its memory is limited and it is given up when it does nothing any more."""

CHILD = """
import json, os, resource, signal, sys, time
import torch
from timmgate.worker import faults

torch.set_num_threads(1)
torch.compile(torch.nn.ReLU(), backend="aot_eager")(torch.ones(2))  # what is slow the first time

def run(name):
    torch._dynamo.reset()
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
    with torch.no_grad():
        faults.compile_model(f"fault:{name}", torch.nn.ReLU())(torch.ones(2))

def cpu_ticks(pid):
    return sum(map(int, open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[11:13]))

def is_asleep(pid):
    return open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()[0] == "S"

ends = {}
for name in sys.argv[1:]:
    pid = os.fork()
    if not pid:
        try:
            run(name)
            os._exit(0)
        except BaseException:
            os._exit(1)
    quiet, ticks = 0, -1
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            signalled = os.WIFSIGNALED(status)
            ends[name] = ("signal", os.WTERMSIG(status)) if signalled else ("code", os.WEXITSTATUS(status))
            break
        last, ticks = ticks, cpu_ticks(pid)
        quiet = quiet + 1 if is_asleep(pid) and ticks == last else 0
        if quiet == 20:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            ends[name] = ("alive", 0)
            break
        time.sleep(0.05)
print(json.dumps(ends))
"""


def test_faults_end_a_process_as_they_say():
    scripts = str(Path(faults.__file__).parents[3])
    path = os.pathsep.join([scripts, *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *ENDS], env=environment, capture_output=True, text=True, timeout=600
    )
    assert child.returncode == 0, child.stderr
    assert {name: tuple(end) for name, end in json.loads(child.stdout).items()} == ENDS


def test_every_fault_of_the_family_is_tried():
    raising = {"raise-compile", "raise-run", "raise-backward"}
    wrong = {"wrong-first", "wrong-later", "wrong-other-batch", "wrong-at-random"}
    family = {name for name, fault in FAULTS.items() if fault.family == "process"}
    assert family == {*ENDS, *raising, *wrong, "recompile"}


@pytest.fixture(autouse=True)
def forgotten():
    torch._dynamo.reset()


def compiled(name: str, dynamic: bool | None = None) -> CompiledWithFault:
    return faults.compile_model(f"fault:{name}", nn.ReLU(), dynamic)


def test_raising_in_the_compiler():
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="this fault raises an exception"):
        compiled("raise-compile")(torch.ones(2))


def test_raising_in_the_compiled_program():
    with pytest.raises(InjectedError):
        compiled("raise-run")(torch.ones(2))


def test_raising_in_the_backward_pass_only():
    output = compiled("raise-backward")(torch.ones(2, requires_grad=True))
    with pytest.raises(InjectedError):
        output.sum().backward()


def test_wrong_from_the_second_call_on():
    model, ones = compiled("wrong-later-1.1"), torch.ones(2, 2)
    assert [model(ones)[0, 0].item() for _ in range(3)] == pytest.approx([1.0, 1.1, 1.1])


def test_wrong_in_the_first_call_alone():
    model, ones = compiled("wrong-first-1.1"), torch.ones(2, 2)
    assert [model(ones)[0, 0].item() for _ in range(3)] == pytest.approx([1.1, 1.0, 1.0])


@pytest.mark.parametrize("dynamic", [None, True])
def test_wrong_at_another_batch_size_than_the_first(dynamic):
    model = compiled("wrong-other-batch-1.1", dynamic)
    assert [model(torch.ones(size, 2))[0, 0].item() for size in (4, 2, 4, 3)] == pytest.approx([1.0, 1.1, 1.0, 1.1])


def test_different_from_call_to_call():
    model, ones = compiled("wrong-at-random"), torch.ones(2, 2)
    assert not torch.equal(model(ones), model(ones))


def test_compiling_in_every_call():
    model, ones = compiled("recompile"), torch.ones(2)
    counters.clear()
    for number in range(1, 4):
        assert torch.equal(model(ones), ones)
        assert counters["stats"]["unique_graphs"] == number
    with torch.compiler.set_stance("fail_on_recompile"), pytest.raises(RuntimeError):
        model(ones)
