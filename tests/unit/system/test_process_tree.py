"""Processes as the kernel sees them: their memory, and their end also when it does not come by itself."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

import specs
from timmgate import module_environment
from timmgate.core.protocol import Request
from timmgate.core.run_options import RunOptions
from timmgate.system import process_tree

MEGABYTE = 1_000_000
PATIENCE_S = 60.0
PARENT = """
import subprocess, sys, time
code = "import time; kept = bytearray(b'x') * 100_000_000; print(flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", code])
time.sleep(600)
"""


@pytest.fixture
def start():
    """Starts a process of Python code with a piped output; it and its children are killed afterwards."""
    started = []

    def run(code: str, **environment: str) -> subprocess.Popen:
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                start_new_session=True,
            )
        )
        return started[-1]

    yield run
    for process in started:
        for child in psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []:
            child.kill()
        process.kill()
        process.communicate()


def test_the_memory_of_a_tree_is_that_of_its_processes(start):
    parent = start(PARENT)
    parent.stdout.readline()
    assert 100 * MEGABYTE < process_tree.tree_rss_bytes(parent.pid) < 200 * MEGABYTE
    assert process_tree.tree_rss_bytes(psutil.Process(parent.pid).children()[0].pid) > 100 * MEGABYTE


def test_files_that_can_be_read_again_are_no_memory(start, tmp_path):
    (tmp_path / "file").write_bytes(bytes(100 * MEGABYTE))
    code = f"import mmap, time; file = open({str(tmp_path / 'file')!r}, 'rb'); "
    code += "seen = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ); seen.find(b'x'); print(flush=True); time.sleep(600)"
    process = start(code)
    process.stdout.readline()
    assert psutil.Process(process.pid).memory_info().rss > 100 * MEGABYTE
    assert process_tree.tree_rss_bytes(process.pid) < 50 * MEGABYTE


def test_a_process_that_is_gone_has_no_memory():
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert process_tree.tree_rss_bytes(gone.pid) == 0


@pytest.mark.parametrize(
    ("child", "program", "counted"),
    [
        ({}, b"python", 900),  # between vfork and the new program
        ({"RssAnon": 903}, b"python", 900),  # while another thread of the parent went on
        ({"RssAnon": 300}, b"python", 1200),  # forked, and with memory of its own
        ({}, b"g++", 1800),
        ({"VmSize": 4000}, b"python", 1800),
    ],
)
def test_memory_that_a_process_has_in_common_with_its_parent_counts_once(child, program, counted, tmp_path, monkeypatch):
    """A worker of 4 GB that starts a compiler would else be one of 8 GB for a moment, and be ended for it."""
    monkeypatch.setattr(process_tree, "PROC", tmp_path)
    for pid, parent, children, command, memory in ((7, 1, "8", b"python", {}), (8, 7, "", program, child)):
        folder = tmp_path / str(pid)
        (folder / "task" / str(pid)).mkdir(parents=True)
        (folder / "task" / str(pid) / "children").write_text(children)
        (folder / "cmdline").write_bytes(command)
        about = {"VmSize": 9000, "RssAnon": 900, "RssShmem": 0, **memory}
        lines = [f"PPid:\t{parent}", *(f"{name}:\t{size} kB" for name, size in about.items())]
        (folder / "status").write_text("\n".join(lines))
    assert process_tree.tree_rss_bytes(7) == counted << 10


def test_leftovers_are_known_by_their_supervisor_wherever_they_have_gone(start, monkeypatch):
    # Supervisors of tests beside this one kill leftovers of the machine too: these are of a container of their own.
    monkeypatch.setattr(process_tree, "_namespace", lambda: f"pid:[test-{os.getpid()}]")
    gone = subprocess.Popen(["true"])
    code = "import os, time; os.fork() or os.setsid(); time.sleep(600)"
    _, started, namespace = process_tree.mark().split()
    daemon = start(code, TIMMGATE_SUPERVISOR=f"{gone.pid} 1 {namespace}")  # which is a zombie until we wait for it
    reused = start(code, TIMMGATE_SUPERVISOR=f"{os.getpid()} {int(started) - 1} {namespace}")
    others = [
        start("import time; time.sleep(600)", TIMMGATE_SUPERVISOR=process_tree.mark()),
        start("import time; time.sleep(600)", TIMMGATE_SUPERVISOR=f"{gone.pid} 1 pid:[1]"),  # of another container
    ]
    deadline = time.monotonic() + PATIENCE_S
    while not all(psutil.Process(process.pid).children() for process in (daemon, reused)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    leftovers = {daemon.pid, reused.pid, *(psutil.Process(process.pid).children()[0].pid for process in (daemon, reused))}
    assert not leftovers & set(process_tree.kill_leftovers())
    assert [process_tree.start_ticks(pid) for pid in leftovers] == [None] * 4
    assert daemon.wait() == reused.wait() == -9
    gone.wait()
    assert [other.poll() for other in others] == [None, None]


def test_a_process_that_cannot_be_killed_is_left_to_itself_and_named(start, monkeypatch):
    """As one that hangs in a driver: here the signals do not reach it."""
    process = start("import time; print(flush=True); time.sleep(600)")
    process.stdout.readline()
    others = {each for each in process_tree.descendants() if each[0] != process.pid}
    with monkeypatch.context() as no_signals:
        no_signals.setattr(os, "killpg", lambda group, number: None)
        no_signals.setattr(process_tree, "UNKILLABLE_S", 0.3)
        assert process_tree.kill_all(process, others) == (process.pid,)
    assert process.poll() is None
    assert process_tree.kill_all(process, others) == ()
    assert process.returncode == -9


# --- accidents that one mechanism each is for

CRASH = """
import subprocess, sys
from timmgate.system import process_tree

