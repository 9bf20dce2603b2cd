"""Claims of a device, between real processes."""

import contextlib
import select
import subprocess
import sys
import tempfile
import time

import pytest

from timmgate import claims, module_environment
from timmgate.claims import HeldTime, Share

TIMING = (
    "import time; from timmgate import claims\nwith claims.quiet('{device}'):\n    print(flush=True)\n    time.sleep(600)"
)


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)


@pytest.fixture
def timing():
    """Starts a process that claims a device for itself."""
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
    with contextlib.closing(Share("cpu")) as made:
        yield made


def wait_until(condition, patience_s=10.0):
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_measurements_run_beside_each_other(share):
    with contextlib.closing(Share("cpu")) as other:
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
    first, second = timing(), timing()
    ready = [process for process in (first, second) if _said_something(process)]
    assert len(ready) == 1
    ready[0].kill()
    (other,) = {first, second} - set(ready)
    other.stdout.readline()


def _said_something(process):
    return bool(select.select([process.stdout], [], [], 2.0)[0])


def test_another_device_is_not_concerned(share, timing):
    timing("cuda").stdout.readline()
    assert share.may_run()


def test_the_folder_is_for_this_user_alone(share):
    assert claims.folder().stat().st_mode & 0o777 == 0o700


def test_a_clock_stands_still_for_the_time_that_was_held(tmp_path):
    with (tmp_path / "held").open("w+b") as file:
        held = HeldTime(file)
        start = held.clock()
        held.add(5.0)
        held.add(2.5)
        assert HeldTime(file.fileno()).seconds == 7.5
        assert held.clock() - start == pytest.approx(-7.5, abs=0.5)
