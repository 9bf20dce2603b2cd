"""What is known of machines of several kinds, from files as their kernels show them."""

from dataclasses import replace
from pathlib import Path

import pytest

from timmgate.system import machine
from timmgate.system.machine import Activity

CPU = "sys/devices/system/cpu"


@pytest.fixture
def kernel(tmp_path):
    """Makes a folder with /proc and /sys in it that have these files."""

    def make(files: dict[str, str]) -> Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
        return tmp_path

    return make


def governors(*words):
    return {f"{CPU}/cpu{number}/cpufreq/scaling_governor": word for number, word in enumerate(words)}


def test_of_a_machine_that_tells_nothing_nothing_is_known(kernel):
    facts = machine.facts(kernel({}))
    assert facts.cores >= 1
    assert {value for name, value in vars(facts).items() if name != "cores"} == {None}
    assert machine.hot_zones(kernel({})) == []
    assert (machine.throttles(kernel({})), machine.swapped_pages(kernel({}))) == (None, None)
    assert machine.busy_s([0], kernel({})) is None


def test_the_governor_is_named_once_if_all_cores_have_the_same(kernel):
    assert machine.governor(kernel(governors("performance", "performance"))) == "performance"
    assert machine.governor(kernel(governors("powersave", "performance"))) == "performance, powersave"


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("intel_pstate/no_turbo", "0", True),
        ("intel_pstate/no_turbo", "1", False),
        ("cpufreq/boost", "1", True),
        ("cpufreq/boost", "0", False),
    ],
)
def test_turbo_is_told_by_either_driver_each_in_its_own_way(file, text, expected, kernel):
    assert machine.turbo(kernel({f"{CPU}/{file}": text})) is expected


@pytest.mark.parametrize(
    ("device", "expected"), [("cpu", True), ("cpu_core", True), ("armv8_pmuv3_0", True), ("software", False)]
)
def test_counters_are_those_of_the_processor(device, expected, kernel):
    assert machine.has_counters(kernel({f"sys/bus/event_source/devices/{device}/type": "4"})) is expected


def test_swap_in_use_is_what_is_not_free(kernel):
    lines = "MemTotal: 100 kB\nSwapTotal:   3000 kB\nSwapFree:  1000 kB\nHugePages_Total:   0"
    assert machine.swap_used_bytes(kernel({"proc/meminfo": lines})) == 2000 * 1024


@pytest.mark.parametrize(("temperature", "is_hot"), [("60000", False), ("89000", False), ("91000", True), ("101000", True)])
def test_a_zone_is_hot_near_the_lowest_limit_that_slows_it_down(temperature, is_hot, kernel):
    zone = "sys/class/thermal/thermal_zone0"
    trips = {0: ("active", "50000"), 1: ("critical", "110000"), 2: ("passive", "100000"), 3: ("hot", "-274000")}
    files = {f"{zone}/trip_point_{number}_type": kind for number, (kind, _) in trips.items()}
    files |= {f"{zone}/trip_point_{number}_temp": limit for number, (_, limit) in trips.items()}
    found = machine.hot_zones(kernel({**files, f"{zone}/temp": temperature, f"{zone}/type": "x86_pkg_temp"}))
    assert found == ([("x86_pkg_temp", int(temperature) / 1000, 100.0)] if is_hot else [])


def test_a_zone_without_a_temperature_or_a_limit_is_not_hot(kernel):
    zones = {"sys/class/thermal/thermal_zone0/temp": "99000", "sys/class/thermal/thermal_zone1/trip_point_0_type": "hot"}
    assert machine.hot_zones(kernel(zones)) == []


def test_busy_time_is_that_of_our_cores_without_idling_and_with_what_a_hypervisor_took(kernel, monkeypatch):
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 100)
    cores = {"cpu ": (9,) * 10, "cpu0": (100, 10, 20, 500, 70, 3, 7, 60, 40, 5), "cpu1": (1000,) * 10, "cpu10": (50,) * 10}
    text = "\n".join(f"{name} {' '.join(map(str, times))}" for name, times in cores.items())
    assert machine.busy_s([0], kernel({"proc/stat": text})) == pytest.approx(2.0)
    assert machine.busy_s([0, 10], kernel({})) == pytest.approx(2.0 + 3.0)


def test_throttles_and_swapped_pages_are_summed_up(kernel):
    files = {f"{CPU}/cpu{core}/thermal_throttle/core_throttle_count": str(count) for core, count in enumerate((2, 0, 5))}
    root = kernel({**files, "proc/vmstat": "pgpgin 1\npswpin 30\npswpout 12\npswpout_x 9"})
    assert (machine.throttles(root), machine.swapped_pages(root)) == (7, 42)


def test_processes_are_named_also_with_spaces_and_brackets_in_their_names(kernel, monkeypatch):
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 100)
    stat = "7 (a ) (b) S 1 7 7 0 -1 0 0 0 0 0 150 50 0 0 20 0 1 0 0"
    assert machine.process_times(kernel({"proc/7/stat": stat, "proc/8/status": "gone", "proc/self/stat": stat})) == {
        7: ("a ) (b", 2.0)
    }


def test_the_busiest_come_first_and_ours_not_at_all():
    before = {1: ("init", 5.0), 2: ("ours", 1.0), 3: ("browser", 10.0), 4: ("compiler", 0.0)}
    after = {1: ("init", 5.0), 2: ("ours", 3.0), 3: ("browser", 10.5), 4: ("compiler", 4.0), 5: ("new", 9.0)}
    assert machine.busiest(before, after, 2.0, [2]) == [("compiler", 4, 2.0), ("browser", 3, 0.25)]


BEFORE = Activity(at_s=10.0, busy_s=100.0, own_s=3.0, throttles=1, stalls=0, swapped_pages=None)


def test_what_others_used_is_what_was_busy_and_not_ours():
    after = Activity(at_s=14.0, busy_s=109.0, own_s=6.0, throttles=4, stalls=0, swapped_pages=7)
    assert machine.disturbance(BEFORE, after) == {
        "machine_busy_cores": 1.5,
        "machine_throttles": 3,
        "machine_stalls": 0,
        "machine_swapped_pages": None,
    }


def test_less_than_nothing_is_nothing_and_what_is_not_told_is_not_known():
    assert machine.disturbance(BEFORE, replace(BEFORE, at_s=11.0, own_s=3.1))["machine_busy_cores"] == 0.0
    assert machine.disturbance(BEFORE, replace(BEFORE, at_s=11.0, busy_s=None))["machine_busy_cores"] is None
