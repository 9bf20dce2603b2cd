"""Limits and counters of control groups, of both versions, as files."""

import math
import os
import subprocess
import sys

import pytest

from timmgate import module_environment
from timmgate.system import cgroups


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """Makes a machine whose groups have these files, by path, and us in the groups of these lines."""

    def make(membership: str, files: dict[str, str]) -> None:
        for name, text in files.items():
            path = tmp_path / "mounted" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "cgroup").write_text(membership)
        monkeypatch.setattr(cgroups, "MOUNTED", tmp_path / "mounted")
        monkeypatch.setattr(cgroups, "MEMBERSHIP", tmp_path / "cgroup")

    return make


def test_the_smallest_limit_of_our_group_and_of_those_around_it_counts(groups):
    groups(
        "0::/system.slice/job_7/step_0\n",
        {
            "system.slice/memory.max": "9000000000\n",
            "system.slice/job_7/memory.max": "4000000000\n",
            "system.slice/job_7/step_0/memory.max": "max\n",
            "system.slice/job_8/memory.max": "1\n",
        },
    )
    assert cgroups.memory_limit_bytes() == 4e9


def test_of_version_1_the_group_of_the_memory_controller_counts(groups):
    files = {"memory/slurm/memory.limit_in_bytes": "2000000000\n", "slurm/memory.max": "1\n"}
    groups("4:memory:/slurm\n3:cpuset:/slurm\n", files)
    assert cgroups.memory_limit_bytes() == 2e9


def test_a_group_that_is_named_as_outside_of_our_container_has_the_containers_limit(groups):
    groups("4:memory:/docker/0123\n", {"memory/memory.limit_in_bytes": "3000000000\n"})
    assert cgroups.memory_limit_bytes() == 3e9


@pytest.mark.parametrize(("membership", "files"), [("", {}), ("0::/\n", {}), ("0::/a\n", {"a/memory.max": "max\n"})])
def test_without_a_limit_it_is_infinite(membership, files, groups):
    groups(membership, files)
    assert cgroups.memory_limit_bytes() == math.inf


@pytest.mark.parametrize(
    ("membership", "file"), [("0::/job\n", "job/memory.events"), ("4:cpu,memory:/job\n", "memory/job/memory.oom_control")]
)
def test_kills_because_memory_ran_out_are_counted_by_our_group(membership, file, groups):
    groups(membership, {file: "oom 9\noom_kill 3\n"})
    assert cgroups.oom_kills() == 3


@pytest.mark.skipif(not os.access("/sys/fs/cgroup/memory/cgroup.procs", os.W_OK), reason="no group can be made")
def test_a_real_group_says_its_real_limit(tmp_path):
    group = cgroups.MOUNTED / "memory" / f"timmgate-{os.getpid()}"
    group.mkdir()
    code = "import os, sys, pathlib; pathlib.Path(sys.argv[1], 'cgroup.procs').write_text(str(os.getpid())); "
    code += "from timmgate.system import cgroups; print(cgroups.memory_limit_bytes())"
    try:
        (group / "memory.limit_in_bytes").write_text(str(1 << 30))
        printed = subprocess.check_output([sys.executable, "-c", code, group], env=module_environment(), text=True)
    finally:
        group.rmdir()
    assert printed == f"{1 << 30}\n"


@pytest.fixture
def machine_with(tmp_path):
    """Makes a folder with the /proc and /sys of a process in the groups of these lines, which have these files."""

    def make(membership: str, files: dict[str, str]):
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(membership)
        for name, text in files.items():
            path = tmp_path / "sys" / "fs" / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return make


VERSION_1 = {"cpu/a/cpu.cfs_quota_us": "150000\n", "cpu/a/cpu.cfs_period_us": "100000\n", "a/cpu.max": "1 1\n"}
QUOTAS = {
    "version 2": ("0::/a\n", {"a/cpu.max": "250000 100000\n"}, 2.5),
    "the group around it": ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "50000 100000\n"}, 0.5),
    "the smaller one": ("0::/a/b\n", {"a/b/cpu.max": "100000 100000\n", "a/cpu.max": "400000 100000\n"}, 1.0),
    "version 1": ("3:cpu,cpuacct:/a\n2:memory:/m\n", VERSION_1, 1.5),
    "no quota in version 1": ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
    "no quota in version 2": ("0::/a\n", {"a/cpu.max": "max 100000\n"}, None),
    "no groups": ("", {}, None),
}


@pytest.mark.parametrize(("membership", "files", "cores"), QUOTAS.values(), ids=QUOTAS)
def test_a_quota_of_time_is_told_in_cores(membership, files, cores, machine_with):
    assert cgroups.cpu_quota_cores(machine_with(membership, files)) == cores


def test_waits_for_a_quota_are_counted_in_our_group_and_around_it(machine_with):
    files = {"a/cpu.stat": "nr_periods 9\nnr_throttled 4\n", "a/b/cpu.stat": "nr_periods 9\nnr_throttled 3\n"}
    assert cgroups.cpu_stalls(machine_with("0::/a/b\n", files)) == 7


def test_where_nobody_counts_waits_they_are_not_known(machine_with):
    assert cgroups.cpu_stalls(machine_with("0::/a\n", {})) is None
