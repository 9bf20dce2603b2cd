"""Two builds compared: each cell is timed by both, in fresh processes that take turns, and the difference is told."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workflow.conftest import TABLES

TIMED = {"checks": "accuracy,performance"}


@pytest.fixture(scope="module")
def compared(new_project, tmp_path_factory):
    """A finished comparison; the second build is 10.5 % slower, and test_resnet cannot be timed. Change nothing."""
    builds = {"old": {}, "new": {"env": {"FAKE_COMPILED_S": "0.1105"}}}
    config = {
        "builds": "old,new",
        "build_catalogue": json.dumps(builds),
        "modes": "inference",
        "models": "test_vit,test_resnet",
        "checks": "accuracy,performance",
        "processes": 3,
    }
    project = new_project(tmp_path_factory.mktemp("compared"), config=config)
    project.worker.behaviours = {"test_resnet": "raise@performance.compile"}
    project.printed = project.run("compare")
    return project


def test_both_builds_time_each_cell_side_by_side_in_fresh_processes(compared):
    requests = [request for request in compared.worker.requests() if len(request.specs) == 1]
    builds = [request.specs[0].build for request in requests if request.specs[0].model == "test_vit" and request.turns]
    assert [set(builds[turn : turn + 2]) for turn in (0, 2, 4)] == [{"old", "new"}] * 3
    assert {request.specs[0].check for request in requests} == {"performance"}
    assert len({start["pid"] for start in compared.worker.starts()}) == len(compared.worker.starts())


def test_the_difference_is_found_and_told(compared):
    rows = compared.table("comparison")
    found = [(row["model"], row["verdict"], row["moved"]) for row in rows if row["figure"] == "relative_time"]
    assert ("test_vit", "slower", "compiled") in found
    assert "slower inference/test_vit relative_time +10" in compared.printed
    assert (compared.folder / "results/cpu/comparison.tsv").is_file()


def test_a_cell_that_a_build_cannot_time_is_left_out_with_the_reason(compared):
    assert "1 of 2 cells compared; 1 left out: old was not timed: fail_to_run RuntimeError." in compared.printed
    requests = [request for request in compared.worker.requests() if len(request.specs) == 1 and not request.turns]
    assert [request.specs[0].build for request in requests] == ["old"], "by itself, which says why"
    assert {request.specs[0].model for request in requests} == {"test_resnet"}


def test_it_takes_the_compile_caches_of_the_cells(compared):
    caches = {}
    for request in compared.worker.requests():
        caches.setdefault((request.specs[0].build, request.specs[0].model), set()).add(request.run.cache)
    assert all(len(each) == 1 for each in caches.values())
    assert len(caches) == 4


def test_what_was_compared_is_not_measured_again_and_the_other_tables_do_not_have_it(compared):
    assert compared.planned("compare") == set()
    assert len(compared.table()) == 4
    assert compared.planned() == set()


def test_each_turn_has_a_log_or_each_process(compared):
    folder = compared.folder / "logs/cpu/pairs/old..new/inference"
    assert sorted(path.name for path in folder.glob("test_vit.*.log")) == [f"test_vit.{turn}.log" for turn in range(3)]
    assert sorted(path.name for path in folder.glob("test_resnet.*.log")) == ["test_resnet.0.log", "test_resnet.old.0.log"]


def test_another_software_of_one_build_is_compared_again(compared):
    builds = {"old": {}, "new": {"env": {"FAKE_COMPILED_S": "0.12"}}}
    planned = compared.planned("compare", build_catalogue=json.dumps(builds))
    assert planned == {"inference/test_vit", "inference/test_resnet", "compare", *TABLES} - {"all"}


@pytest.mark.parametrize("builds", ["default", "default,other,third"])
def test_anything_but_two_builds_is_refused(builds, project):
    catalogue = {"build_catalogue": "{other: {}, third: {}}", "builds": builds, "models": "test_vit"}
    printed = project.run("compare", code=1, **catalogue)
    assert "compare needs two builds, as in builds=release,nightly, or one and what was measured before" in printed
    assert f"builds is {builds.replace(',', ', ')}" in printed
    assert project.worker.entries() == []


@pytest.mark.parametrize("builds", ["default", "default,other"])
def test_a_baseline_that_there_is_not_is_refused(builds, project):
    catalogue = {"build_catalogue": "{other: {}}", "builds": builds, "models": "test_vit"}
    assert "baseline: 'nowhere' does not exist; compare" in project.run("compare", code=1, baseline="nowhere", **catalogue)
    project.folder.joinpath("monday").mkdir()
    printed = project.run("compare", code=1, baseline="monday", **catalogue)
    assert "baseline: 'monday' has no measured tables; compare needs the results of an earlier run" in printed
    assert project.worker.entries() == []


def test_one_build_is_compared_with_tables_of_an_earlier_run_without_measuring_again(compared, new_project, tmp_path):
    earlier = str(compared.folder / "results")
    later = new_project(tmp_path, config={**compared.config, "builds": "old", "baseline": earlier})
    later.worker.behaviours = {}
    printed = later.run("compare")
    assert "cells compared" in printed and "Measured apart" in printed
    assert [len(request.specs) for request in later.worker.requests()] == [2, 2], "both checks of both cells, once"
    assert {row["before"] for row in later.table("comparison")} == {earlier}
    assert later.planned("compare") == set()


@pytest.fixture(scope="module")
def measured_twice(new_project, tmp_path_factory):
    """Two folders of results and a history with both; on tuesday compiled takes twice as long. Change nothing."""
    config = {"models": "test_vit", "modes": "inference", "checks": "accuracy,performance"}
    root = tmp_path_factory.mktemp("twice")
    folders = {}
    for day, compiled_s in (("monday", "0.1"), ("tuesday", "0.2")):
        folders[day] = new_project(root / day, config={**config, "history_path": str(root / "history")})
        folders[day].environment["FAKE_COMPILED_S"] = compiled_s
        folders[day].run()
    return root


def test_two_folders_of_results_are_compared_and_nothing_is_measured(measured_twice, project):
    days = {day: str(measured_twice / day / "results") for day in ("monday", "tuesday")}
    printed = project.run("compare", baseline=days["monday"], candidate=days["tuesday"], **TIMED)
    assert "1 of 1 cells compared." in printed
    (row,) = [row for row in project.table("comparison") if row["figure"] == "relative_time"]
    assert (row["before"], row["after"]) == (days["monday"], days["tuesday"])
    assert (row["verdict"], round(row["change"], 2)) == ("slower", 1.0)
    assert project.worker.entries() == []
    printed = project.run("compare", baseline=days["tuesday"], candidate=days["monday"], **TIMED)
    assert "faster inference/test_vit" in printed, "another request is compared anew"


def test_two_runs_of_a_history_are_compared_and_nothing_is_measured(measured_twice, project):
    history = measured_twice / "history"
    runs = sorted(history.rglob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)
    monday, tuesday = (f"history:{path.stem}" for path in runs)
    printed = project.run("compare", baseline=monday, candidate=tuesday, history_path=str(history), **TIMED)
    assert "slower inference/test_vit relative_time +100" in printed
    assert {(row["before"], row["after"]) for row in project.table("comparison")} == {(monday, tuesday)}
    assert project.worker.entries() == []


def test_a_candidate_that_cannot_be_compared_is_refused(measured_twice, project):
    results, history = (str(measured_twice / name) for name in ("monday/results", "history"))

    def refused(**config):
        printed = project.run("compare", code=1, **config)
        assert "Traceback" not in printed
        return printed

    assert "candidate: 'nowhere' does not exist; it is the results" in refused(candidate="nowhere", baseline=results)
    assert "set baseline to the results of an earlier run" in refused(candidate=results)
    assert "set baseline to the results of an earlier run" in refused(candidate=results, baseline="build:default")
    assert "is the baseline, too, and would be compared with itself" in refused(candidate=results, baseline=results)
    printed = refused(candidate="history", baseline=results, history_path=history)
    assert "candidate: history has many runs; say which" in printed
    (project.folder / "cut/cpu").mkdir(parents=True)
    (project.folder / "cut/cpu/cells.parquet").write_bytes(b"PAR1")
    assert "candidate: cut/cpu/cells.parquet cannot be read: " in refused(candidate="cut", baseline=results)
    assert "candidate: history needs the key history_path" in refused(candidate="history:monday", baseline=results)
    assert project.worker.entries() == []


def test_results_of_two_devices_are_compared(measured_twice, project):
    table = pq.read_table(measured_twice / "tuesday/results/cpu/cells.parquet")
    for name, value in {"device": "cuda", "device_name": "a GPU"}.items():
        values = pa.array([value] * len(table), pa.string())
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), values)
    folder = project.folder / "gpu/results/cuda"
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "cells.parquet")
    printed = project.run("compare", baseline=str(measured_twice / "monday/results"), candidate="gpu/results", **TIMED)
    assert "1 of 1 cells compared." in printed
    assert "Between devices everything differs" in printed
