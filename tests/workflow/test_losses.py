"""Whatever is lost on the way, a plain run completes the work: a row per requested cell, and no process left."""

import contextlib
import os
import subprocess
import sys
import time

import psutil
import pytest

from workflow.conftest import PATIENCE_S

CELLS = {"inference/test_vit", "inference/test_resnet"}

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel must tell and kill")


@pytest.fixture
def two(project):
    """A project of two cells."""
    project.config = {"modes": "inference", "models": "test_vit,test_resnet"}
    return project


def outcomes(project) -> dict[str, tuple[str, str | None, int]]:
    return {row["model"]: (row["accuracy"], row["accuracy_cause"], row["accuracy_attempt"]) for row in project.table()}


def attempts(project, model: str) -> list[tuple[int, str, str | None]]:
    return [(row["attempt"], row["status"], row["cause"]) for row in project.table("attempts") if row["model"] == model]


LOST_SUPERVISORS = {
    "test_vit": "family@load orphan_once@load",
    "test_convnext": "family@load orphan@load",
    "test_nfnet": "dismiss@load",
}
"""Model: what befalls the supervisors of its cell. They are killed, once or always, or asked to end."""


@pytest.fixture(scope="module")
def lost(new_project, tmp_path_factory):
    """A finished run of these, and of a cell that nothing happens to. Change nothing."""
    models = ",".join([*LOST_SUPERVISORS, "test_resnet"])
    project = new_project(tmp_path_factory.mktemp("lost"), config={"modes": "inference", "models": models})
    project.worker.behaviours = LOST_SUPERVISORS
    project.run()
    return project


def test_a_cell_whose_supervisor_is_killed_is_started_again(lost):
    assert outcomes(lost)["test_vit"] == ("pass", None, 2)
    assert attempts(lost, "test_vit") == [(1, "infra_error", "lost"), (2, "pass", None)]


def test_a_cell_whose_supervisors_are_all_killed_has_a_row_that_says_so(lost):
    assert outcomes(lost)["test_convnext"] == ("infra_error", "lost", 2)
    (row,) = (row for row in lost.table() if row["model"] == "test_convnext")
    assert row["accuracy_stage"] is None
    assert row["backend"] == "inductor", "all that can be known is in the row"
    assert lost.worker.cells().count("inference/test_convnext") == 2


def test_a_cell_whose_supervisors_are_all_asked_to_end_has_a_row_that_says_so(lost):
    assert outcomes(lost)["test_nfnet"] == ("infra_error", "lost", 0)
    assert attempts(lost, "test_nfnet") == [], "nothing of what was asked to end counts"


def test_nothing_of_a_lost_start_lives_on_or_concerns_another_cell(lost):
    lost.wait_for_end()
    assert outcomes(lost)["test_resnet"] == ("pass", None, 1)


def test_lost_cells_are_measured_again_when_they_are_asked_for_and_not_by_themselves(lost, copy_of, tmp_path):
    assert lost.planned() == set()
    project = copy_of(lost, tmp_path)
    project.run(retry="infra_error", models="test_convnext")
    assert outcomes(project)["test_convnext"] == ("pass", None, 1)


def test_a_check_that_takes_its_supervisor_down_does_not_take_the_other_one_with_it(two):
    two.worker.behaviours = {"test_vit": "sleep:0.3@performance.warmup orphan@performance.warmup"}
    two.run(checks="accuracy,performance", models="test_vit")
    (row,) = two.table()
    assert (row["accuracy"], row["performance"], row["performance_cause"]) == ("pass", "infra_error", "lost")


@pytest.mark.parametrize("workers_live", [False, True], ids=["everything", "all but the workers"])
def test_after_a_power_failure_a_plain_run_completes_the_work(workers_live, two):
    two.worker.behaviours = {"test_resnet": "stubborn@load hang@compile"}
    run = two.start()
    two.worker.wait_for_start(2)
    while not two.file("inference/test_vit").exists():
        assert run.poll() is None
        time.sleep(0.02)
    workers = {entry["pid"] for entry in two.worker.entries()}
    victims = [process for process in two.processes() if not (workers_live and process.pid in workers)]
    for blow in (psutil.Process.suspend, psutil.Process.kill):  # at once, so that none sees another one die
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                blow(process)
    run.communicate(timeout=PATIENCE_S)
    two.wait_for_end()
    two.run("--unlock")
    two.worker.behaviours = {}
    two.run()
    assert {model: status for model, (status, _, _) in outcomes(two).items()} == {"test_vit": "pass", "test_resnet": "pass"}
    assert attempts(two, "test_resnet") == [(1, "infra_error", "lost"), (2, "pass", None)]
    assert two.scratch() == []


def test_a_cell_that_takes_too_much_memory_is_out_of_memory(two):
    much, little = "allocate:4000@compile hang@compile", "allocate:300@compile tick:2@compile"
    two.worker.behaviours = {"test_vit": much, "test_resnet": little}
    two.run(memory=1)
    assert outcomes(two) == {"test_vit": ("OOM", "limit of 1 GB", 1), "test_resnet": ("pass", None, 1)}
    rows = {row["model"]: row for row in two.table()}
    assert 1e9 < rows["test_vit"]["accuracy_peak_rss_bytes"] < 2.5e9
    assert 0.2e9 < rows["test_resnet"]["accuracy_peak_rss_bytes"] < 0.6e9
    assert two.planned(memory=2) == set(), "a limit is policy"


@pytest.fixture
def mounted(two):
    """Mounts a file system of its own over results/, with the given options; it is gone afterwards."""
    results = two.folder / "results"
    results.mkdir()

    def mount(options: str) -> None:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", results], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"a file system of one's own needs root: {done.stderr.strip()}")

    yield mount
    subprocess.run(["umount", "--lazy", results], capture_output=True)


def test_a_full_disk_is_said_and_a_plain_run_completes_the_work_once_there_is_room(two, mounted):
    mounted("size=16k")
    printed = two.run(code=1)
    assert "No space left on device" in printed
    assert two.scratch() == []
    mounted("remount,size=10m")
    two.run()
    assert {status for status, _, _ in outcomes(two).values()} == {"pass"}
    assert set(two.statuses()) == CELLS


def test_what_does_not_fit_on_a_disk_is_no_loss_and_is_measured_again_once_there_is_room(two, mounted):
    mounted("size=120k")
    two.worker.behaviours = {"*": "chat:20000@compare"}
    two.run(code=1)
    mounted("remount,size=20m")
    two.run()
    assert {status for status, _, _ in outcomes(two).values()} == {"pass"}


def test_results_that_cannot_be_written_are_refused_before_any_job(two, mounted):
    mounted("size=10m,ro")
    printed = two.run(code=1)
    assert f"{two.folder / 'results'} cannot be written to; make it writable" in printed
    assert two.worker.starts() == []
    assert two.planned() == {*CELLS, "merge", "flag", "all"}, "a dry run may look"
    mounted("remount,rw")
    two.run()
    assert {status for status, _, _ in outcomes(two).values()} == {"pass"}


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
def test_a_clock_that_jumped_measures_nothing_again(jump_s, finished):
    for file in finished.folder.glob("results/cpu/default/*/test_vit/*"):
        os.utime(file, (file.stat().st_atime + jump_s, file.stat().st_mtime + jump_s))
    finished.run()
    assert finished.worker.starts() == []
    assert len(finished.table()) == 4
