"""Leases of a device and its locks, between real processes."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time

import pytest

from timmgate import module_environment
from timmgate.system import device_locks, lock_files, process_tree, timing_lock
from timmgate.system.device_locks import SlotRequest
from timmgate.system.timing_lock import ActivityLock, PausedTime

PATIENCE_S = 60.0
TIMING = (
    "import time; from timmgate.system import timing_lock\nwith timing_lock.exclusive_device('{device}'):\n"
    "    print(flush=True)\n    time.sleep(600)"
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TIMMGATE_LOCKS", str(tmp_path / "locks"))


@pytest.fixture
def timing():
    """Starts a process that has a device alone."""
    with contextlib.ExitStack() as stack:

        def start(device="cpu"):
            process = subprocess.Popen(
                [sys.executable, "-c", TIMING.format(device=device)], env=module_environment(), stdout=subprocess.PIPE
            )
            stack.callback(process.communicate)
            stack.callback(process.kill)
            return process

        yield start


@pytest.fixture
def share():
    with contextlib.closing(ActivityLock("cpu")) as made:
        yield made


def wait_until(condition, patience_s=PATIENCE_S):
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_measurements_run_beside_each_other(share):
    with contextlib.closing(ActivityLock("cpu")) as other:
        assert share.may_run() and other.may_run()


def test_a_timing_waits_until_all_others_have_given_up_their_share(share, timing):
    assert share.may_run()
    process = timing()
    wait_until(lambda: not share.may_run())
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)  # it says nothing as long as we have not released
    share.release()
    process.stdout.readline()
    assert not share.may_run()


@pytest.mark.parametrize("signal", ["kill", "terminate"])
def test_the_kernel_gives_the_device_back_when_a_timing_dies(share, timing, signal):
    process = timing()
    process.stdout.readline()
    assert not share.may_run()
    getattr(process, signal)()
    process.wait()
    assert share.may_run()


def test_two_timings_take_turns(timing):
    processes = {process.stdout: process for process in (timing(), timing())}
    (first, *others), _, _ = select.select(processes, [], [])
    assert others == []
    (second,) = processes.keys() - {first}
    assert not select.select([second], [], [], 0.5)[0]
    processes[first].kill()
    assert second.readline()


def test_another_device_is_not_concerned(share, timing):
    timing("cuda").stdout.readline()
    assert share.may_run()


def test_two_parts_of_a_device_are_timed_at_once(timing):
    for process in (timing("cpu:0"), timing("cpu:1")):
        assert process.stdout.readline()


def test_what_is_timed_on_one_part_pauses_only_that_part(timing):
    with contextlib.closing(ActivityLock("cpu:0")) as beside, contextlib.closing(ActivityLock("cpu:1")) as elsewhere:
        assert beside.may_run() and elsewhere.may_run()
        process = timing("cpu:0")
        wait_until(lambda: not beside.may_run())
        beside.release()
        assert process.stdout.readline()
        assert elsewhere.may_run() and not beside.may_run()


def test_what_is_timed_on_the_whole_waits_for_every_part_and_pauses_all(timing):
    part = timing("cpu:0")
    part.stdout.readline()
    with contextlib.closing(ActivityLock("cpu:1")) as elsewhere:
        assert elsewhere.may_run()
        whole = timing("cpu")
        wait_until(lambda: not elsewhere.may_run())
        elsewhere.release()
        assert not select.select([whole.stdout], [], [], 0.3)[0], "a part is being timed"
        part.kill()
        assert whole.stdout.readline()
        assert not elsewhere.may_run()


def test_who_waits_for_a_part_does_not_keep_the_whole_waiting(timing):
    process = timing("cpu:0")
    process.stdout.readline()
    with contextlib.closing(ActivityLock("cpu:0")) as waiting:
        assert not waiting.may_run()
        process.kill()
        process.wait()
        with lock_files.locked("cpu", "activity"):
            assert not waiting.may_run()


def test_without_timing_on_the_whole_there_is_none_on_a_part(timing):
    with timing_lock.no_timing("cpu"):
        process = timing("cpu:0")
        assert not select.select([process.stdout], [], [], 0.3)[0]
    assert process.stdout.readline()


def test_the_folder_is_for_this_user_alone(share):
    assert lock_files.folder().stat().st_mode & 0o777 == 0o700


def test_a_clock_stands_still_for_the_time_of_a_pause(tmp_path):
    with (tmp_path / "paused").open("w+b") as file:
        paused = PausedTime(file)
        start = paused.clock()
        paused.add(5.0)
        paused.add(2.5)
        assert PausedTime(file.fileno()).seconds == 7.5
        assert paused.clock() - start == pytest.approx(-7.5, abs=5)


GPUS = ("GPU-a", "GPU-b", "GPU-c")

LEASING = """
import subprocess, sys, time
from timmgate.system import device_locks
lease = device_locks.lease(device_locks.SlotRequest(("GPU-a",), slots=(0,)))
child = subprocess.Popen(["sleep", "600"], pass_fds=lease.filenos)
print(child.pid, flush=True)
time.sleep(600)
"""
"""A supervisor with a lease, and a worker that inherits it and that no signal of the kernel ends with its supervisor."""


@pytest.fixture
def lease():
    """Makes leases, which end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda *given, **requested: stack.enter_context(
            contextlib.closing(device_locks.lease(SlotRequest(*given, **requested)))
        )