{subreaper}
code = "import os, signal, subprocess, sys; daemon = subprocess.Popen(['sleep', '600'], start_new_session=True); "
code += "print(daemon.pid, flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
worker = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
daemon = int(worker.stdout.readline())
worker.wait()
print(process_tree.kill_all(worker, set()), process_tree.start_ticks(daemon) is None, daemon)
"""
"""A supervisor whose worker crashes and leaves a process in a session of its own."""


@pytest.mark.parametrize("is_subreaper", [True, False])
def test_a_subreaper_finds_what_a_crashed_worker_left_in_another_session(is_subreaper):
    code = CRASH.format(subreaper="process_tree.become_subreaper()" if is_subreaper else "")
    command = [sys.executable, "-c", code]
    printed = subprocess.check_output(command, env=module_environment(), text=True, stderr=subprocess.DEVNULL)
    left, is_gone, daemon = printed.rsplit(maxsplit=2)
    if not is_subreaper:
        os.kill(int(daemon), signal.SIGKILL)
    assert (left, is_gone) == ("()", str(is_subreaper))


SUPERVISOR = """
import json, os, subprocess, sys, time
reading, writing = os.pipe()
request = {**json.loads(sys.argv[1]), "messages": writing}
worker = subprocess.Popen([sys.executable, "-m", "timmgate.worker", json.dumps(request)], pass_fds=[writing])
with os.fdopen(reading) as messages:
    print(worker.pid, messages.readline().strip(), flush=True)
    time.sleep(600)
"""
"""Starts a worker and waits after its first message, which it sends before it imports torch."""


def test_a_worker_is_killed_with_its_supervisor(tmp_path):
    process_tree.become_subreaper()  # so that we learn what becomes of the worker
    request = Request([specs.spec(options={"backend": "eager"})], RunOptions(cache=tmp_path)).to_json()
    command = [sys.executable, "-c", SUPERVISOR, request]
    with subprocess.Popen(command, env=module_environment(), stdout=subprocess.PIPE, text=True) as supervisor:
        worker, message = supervisor.stdout.readline().split(maxsplit=1)
        supervisor.kill()
    assert "accuracy" in message
    _, status = os.waitpid(int(worker), 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def test_a_job_whose_snakemake_ended_before_it_could_ask_the_kernel_does_not_begin():
    gone = subprocess.Popen(["true"])
    gone.wait()
    code = "import signal; from timmgate.system.process_tree import die_with_run; die_with_run(signal.SIGTERM)"
    for run, expected in ((os.getpid(), 0), (gone.pid, 1), ("", 0)):
        environment = {**module_environment(), process_tree.RUN: str(run)}
        done = subprocess.run([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
        assert done.returncode == expected
