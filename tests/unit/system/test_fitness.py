"""What would make timings worse, on machines and GPUs of several kinds."""

import os
import time

import pytest

from timmgate.report import doctor
from timmgate.system import fitness, machine
from timmgate.system.fitness import Gpu
from timmgate.system.machine import Facts

FINE = {
    **{"cores": 4, "quota_cores": None, "governor": "performance", "turbo": False, "smt": False},
    **{"counters": True, "swap_used_bytes": 0},
}


def found(threads=1, physical=4, busy=(), **facts):
    known = Facts(**{**FINE, **facts})
    parts = [fitness.of_clocks(known), fitness.of_cores(known, threads, physical), fitness.of_others(known, busy)]
    return [finding.what for part in parts for finding in part]


def test_of_a_machine_that_is_fit_there_is_nothing_to_say():
    assert found() == []
    assert doctor.text([], Facts(**FINE)) == doctor.FIT


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"governor": "powersave"}, "the governor is powersave"),
        ({"turbo": True}, "turbo is on"),
        ({"quota_cores": 1.5}, "the time of 1.5 cores, but shows 4"),
        ({"smt": True, "threads": 4, "physical": 2}, "4 threads, but there are 2 physical cores"),
        ({"counters": False}, "counters cannot be read"),
        ({"swap_used_bytes": 3 * 10**9}, "3.0 GB of memory are swapped out"),
        ({"busy": [("cc1plus", 7, 0.9), ("sshd", 8, 0.01)]}, "other processes use 0.9 cores: cc1plus (7) 0.9"),
        ({"busy": [(str(n), n, 1.0) for n in range(5)]}, "use 5.0 cores: 0 (0) 1.0, 1 (1) 1.0, 2 (2) 1.0 and 2 more"),
    ],
)
def test_each_thing_that_makes_timings_worse_is_one_finding(facts, words):
    (what,) = found(**facts)
    assert words in what


@pytest.mark.parametrize(
    "facts",
    [
        dict.fromkeys(("governor", "turbo", "smt", "counters", "swap_used_bytes")),
        {"quota_cores": 4.0},
        {"smt": True, "threads": 2, "physical": 2},
        {"smt": False, "threads": 9},
        {"busy": [("sshd", 8, 0.01)]},
    ],
    ids=["nothing known", "quota of all cores", "a thread for each core", "no siblings", "next to idle"],
)
def test_what_does_not_matter_is_no_finding(facts):
    assert found(**facts) == []


def test_heat_is_said_of_now_and_of_before():
    hot, before = fitness.of_heat([("x86_pkg_temp", 96.4, 100.0)], throttles=12)
    assert hot.what == "x86_pkg_temp has 96 °C and is slowed down at 100"
    assert "12 times" in before.what
    assert list(fitness.of_heat([], throttles=0)) == list(fitness.of_heat([], throttles=None)) == []


def test_a_process_that_works_beside_us_is_found(tmp_path):
    """Its time is in files, which change between two looks."""
    stat = tmp_path / "proc" / "7" / "stat"
    stat.parent.mkdir(parents=True)
    ticks = os.sysconf("SC_CLK_TCK")

    def look(seconds):
        assert seconds == fitness.LOOK_S
        stat.write_text(f"7 (busy) S {'0 ' * 10}{2 * ticks} 0 0 0")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "sleep", look)
        stat.write_text(f"7 (busy) S {'0 ' * 10}{ticks} 0 0 0")
        (finding,) = fitness.findings(1, tmp_path)
    assert finding.what == "other processes use 1.0 cores: busy (7) 1.0"


SMI = """\
#!/bin/sh
case "$1" in
--query-gpu=uuid,*) echo 'GPU-a, Not Active, Not Active, Not Active'
                    echo 'GPU-b, Active, Not Active, Active'
                    echo 'GPU-c, [N/A], [N/A], [N/A]' ;;
--query-compute-apps=gpu_uuid,pid) echo 'GPU-a, 41'; echo 'GPU-c, 43'; echo 'GPU-a, 42' ;;
*) exit 6 ;;
esac
"""


@pytest.fixture
def smi(tmp_path, monkeypatch):
    """Puts a stand-in for nvidia-smi onto the path."""

    def put(script):
        (tmp_path / "nvidia-smi").write_text(script)
        (tmp_path / "nvidia-smi").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    return put


def test_gpus_tell_why_they_are_slow_and_who_uses_them(smi):
    smi(SMI)
    gpus = fitness.ask_gpus(["GPU-a", "GPU-b"])
    assert gpus == [Gpu("GPU-a", (), (41, 42)), Gpu("GPU-b", ("hw_slowdown", "sw_power_cap"), ())]
    said = [finding.what for finding in fitness.of_gpus(["GPU-a", "GPU-b", "MIG-c"], gpus)]
    assert said == [
        "clocks and processes are not known of MIG-c",
        "GPU-a: other processes use it: 41, 42",
        "GPU-b: its clock is low: the hardware slows it down",
        "GPU-b: its clock is low: its power is capped",
    ]


@pytest.mark.parametrize(("uuids", "has_amd", "findings"), [([], False, 1), ([], True, 0), (["GPU-a"], False, 0)])
def test_cuda_without_a_gpu_is_told(uuids, has_amd, findings):
    assert len([*fitness.of_cuda(uuids, has_amd)]) == findings


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 9\n", "#!/bin/sh\n", "no program"])
def test_a_driver_that_does_not_answer_has_no_gpus(script, smi):
    smi(script)
    assert fitness.ask_gpus(["GPU-a"]) == []


def test_the_text_has_a_way_out_for_each_finding_and_says_what_is_not_known():
    known = Facts(**{**FINE, "governor": None, "counters": None})
    text = doctor.text([fitness.Finding("the disk is loud", "cover your ears")], known)
    assert text == "the disk is loud\n    cover your ears\nthis machine does not tell: governor, counters\n"


def test_facts_of_this_machine_can_be_asked_for():
    assert machine.facts().cores == len(os.sched_getaffinity(0))
