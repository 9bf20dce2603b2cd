"""`snakemake check`, `update_expected` and `export`: what they do, what they leave, and their exit codes."""

import csv
import shutil

import pytest

CONFIG = {"models": "test_vit,test_resnet", "modes": "inference,training"}
CELLS = ["inference/test_resnet", "inference/test_vit", "training/test_resnet", "training/test_vit"]
EXPECTED = {
    "expected/cpu/inference.csv": ["name,accuracy", "test_resnet,pass", "test_vit,fail_accuracy"],
    "expected/cpu/training.csv": ["name,accuracy", "test_resnet,pass", "test_vit,pass"],
}
EXPORTED = "results/cpu/export/inductor_timm_models_float32_inference_cpu_accuracy.csv"


def classes(project):
    """Class of every cell, as "mode/model", in check.tsv."""
    with (project.folder / "results/cpu/check.tsv").open(newline="") as file:
        return {f"{row['mode']}/{row['model']}": row["class"] for row in csv.DictReader(file, delimiter="\t")}


@pytest.fixture(scope="module")
def checked(new_project, tmp_path_factory):
    """A project in which nothing but a check has run, and what that printed. One of four cells fails. Change nothing."""
    project = new_project(tmp_path_factory.mktemp("checked"), config=CONFIG)
    project.worker.behaviours["inference/test_vit"] = "fail_accuracy"
    return project, project.run("check", code=1)


@pytest.fixture(scope="module")
def recorded(checked, copy_of, tmp_path_factory):
    """A copy of it with the expectations and the export of what it found. Change nothing."""
    project = copy_of(checked[0], tmp_path_factory.mktemp("recorded"))
    project.run("update_expected", "export")
    return project


@pytest.fixture(scope="module")
def copy_of(new_project):
    """Copies a project to a folder, where the worker passes everything and has not been started."""

    def copy(project, folder):
        shutil.copytree(project.folder, folder, dirs_exist_ok=True)
        (folder / "journal.jsonl").unlink(missing_ok=True)
        return new_project(folder, config=CONFIG)

    return copy


def test_a_check_runs_what_is_missing(checked):
    project, _ = checked
    assert project.worker.cells() == CELLS


def test_a_surprise_is_in_the_terminal_and_in_the_table_that_a_failed_check_leaves(checked):
    project, printed = checked
    assert "new_failure inference/test_vit expected pass, got fail_accuracy; comparison" in printed
    assert "The check failed: 1 new_failure. See results/cpu/check.tsv" in printed
    assert "Traceback" not in printed
    assert classes(project) == {**dict.fromkeys(CELLS, "pass"), "inference/test_vit": "new_failure"}


def test_what_was_found_is_written_as_expectations(recorded):
    files = recorded.folder.glob("expected/**/*.csv")
    assert {str(file.relative_to(recorded.folder)): file.read_text().split() for file in files} == EXPECTED


def test_a_later_difference_from_what_was_found_fails_and_what_is_expected_stays(recorded, copy_of, tmp_path):
    project = copy_of(recorded, tmp_path)
    project.worker.behaviours["inference/test_vit"] = "raise@run"
    for cell in ("inference/test_vit", "training/test_vit"):
        (project.folder / "results" / "cpu" / cell / "accuracy.parquet").unlink()
    assert "The check failed: 1 changed_failure." in project.run("check", baseline="expected", code=1)
    assert project.worker.cells() == ["inference/test_vit", "training/test_vit"], "what was deleted is measured first"
    assert classes(project) == {**dict.fromkeys(CELLS, "pass"), "inference/test_vit": "changed_failure"}
    assert {name: (project.folder / name).read_text().split() for name in EXPECTED} == EXPECTED


def test_with_an_exported_file_as_baseline_everything_is_as_expected(recorded, copy_of, tmp_path):
    project = copy_of(recorded, tmp_path)
    printed = project.run("check", modes="inference", baseline=EXPORTED)
    assert "The check passed: everything is as expected." in printed
    assert classes(project) == {"inference/test_vit": "expected_failure", "inference/test_resnet": "pass"}
    assert project.worker.starts() == []


def test_a_model_that_is_expected_and_gone_is_missing_and_one_that_was_left_out_is_not(checked, copy_of, tmp_path):
    project = copy_of(checked[0], tmp_path)
    (tmp_path / "mine.csv").write_text("name,accuracy\ntest_vit,fail_accuracy\n\n\ntest_resnet,pass\ntest_gone,pass\n")
    chosen = {"models": "test_*", "exclude": "test_*net,test_conv*", "modes": "inference"}
    printed = project.run("check", code=1, baseline="mine.csv", **chosen)
    assert "missing inference/test_gone expected pass, got no result" in printed
    assert classes(project) == {"inference/test_vit": "expected_failure", "inference/test_gone": "missing"}


def test_a_mistake_in_the_baseline_is_named_before_anything_is_measured(project):
    (project.folder / "mine.csv").write_text("name,accuracy\ntest_vit,pass\ntest_vit,pass\n")
    printed = project.run("check", code=1, baseline="mine.csv")
    assert "mine.csv, line 3: the model 'test_vit' is listed twice" in printed
    assert project.worker.entries() == []
