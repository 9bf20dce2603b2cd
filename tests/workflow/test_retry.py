"""`retry` measures the failed cells again, exactly those, whatever happens on the way; earlier attempts are kept."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest

from workflow.conftest import PATIENCE_S, TABLES

FAILED = {"special/test_vit": "fail_accuracy", "inference/test_resnet": "timeout"}


@pytest.fixture(scope="module")
def failed_once(finished_small, new_project, tmp_path_factory):
    """A finished run of four cells, of which two failed. Change nothing."""
    folder = tmp_path_factory.mktemp("failed")
    for name in ("models.tsv", "mine.yaml"):
        shutil.copy(finished_small.folder / name, folder)
    project = new_project(folder, configfile=finished_small.configfile, config={"timeout": 5})
    project.worker.behaviours = {"special/test_vit": "fail_accuracy", "inference/test_resnet": "hang@compile"}
    project.run()
    return project


@pytest.fixture
def failed(failed_once, new_project, tmp_path):
    """A copy of `failed_once` to change, in which nothing fails any more."""
    shutil.copytree(failed_once.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "journal.jsonl").unlink()
    return new_project(tmp_path, configfile=failed_once.configfile, config=failed_once.config)


def row_times(project) -> dict[str, int]:
    return {str(file): file.stat().st_mtime_ns for file in sorted(project.folder.glob("results/cpu/*/*/*/*.parquet"))}


def test_exactly_the_failed_cells_are_planned_and_a_dry_run_changes_nothing(failed):
    before = failed.files(), row_times(failed)
    assert failed.planned(retry="failed") == {*FAILED, *TABLES}
    assert failed.planned() == set()
    assert (failed.files(), row_times(failed)) == before


def test_a_status_alone_can_be_asked_for(failed):
    assert failed.planned(retry="timeout") == {"inference/test_resnet", *TABLES}
    assert failed.planned(retry="OOM,fail_accuracy") == {"special/test_vit", *TABLES}
    assert failed.planned(retry="infra_error") == set()


def test_the_failed_cells_are_measured_again_and_the_others_are_not_touched(failed):
    before = row_times(failed)
    printed = failed.run(retry="failed")
    assert "retry: 2 of 4 cells are measured again" in printed
    assert failed.worker.cells() == sorted(FAILED)
    assert set(failed.statuses().values()) == {"pass"}
    changed = {Path(file).parts[-3:-1] for file, mtime in row_times(failed).items() if before[file] != mtime}
    assert changed == {tuple(cell.split("/")) for cell in FAILED}


def test_afterwards_there_is_nothing_to_do_with_and_without_the_key(failed):
    failed.run(retry="failed")
    assert failed.planned() == set()
    assert "Nothing to be done" in failed.run(retry="failed")
    assert len(failed.worker.starts()) == len(FAILED)


def test_a_cell_that_fails_again_can_be_asked_for_again(failed):
    failed.worker.behaviours = {"special/test_vit": "fail_accuracy"}
    failed.run(retry="failed")
    assert failed.statuses()["special/test_vit"] == "fail_accuracy"
    assert failed.planned() == set()
    failed.worker.behaviours = {}
    failed.run(retry="failed")
    assert failed.worker.cells() == ["inference/test_resnet", "special/test_vit", "special/test_vit"]
    assert set(failed.statuses().values()) == {"pass"}


def test_every_attempt_is_in_a_table(failed):
    failed.worker.behaviours = {"special/test_vit": "flaky:1@compile"}
    failed.run(retry="failed")
    attempts = [row for row in failed.table("attempts") if f"{row['mode']}/{row['model']}" in FAILED]
    known = [(row["mode"], row["model"], row["retry"], row["attempt"], row["status"], row["cause"]) for row in attempts]
    assert known == [
        ("inference", "test_resnet", 0, 1, "timeout", "limit of 5 s"),
        ("inference", "test_resnet", 1, 1, "pass", None),
        ("special", "test_vit", 0, 1, "fail_accuracy", "comparison"),
        ("special", "test_vit", 1, 1, "infra_error", "SIGKILL"),
        ("special", "test_vit", 1, 2, "pass", None),
    ]
    assert {row["retry"] for row in failed.table()} == {0, 1}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_retry_is_completed_by_a_plain_run(number, failed):
    failed.worker.behaviours = {"*": "hang@load"}
    run = failed.start("--cores", "1", retry="failed", timeout=600)
    failed.worker.wait_for_start(1)
    (failed.folder / "results" / "cpu" / "retries.json").read_text()
    run.send_signal(number)
    for process in failed.processes():
        process.send_signal(number)
    run.communicate(timeout=PATIENCE_S)
    failed.wait_for_end()
    if number == signal.SIGKILL:
        failed.run("--unlock")
    failed.worker.behaviours = {}
    assert failed.planned() == {*FAILED, *TABLES}, "also the cell that had not begun"
    failed.run()
    assert set(failed.statuses().values()) == {"pass"}
    assert failed.planned(retry="failed") == set()


def test_a_row_that_was_lost_meanwhile_is_measured_once(failed):
    failed.file("special/test_vit").unlink()
    failed.run(retry="failed")
    assert failed.worker.cells() == sorted(FAILED)
    assert failed.planned(retry="failed") == set()


def test_retry_works_on_what_is_asked_for_only(failed):
    assert failed.planned(retry="failed", modes="special") == {"special/test_vit", *TABLES}


def test_without_snakemakes_records_it_is_said_what_to_do_instead(failed):
    shutil.rmtree(failed.folder / ".snakemake" / "metadata")
    printed = failed.run("--dry-run", code=1, retry="timeout")
    assert "instead: rm -f results/cpu/default/inference/test_resnet/accuracy.parquet" in printed


def test_a_misspelt_status_gets_the_known_ones(failed):
    printed = failed.run("--dry-run", code=1, retry="timeouts")
    assert "retry.0 is 'timeouts'; it must be one of failed, fail_accuracy" in printed


def test_failed_cells_of_one_device_do_not_concern_another(failed):
    failed.run(device="cuda")
    assert failed.planned(retry="failed") == {*FAILED, *TABLES}
    assert failed.planned(retry="failed", device="cuda") == set()


@pytest.fixture
def without_weights(new_project, tmp_path, monkeypatch):
    """A finished run of a model whose weights could not be had, from a hub that does not answer."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    project = new_project(tmp_path, config={"weights": "pretrained", "modes": "inference,training", "models": "test_vit"})
    project.run()
    assert set(project.statuses().values()) == {"model_fail_to_load"}
    return project


def test_weights_that_could_not_be_had_are_asked_for_again(without_weights):
    before = json.loads((without_weights.folder / "weights/pretrained/test_vit.json").read_text())
    assert without_weights.planned() == set()
    assert without_weights.planned(retry="failed") == {"weights", "inference/test_vit", "training/test_vit", *TABLES}
    without_weights.run(retry="failed")
    after = json.loads((without_weights.folder / "weights/pretrained/test_vit.json").read_text())
    assert (before["retry"], after["retry"]) == (0, 1)
    assert without_weights.planned() == set()


def test_a_damaged_record_of_weights_fails_the_model_and_is_made_again(without_weights):
    (without_weights.folder / "weights/pretrained/test_vit.json").write_text('{"model": "test_v')
    time.sleep(0.01)
    without_weights.run()
    assert {row["accuracy_cause"] for row in without_weights.table()} == {"damaged file"}
    without_weights.run(retry="failed")
    assert {row["accuracy_cause"] for row in without_weights.table()} != {"damaged file"}
