"""Supervisors and fake workers on simulated GPUs: who runs where, beside whom, and what a neighbour is to blame for."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from dataclasses import replace

import pytest

import specs
from leftovers import left_behind
from timmgate import module_environment
from timmgate.core.run_options import RunOptions
from timmgate.supervisor import cell
from timmgate.supervisor.journal import Journal
from timmgate.system import device_locks, lock_files, process_tree
from timmgate.system.device_locks import SlotRequest
from timmgate.system.timing_lock import ActivityLock

SPEC = specs.spec("accuracy", device="cuda")
PERFORMANCE = specs.spec("performance", device="cuda", batch_size=8)
GPUS = ("GPU-a", "GPU-b", "GPU-c")

SUPERVISOR = """
import json, sys
from pathlib import Path
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.supervisor.cell import supervise
from timmgate.supervisor.journal import Journal

folder, spec = Path(sys.argv[1]), Spec.from_dict(json.loads(sys.argv[3]))
run = RunOptions(timeout=600, attempts=3, cache=folder / "cache", jobs_per_gpu=int(sys.argv[2]))
(outcome,) = supervise([spec], run, folder / f"{spec.model}.log", Journal(folder / f"{spec.model}.jsonl"))
(folder / f"{spec.model}.row").write_text(outcome.verdict.status)
"""


@pytest.fixture(autouse=True)
def simulated_gpus(tmp_path, monkeypatch):
    """Three GPUs, and a folder of locks of their own."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(GPUS))
    monkeypatch.setenv("TIMMGATE_LOCKS", str(tmp_path / "locks"))


