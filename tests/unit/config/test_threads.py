"""How many threads a measurement gets where the key `threads` is a word, on machines of several shapes."""

import pytest

from timmgate.config.threads import MOST, OF_A_JOB, number
from timmgate.system import cpu_topology

SHARES = {
    (1, 8): 4, (1, 16): 8, (1, 64): 32, (1, 96): 32,
    (2, 8): 2, (2, 16): 4, (2, 64): 16, (2, 96): 24,
    (4, 8): 1, (4, 16): 2, (4, 64): 8, (4, 96): 12,
    (8, 8): 1, (8, 16): 1, (8, 64): 4, (8, 96): 6,
}  # fmt: skip
"""By devices and cores, the threads of each of two measurements on every device."""


@pytest.mark.parametrize(("devices", "cores"), SHARES)
def test_measurements_that_may_run_at_once_share_the_cores(devices, cores):
    assert number("auto", "cuda", 2, cores, lambda: devices) == SHARES[devices, cores]


@pytest.mark.parametrize("jobs_per_gpu", [1, 2, 3])
@pytest.mark.parametrize("devices", [1, 2, 4, 8])
@pytest.mark.parametrize("cores", [8, 16, 64, 96])
def test_shares_are_as_large_as_they_can_be_and_never_more_than_there_is(cores, devices, jobs_per_gpu):
    each = number("auto", "cuda", jobs_per_gpu, cores, lambda: devices)
    at_once = devices * jobs_per_gpu
    assert 1 <= each <= MOST
    assert each * at_once <= max(cores, at_once)
    assert each == MOST or (each + 1) * at_once > cores


@pytest.mark.parametrize("cores", [1, 64, None])
def test_a_cpu_is_measured_with_one_thread_and_nobody_asks_for_its_devices(cores):
    assert number("auto", "cpu", 2, cores, pytest.fail) == 1


def test_a_number_is_what_it_says_on_any_device():
    assert [number(7, device, 2, 1, pytest.fail) for device in ("cpu", "cuda")] == [7, 7]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_is_every_core_that_we_may_use_whatever_cores_a_run_has(device, monkeypatch):
    monkeypatch.setattr(cpu_topology, "available", lambda: list(range(6)))
    assert [number("all", device, 2, cores, pytest.fail) for cores in (1, 64, None)] == [6, 6, 6]


def test_a_job_of_a_cluster_does_not_share_what_it_asks_for():
    assert number("auto", "cuda", 2, None, pytest.fail) == OF_A_JOB
