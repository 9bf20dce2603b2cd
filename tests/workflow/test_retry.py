"""`retry` measures the failed cells again, exactly those, whatever happens on the way; earlier attempts are kept."""

import json
import shutil
import signal
import time
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

from workflow.conftest import PATIENCE_S, TABLES

FAILED = {"special/test_vit", "inference/test_resnet"}


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
def failed(failed_once, copy_of, tmp_path):
    """A copy of `failed_once` to change, in which nothing fails any more."""
    return copy_of(failed_once, tmp_path)


@pytest.fixture(scope="module")
def retried(failed_once, copy_of, tmp_path_factory):
    """A copy in which the two were measured again: one passed in its second attempt, one failed again. Change nothing."""
    project = copy_of(failed_once, tmp_path_factory.mktemp("retried"))
    project.worker.behaviours = {"special/test_vit": "flaky:1@compile", "inference/test_resnet": "fail_accuracy"}
    project.printed = project.run(retry="failed")
    return project


def row_times(project) -> dict[Path, int]:
    files = sorted(project.folder.glob("results/cpu/*/*/*/*.parquet"))
    return {file.relative_to(project.folder): file.stat().st_mtime_ns for file in files}


def test_exactly_the_failed_cells_are_planned_and_a_dry_run_changes_nothing(failed):
    before = failed.files(), row_times(failed)
    assert failed.planned(retry="failed") == {*FAILED, *TABLES}
    assert failed.planned() == set()
    assert (failed.files(), row_times(failed)) == before


def test_a_status_alone_can_be_asked_for(failed):
    assert failed.planned(retry="timeout") == {"inference/test_resnet", *TABLES}
    assert failed.planned(retry="OOM,fail_accuracy") == {"special/test_vit", *TABLES}
    assert failed.planned(retry="infra_error") == set()


def test_the_failed_cells_are_measured_again_and_the_others_are_not_touched(retried, failed_once):
    assert "retry: 2 of 4 cells are measured again" in retried.printed
    assert set(retried.worker.cells()) == FAILED
    assert retried.statuses() == {
        **failed_once.statuses(),
        "special/test_vit": "pass",
        "inference/test_resnet": "fail_accuracy",
    }
    before, after = row_times(failed_once), row_times(retried)
    changed = {"/".join(file.parts[-3:-1]) for file, mtime in after.items() if before[file] != mtime}
    assert changed == FAILED


def test_every_attempt_is_in_a_table(retried):
    attempts = [row for row in retried.table("attempts") if f"{row['mode']}/{row['model']}" in FAILED]
    known = [(row["mode"], row["model"], row["retry"], row["attempt"], row["status"], row["cause"]) for row in attempts]
    assert known == [
        ("inference", "test_resnet", 0, 1, "timeout", "limit of 5 s"),
        ("inference", "test_resnet", 1, 1, "fail_accuracy", "comparison"),
        ("special", "test_vit", 0, 1, "fail_accuracy", "comparison"),
        ("special", "test_vit", 1, 1, "infra_error", "SIGKILL"),
        ("special", "test_vit", 1, 2, "pass", None),
    ]
    assert {row["retry"] for row in retried.table()} == {0, 1}


def test_a_cell_that_fails_again_can_be_asked_for_again_and_then_there_is_nothing_to_do(retried, copy_of, tmp_path):
    project = copy_of(retried, tmp_path)
    assert project.planned() == set()
    project.run(retry="failed")
    assert project.worker.cells() == ["inference/test_resnet"]
    assert set(project.statuses().values()) == {"pass"}
    assert project.planned() == set()
    assert "Nothing to be done" in project.run(retry="failed")
    assert project.worker.cells() == ["inference/test_resnet"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_retry_is_completed_by_a_plain_run(number, failed):
    failed.worker.behaviours = {"*": "hang@load"}
    run = failed.start("--cores", "1", retry="failed", timeout=600)
    failed.worker.wait_for_start(1)
    (failed.folder / "results" / "cpu" / "retries.json").read_text()
    run.send_signal(number)
    failed.signal(number)
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


def test_of_a_row_without_a_record_it_is_said_too(failed):
    """As where results were copied, and only the tables were made here."""
    name = urlsafe_b64encode(b"results/cpu/default/special/test_vit/accuracy.parquet").decode()
    record = failed.folder / ".snakemake" / "metadata" / name
    record.unlink()
    printed = failed.run("--dry-run", code=1, retry="failed")
    assert "instead: rm -f results/cpu/default/special/test_vit/accuracy.parquet\n" in printed


def test_failed_cells_of_one_device_do_not_concern_another(failed):
    on_cuda = {"device": "cuda", "modes": "special", "models": "test_vit"}
    failed.run(**on_cuda)
    assert failed.planned(retry="failed") == {*FAILED, *TABLES}
    assert failed.planned(retry="failed", **on_cuda) == set()


@pytest.fixture(scope="module")
def without_weights(new_project, tmp_path_factory):
    """A finished run of a model whose weights could not be had, from a hub that does not answer. Change nothing."""
    folder = tmp_path_factory.mktemp("without_weights")
    project = new_project(
        folder,
        config={"weights": "pretrained", "modes": "inference", "models": "test_vit"},
        environment={"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub")},
    )
    project.run()
    assert set(project.statuses().values()) == {"model_fail_to_load"}
    return project


def test_weights_that_could_not_be_had_are_asked_for_again(without_weights):
    assert without_weights.planned() == set()
    assert without_weights.planned(retry="failed") == {"weights", "inference/test_vit", *TABLES}


def test_a_damaged_record_of_weights_fails_the_model_and_is_made_again(without_weights, copy_of, tmp_path):
    project, record = copy_of(without_weights, tmp_path), tmp_path / "weights/pretrained/test_vit.json"
    assert json.loads(record.read_text())["retry"] == 0
    record.write_text('{"model": "test_v')
    time.sleep(0.01)
    project.run()
    assert {row["accuracy_cause"] for row in project.table()} == {"damaged file"}
    project.run(retry="failed")
    assert {row["accuracy_cause"] for row in project.table()} != {"damaged file"}
    assert json.loads(record.read_text())["retry"] == 1
    assert project.planned() == set()


def test_a_retry_that_is_refused_requests_nothing(failed):
    failed.environment = {"FAKE_PREFLIGHT": "no such device"}
    assert "no such device" in failed.run(retry="failed", code=1)
    failed.environment = {}
    assert failed.planned() == set()