@pytest.fixture
def measure(fake_worker, tmp_path, monkeypatch):
    """Supervise a fake worker that behaves as the words say, on the first GPU unless others are given."""

    def run(words="", checks=(SPEC,), jobs_per_gpu=2, gpus="GPU-a"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        fake_worker.behaviours = {"test_vit": words}
        for name, value in fake_worker.environment.items():
            monkeypatch.setenv(name, value)
        options = RunOptions(timeout=300, attempts=1, cache=tmp_path / "cache", jobs_per_gpu=jobs_per_gpu)
        return cell.supervise(checks, options, tmp_path / "worker.log", Journal(tmp_path / "attempts.jsonl"))

    return run


@pytest.fixture
def neighbour(fake_worker):
    """Somebody on the first GPU who leaves when a worker has run beside them and the next one is to have all of it."""
    lease = device_locks.lease(SlotRequest(("GPU-a",), (0, 1)))

    def leave_when_asked():
        while not (fake_worker.starts() and lock_files.is_locked("GPU-a", "reservation")) and not gone.wait(0.02):
            pass
        lease.close()

    gone = threading.Event()
    thread = threading.Thread(target=leave_when_asked)
    thread.start()
    yield lease
    gone.set()
    thread.join()


def statuses(outcomes):
    return [(outcome.verdict.status, outcome.attempt) for outcome in outcomes]


def test_a_worker_sees_the_gpu_that_its_supervisor_leased_and_the_row_says_which(measure, fake_worker):
    with contextlib.closing(device_locks.lease(SlotRequest(GPUS, (0,)))):
        (outcome,) = measure(gpus="GPU-a,GPU-b")
    (start,) = fake_worker.starts()
    assert start["gpu"] == outcome.result.columns["device_uuid"] == "GPU-b"


@pytest.mark.parametrize(("device", "devices"), [("cuda", GPUS), ("xpu", ("xpu",)), ("mps", ("mps",))])
def test_every_gpu_has_as_many_slots_as_the_policy_says_and_a_measurement_needs_one(device, devices):
    assert cell.slot_request(device, RunOptions(threads=4, jobs_per_gpu=3)) == SlotRequest(devices, (0, 1, 2))


def test_without_a_gpu_the_worker_starts_all_the_same_and_the_row_names_none(measure, fake_worker):
    (outcome,) = measure(gpus="")
    (start,) = fake_worker.starts()
    assert (start["gpu"], outcome.verdict.status, outcome.result.columns["device_uuid"]) == ("", "pass", None)


def test_what_runs_out_of_memory_beside_a_neighbour_is_tried_again_alone(measure, neighbour):
    assert statuses(measure("cramped:1@compile")) == [("pass", 2)]


@pytest.mark.parametrize(
    ("place", "status"), [("load", "OOM"), ("eager", "eager_1st_run_OOM"), ("eager2", "eager_2nd_run_OOM"), ("run", "OOM")]
)
def test_what_runs_out_of_memory_alone_too_is_out_of_memory(place, status, measure, neighbour):
    assert statuses(measure(f"memory@{place}")) == [(status, 2)]


def test_what_runs_out_of_memory_without_a_neighbour_is_not_tried_again(measure):
    assert statuses(measure("memory@compile")) == [("OOM", 1)]


def test_a_failure_beside_a_neighbour_that_is_not_about_memory_is_not_tried_again(measure, neighbour):
    assert statuses(measure("raise@compile")) == [("fail_to_run", 1)]


def test_a_timing_gets_a_smaller_batch_only_when_it_does_not_fit_alone(measure, neighbour, fake_worker):
    (outcome,) = measure("fits:5@performance.run", [PERFORMANCE])
    sizes = [outcome.result.columns["batch_size"], len(fake_worker.starts())]
    assert (outcome.verdict.status, sizes) == ("pass", [4, 4]), "with 8 images, 8 alone, 6 and 4"


def test_a_batch_that_fits_alone_is_not_made_smaller(measure, neighbour):
    (outcome,) = measure("cramped:1@performance.run", [PERFORMANCE])
    assert (outcome.verdict.status, outcome.attempt, outcome.result.columns["batch_size"]) == ("pass", 2, 8)


@pytest.mark.parametrize("column", ["reference_error", "strict_error"])
def test_a_reference_or_null_runs_without_room_beside_a_neighbour_are_tried_again(column, measure, neighbour, fake_worker):
    accuracy, performance = measure(f"without:{column}@null_runs", [SPEC, PERFORMANCE])
    assert statuses([accuracy, performance]) == [("pass", 2), ("pass", 1)]
    assert len(fake_worker.starts()) == 2
    assert column not in accuracy.result.columns


@pytest.fixture
def unkillable():
    """A worker in a slot of the first GPU that nothing ends."""
    with (
        contextlib.closing(device_locks.lease(SlotRequest(("GPU-a",), (0, 1)))) as lease,
        contextlib.closing(ActivityLock("GPU-a")) as share,
    ):
        assert share.may_run()
        process = subprocess.Popen(["sleep", "600"], pass_fds=[*lease.filenos, *share.filenos])
    with process:
        device_locks.report_unkillable([process.pid])
        yield process
        process.kill()


def test_a_gpu_that_is_held_by_what_cannot_be_killed_leaves_a_row_that_says_so(measure, unkillable, fake_worker):
    (outcome,) = measure(jobs_per_gpu=1)
    assert (outcome.verdict.status, outcome.verdict.cause) == ("infra_error", "stuck")
    assert f"process {unkillable.pid} cannot be killed and holds GPU-a" in outcome.verdict.message
    assert fake_worker.starts() == []


def test_the_other_gpus_are_used(measure, unkillable):
    (outcome,) = measure(jobs_per_gpu=1, gpus="GPU-a,GPU-b")
    assert (outcome.verdict.status, outcome.result.columns["device_uuid"]) == ("pass", "GPU-b")


def test_nothing_is_timed_beside_what_cannot_be_killed(measure, unkillable):
    accuracy, performance = measure(checks=[SPEC, PERFORMANCE])
    assert accuracy.verdict.status == "pass"
    assert (performance.verdict.status, performance.verdict.cause) == ("infra_error", "stuck")
    assert performance.result.stage == "queue"


def test_a_timing_ends_when_what_was_paused_beside_it_cannot_be_killed(measure):
    share = ActivityLock("GPU-a")

    def report_when_somebody_is_timed(process):
        while share.may_run():
            share.release()
            time.sleep(0.05)
        device_locks.report_unkillable([process.pid])

    with contextlib.closing(share), subprocess.Popen(["sleep", "600"], pass_fds=share.filenos) as process:
        thread = threading.Thread(target=report_when_somebody_is_timed, args=[process])
        thread.start()
        (outcome,) = measure("hang@performance.timing", [PERFORMANCE])
        thread.join()
        process.kill()
    assert (outcome.verdict.status, outcome.verdict.cause) == ("infra_error", "stuck")
    assert outcome.result.stage == "timing"


def test_what_a_killed_supervisor_left_behind_and_cannot_be_killed_is_not_waited_for(measure, monkeypatch):
    own = "pid:[0]"  # supervisors of other tests, whose signals do arrive, take it for that of another container
    monkeypatch.setattr(process_tree, "_namespace", lambda: own)
    with contextlib.closing(device_locks.lease(SlotRequest(("GPU-a",), (0,)))) as lease:
        leftover = left_behind(own, pass_fds=lease.filenos)
    with leftover, monkeypatch.context() as no_signals:
        no_signals.setattr(os, "kill", lambda pid, number: None)
        no_signals.setattr(process_tree, "LEFTOVERS_S", 0.1)
        (outcome,) = measure(jobs_per_gpu=1)
        no_signals.undo()
        leftover.kill()
    assert (outcome.verdict.status, outcome.verdict.cause) == ("infra_error", "stuck")


class Crowd:
    """Eight cells and their supervising processes."""

    def __init__(self, folder, worker, slots):
        self.folder, self.worker, self.slots = folder, worker, slots
        self.models = [f"model_{number}" for number in range(8)]
        self.processes = {}

    def start(self, model):
        spec = replace(SPEC, model=model).to_json()
        command = [sys.executable, "-c", SUPERVISOR, self.folder, str(self.slots), spec]
        environment = {**module_environment(), **self.worker.environment}
        self.processes[model] = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    def rows(self):
        return {path.stem: path.read_text() for path in self.folder.glob("*.row")}

    def ticking(self):
        """The last tick of each worker that lives."""
        alive = {entry["pid"] for entry in self.worker.alive()}
        return {entry["pid"]: entry for entry in self.worker.entries() if "tick" in entry and entry["pid"] in alive}


@pytest.fixture
def crowd(tmp_path, fake_worker):
    made = []

    def make(slots):
        made.append(Crowd(tmp_path, fake_worker, slots))
        return made[0]

    yield make
    for process in made[0].processes.values():
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel must kill the worker")
@pytest.mark.parametrize("slots", [1, 2])
def test_leases_never_overlap_and_everything_gets_done_although_supervisors_and_workers_are_killed(
    slots, crowd, fake_worker
):
    fake_worker.behaviours = {"*": "tick:0.5@compile", "model_5": "tick:0.3@compile flaky:1@run tick:0.2@compare"}
    jobs = crowd(slots)
    for model in jobs.models:
        jobs.start(model)
    victims, deadline = ["supervisor", "worker", "supervisor"], time.monotonic() + 300
    while len(jobs.rows()) < len(jobs.models):
        assert time.monotonic() < deadline, jobs.rows()
        if victims and (ticking := jobs.ticking()):
            pid, tick = next(iter(ticking.items()))
            supervisor, model = jobs.processes[tick["tick"].split("/")[1]], tick["tick"].split("/")[1]
            if victims.pop() == "worker":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            else:
                supervisor.kill()
                supervisor.wait()
                jobs.start(model)
        time.sleep(0.1)
    assert set(jobs.rows().values()) == {"pass"}
    assert not victims
    at_once = most_at_once(fake_worker)
    assert set(at_once) == set(GPUS), "all GPUs get used"
    assert max(at_once.values()) <= slots


def most_at_once(worker):
    """By GPU, how many workers were on it at once at most, each from the first to the last that it wrote."""
    stays = defaultdict(list)
    for entry in worker.entries():
        if "tick" in entry:
            stays[entry["gpu"], entry["pid"]].append(entry["at"])
    return {
        gpu: max(
            sum(min(other) <= time_ <= max(other) for (where, _), other in stays.items() if where == gpu)
            for (here, _), times in stays.items()
            if here == gpu
            for time_ in times
        )
        for gpu in Counter(gpu for gpu, _ in stays)
    }