def lease_later(lease, *given, **requested):
    """Start to wait for a lease in a thread; the list that it will be in, and the thread."""
    got = []
    thread = threading.Thread(target=lambda: got.append(lease(*given, **requested)), daemon=True)
    thread.start()
    return got, thread


def is_free(device, name):
    return not lock_files.is_locked(device, name)


def test_a_gpu_is_shared_only_when_all_are_in_use(lease):
    assert [lease(GPUS, slots=(0, 1)).device for _ in range(6)] == [*GPUS, *GPUS]


def test_a_lease_that_ends_makes_room_on_its_gpu(lease):
    made = [lease(GPUS, slots=(0,)) for _ in range(3)]
    made[1].close()
    assert lease(GPUS, slots=(0,)).device == "GPU-b"


def test_a_request_waits_while_every_slot_is_taken(lease):
    first, second = lease(("GPU-a",), slots=(0, 1)), lease(("GPU-a",), slots=(0, 1))
    got, thread = lease_later(lease, ("GPU-a",), slots=(0, 1))
    thread.join(0.5)
    assert got == []
    second.close()
    thread.join(PATIENCE_S)
    assert got[0].device == first.device


def test_a_long_wait_says_whom_it_is_for_and_whether_that_is_stopped(lease, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(device_locks, "TELL_AFTER_S", 0.0)
    first = lease(("GPU-a",), slots=(0,))
    with subprocess.Popen(["sleep", "600"], pass_fds=first.filenos, cwd=tmp_path, env={}) as holder:
        try:
            holder.send_signal(signal.SIGSTOP)
            wait_until(lambda: process_tree.described(holder.pid).endswith("(stopped)"))
            first.close()
            got, waiting = lease_later(lease, ("GPU-a",), slots=(0,))
            told = f"waited for 0 minutes: GPU-a is in use by process {holder.pid} in {tmp_path} (stopped)"
            wait_until(lambda: told in capfd.readouterr().err)
        finally:
            holder.kill()
    waiting.join(PATIENCE_S)
    assert got


def test_the_whole_gpu_is_had_when_all_others_have_left_and_nobody_comes_in_between(lease):
    neighbour = lease(("GPU-a",), slots=(0, 1))
    whole, waiting = lease_later(lease, ("GPU-a",), slots=(0, 1), count=2)
    wait_until(lambda: not is_free("GPU-a", "reservation"))
    newcomer, coming = lease_later(lease, ("GPU-a",), slots=(0, 1))
    coming.join(0.5)
    assert whole == newcomer == []
    neighbour.close()
    waiting.join(PATIENCE_S)
    coming.join(0.5)
    assert newcomer == [], "both slots belong to the one that requested all of it"
    assert not whole[0].was_shared()
    whole[0].close()
    coming.join(PATIENCE_S)
    assert newcomer[0].device == "GPU-a"


def test_two_that_request_the_whole_gpu_get_it_one_after_the_other(lease):
    neighbours = [lease(("GPU-a",), slots=(0, 1)) for _ in range(2)]
    waiting = [lease_later(lease, ("GPU-a",), slots=(0, 1), count=2) for _ in range(2)]
    for neighbour in neighbours:
        neighbour.close()
    wait_until(lambda: sum(len(got) for got, _ in waiting) == 1)
    next(got for got, _ in waiting if got)[0].close()
    wait_until(lambda: sum(len(got) for got, _ in waiting) == 2)


def test_the_whole_of_the_emptiest_gpu_is_chosen(lease):
    lease(("GPU-a",), slots=(0, 1))
    assert lease(("GPU-a", "GPU-b"), slots=(0, 1), count=2).device == "GPU-b"


def test_a_neighbour_is_known_whether_it_was_there_before_came_later_or_has_gone(lease):
    first = lease(("GPU-a",), slots=(0, 1))
    assert not first.was_shared()
    second = lease(("GPU-a",), slots=(0, 1))
    assert first.was_shared() and second.was_shared()
    second.close()
    assert first.was_shared()
    first.close()
    time.sleep(0.05)  # more than a tick of the kernel's clock
    assert not lease(("GPU-a",), slots=(0, 1)).was_shared()


def test_a_slot_that_nobody_ever_took_is_no_neighbour_however_coarse_the_clock(lease):
    alone = lease(("GPU-a",), slots=(0, 1))
    for path in lock_files.folder().iterdir():
        os.utime(path, ns=(10**18, 10**18))  # all in one tick
    assert not alone.was_shared()
    lease(("GPU-a",), slots=(0, 1)).close()
    assert alone.was_shared()


def test_a_lease_outlives_a_killed_supervisor_until_its_worker_is_gone_too(lease):
    command = [sys.executable, "-c", LEASING]
    with subprocess.Popen(command, env=module_environment(), stdout=subprocess.PIPE, text=True) as supervisor:
        worker = int(supervisor.stdout.readline())
        supervisor.kill()
    try:
        got, thread = lease_later(lease, ("GPU-a",), slots=(0,))
        thread.join(0.5)
        assert got == []
    finally:
        os.kill(worker, signal.SIGKILL)
    thread.join(PATIENCE_S)
    assert got[0].device == "GPU-a"


def test_a_timing_waits_for_a_worker_that_outlives_its_supervisor(share, timing):
    assert share.may_run()
    worker = subprocess.Popen(["sleep", "600"], pass_fds=share.filenos)
    try:
        share.close()
        process = timing()
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
    finally:
        worker.kill()
        worker.wait()
    process.stdout.readline()


def test_timings_on_two_gpus_do_not_wait_for_each_other(timing):
    for gpu in GPUS[:2]:
        timing(gpu).stdout.readline()


def test_the_name_of_a_device_is_no_path(lease):
    assert lease(("MIG-GPU-1234/5/0",), slots=(0,)).device == "MIG-GPU-1234/5/0"
    assert all(path.is_file() for path in lock_files.folder().iterdir())


CPU = ("cpu",)


def test_the_slots_of_a_lease_are_the_first_that_are_free_in_the_order_that_is_requested(lease):
    assert lease(CPU, slots=(0, 2, 1, 3), count=2).slots == [0, 2]
    assert lease(CPU, slots=(0, 2, 1, 3)).slots == [1]


def test_leases_of_several_slots_do_not_overlap_and_who_waits_for_them_is_not_overtaken(lease):
    one, two = (lease(CPU, slots=(0, 1, 2, 3), count=count) for count in (1, 2))
    large, waiting = lease_later(lease, CPU, slots=(0, 1, 2, 3), count=3)
    wait_until(lambda: not is_free("cpu", "reservation"))
    small, coming = lease_later(lease, CPU, slots=(0, 1, 2, 3))
    one.close()  # the small one could have it at once
    coming.join(0.5)
    assert large == small == []
    two.close()
    waiting.join(PATIENCE_S)
    coming.join(PATIENCE_S)
    assert sorted(large[0].slots + small[0].slots) == [0, 1, 2, 3]


@pytest.fixture
def unkillable(lease):
    """Makes a lease whose worker, a process to end, cannot be killed."""
    with contextlib.ExitStack() as stack:

        def make(*given, **requested):
            made = lease(*given, **requested)
            worker = stack.enter_context(subprocess.Popen(["sleep", "600"], pass_fds=made.filenos))
            stack.callback(worker.kill)
            made.close()
            device_locks.report_unkillable([worker.pid])
            return worker

        yield make


def test_a_gpu_whose_slots_are_held_by_what_cannot_be_killed_is_passed_over(lease, unkillable):
    unkillable(GPUS, slots=(0,))
    assert lease(GPUS, slots=(0,)).device == "GPU-b"


def test_nobody_waits_for_what_cannot_be_killed(lease, unkillable):
    worker = unkillable(("GPU-a",), slots=(0, 1))
    assert lease(("GPU-a",), slots=(0, 1)).slots == [1], "the other slot can be had"
    with pytest.raises(device_locks.StuckError, match=rf"process {worker.pid} cannot be killed and holds GPU-a; .*"):
        lease(("GPU-a",), slots=(0, 1), count=2)
    with pytest.raises(device_locks.StuckError):
        lease(("GPU-a",), slots=(0,))


def wait_beside_an_unkillable(lease, devices):
    """Wait for a whole GPU beside a worker on the first one, with its reservation, while that cannot be killed."""
    first = lease(devices, slots=(0, 1))
    waiting = LEASING.replace("""("GPU-a",), slots=(0,)""", f"{devices}, slots=(0, 1), count=2")
    process = subprocess.Popen(
        [sys.executable, "-c", waiting], env=module_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    wait_until(lambda: not is_free("GPU-a", "reservation"))
    return first, process


def test_who_waits_already_is_told_too(lease):
    first, waiting = wait_beside_an_unkillable(lease, ("GPU-a",))
    with subprocess.Popen(["sleep", "600"], pass_fds=first.filenos) as worker:
        device_locks.report_unkillable([worker.pid])
        _, printed = waiting.communicate()
        worker.kill()
    assert b"StuckError" in printed
    assert is_free("GPU-a", "reservation")


def test_who_waits_already_turns_to_another_gpu(lease):
    other = lease(("GPU-b",), slots=(0, 1))
    other = lease(("GPU-b",), slots=(0, 1)), other  # so that the first one is the emptiest
    first, waiting = wait_beside_an_unkillable(lease, ("GPU-a", "GPU-b"))
    with subprocess.Popen(["sleep", "600"], pass_fds=first.filenos) as worker:
        device_locks.report_unkillable([worker.pid])
        for each in other:
            each.close()
        child = int(waiting.stdout.readline())
        assert not is_free("GPU-b", "slot0")
        for pid in (child, waiting.pid, worker.pid):
            os.kill(pid, signal.SIGKILL)
        waiting.communicate()


def test_what_holds_nothing_is_in_nobodys_way(lease):
    with subprocess.Popen(["sleep", "600"]) as harmless:
        device_locks.report_unkillable([harmless.pid])
        assert device_locks.stuck("GPU-a") == {}
        harmless.kill()


def test_what_could_not_be_killed_and_ends_after_all_is_forgotten(lease, unkillable):
    worker = unkillable(("GPU-a",), slots=(0,))
    assert device_locks.stuck("GPU-a") == {"slot0": worker.pid}
    worker.kill()
    worker.wait()
    assert device_locks.stuck("GPU-a") == {}
    device_locks.report_unkillable([worker.pid])
    assert lease(("GPU-a",), slots=(0,)).slots == [0]


def test_others_go_on_when_what_cannot_be_killed_was_being_timed(share, timing):
    process = timing()
    process.stdout.readline()
    assert not share.may_run()
    device_locks.report_unkillable([process.pid])
    assert share.may_run()
    assert share.is_stuck()
