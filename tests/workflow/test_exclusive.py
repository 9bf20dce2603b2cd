"""While one cell is timed every other one is paused, and they go on beside each other for the rest."""

from collections import defaultdict
from itertools import combinations, pairwise

import pytest

from timmgate.system import cpu_topology

BUSY = "tick:0.4@compile tick:0.2@performance.warmup tick:0.3@performance.timing"


@pytest.fixture(scope="module")
def ticks(new_project, tmp_path_factory):
    """By cell and place, the times at which a worker ran there."""
    project = new_project(tmp_path_factory.mktemp("exclusive"), config={"checks": "accuracy,performance"})
    project.worker.behaviours = {"*": BUSY}
    project.run(modes="inference,training", models="test_vit,test_resnet")
    assert set(project.statuses(check="performance").values()) == {"pass"}
    times = defaultdict(list)
    for entry in project.worker.entries():
        if "tick" in entry:
            times[entry["tick"], entry["place"]].append(entry["at"])
    return times


def test_nothing_else_runs_while_a_cell_is_timed(ticks):
    timed = [cell for cell, place in ticks if place == "performance.timing"]
    assert len(timed) == 4
    for cell in timed:
        window = ticks[cell, "performance.timing"][2:]  # the first thing that a window is used for is the control kernel
        others = [time for (other, _), times in ticks.items() if other != cell for time in times]
        assert [time for time in others if min(window) < time < max(window)] == []


def test_on_a_cpu_no_more_cells_run_at_once_than_there_are_cores(new_project, tmp_path):
    project = new_project(tmp_path, executor=("--cores", "8"))
    project.worker.behaviours = {"*": "tick:0.5@compile"}
    project.run(modes="inference", models="test_vit,test_resnet,test_convnext", threads=len(cpu_topology.available()))
    times = defaultdict(list)
    for entry in project.worker.entries():
        if "tick" in entry:
            times[entry["tick"]].append(entry["at"])
    assert len(times) == 3
    assert all(first[-1] < second[0] for first, second in pairwise(sorted(times.values())))


def test_compilation_goes_on_beside_other_cells(ticks):
    spans = [(min(times), max(times)) for (_, place), times in ticks.items() if place == "compile"]
    assert any(one[0] < other[1] and other[0] < one[1] for one, other in combinations(spans, 2))


def test_a_cell_that_was_paused_says_for_how_long_and_it_does_not_count(new_project, tmp_path):
    project = new_project(tmp_path, config={"checks": "accuracy,performance", "timeout": 10})
    project.worker.behaviours = {
        "test_vit": "meet:2@load sleep:8@performance.timing",
        "test_resnet": "meet:2@load tick:2@compile",
    }
    project.run(modes="inference", models="test_vit,test_resnet")
    rows = {row["model"]: row for row in project.table()}
    assert rows["test_vit"]["performance"] == rows["test_resnet"]["accuracy"] == "pass"
    paused_s = rows["test_resnet"]["accuracy_paused_s"]
    assert paused_s > 7
    assert rows["test_resnet"]["accuracy_wall_s"] > 10, "longer than the limit"
    assert rows["test_resnet"]["accuracy_wall_s"] > rows["test_resnet"]["accuracy_compile_s"] + paused_s


ON_GPUS = {"device": "cuda", "suite": "tiny", "weights": "random", "checks": "performance"}


@pytest.fixture
def timings(new_project, tmp_path, monkeypatch):
    """Time two models on simulated GPUs; the rows by model, and the times at which each was timed."""

    def run(gpus: str, words: str) -> tuple[dict, dict]:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        monkeypatch.setenv("TIMMGATE_LOCKS", str(tmp_path / "locks"))
        project = new_project(tmp_path, config=ON_GPUS)
        project.worker.behaviours = {"*": words}
        project.run(modes="inference", models="test_vit,test_resnet")
        times = defaultdict(list)
        for entry in project.worker.entries():
            if "tick" in entry:
                times[entry["tick"]].append(entry["at"])
        return {row["model"]: row for row in project.table(device="cuda")}, times

    return run


def test_two_gpus_time_two_cells_at_once(timings):
    rows, _ = timings("GPU-a,GPU-b", "meet:2@performance.timing")  # whoever is there first waits for the other
    assert {row["performance"] for row in rows.values()} == {"pass"}
    assert {row["device_uuid"] for row in rows.values()} == {"GPU-a", "GPU-b"}


def test_one_gpu_times_one_cell_after_the_other_although_both_are_on_it(timings):
    rows, times = timings("GPU-a", "meet:2@performance.warmup tick:0.4@performance.timing")
    assert {(row["performance"], row["device_uuid"]) for row in rows.values()} == {("pass", "GPU-a")}
    first, second = sorted(times.values())
    assert first[-1] < second[0]


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 1), ("cpu", 0)])
def test_a_cell_asks_a_cluster_for_one_gpu_on_cuda_and_for_none_elsewhere(device, gpus, project):
    printed = project.run("--dry-run", device=device, suite="tiny", weights="random", models="test_vit", modes="inference")
    assert f" gpu={gpus}" in printed
