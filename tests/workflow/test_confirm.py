"""`confirm`: failed cells again, and only those, under paths of their own; what is interrupted or done is not done twice."""

import pytest

CONFIG = {"models": "test_vit,test_resnet,test_convnext", "modes": "inference"}


@pytest.fixture(scope="module")
def confirmed(new_project, tmp_path_factory):
    """A run of three cells with three repeats: one fails always, one in its first two starts, and one passes."""
    project = new_project(tmp_path_factory.mktemp("confirmed"), config=CONFIG, executor=("--cores", "1"))
    project.worker.behaviours = {"test_resnet": "raise_at_first:2@run", "test_vit": "signal:SIGSEGV@compile"}
    return project, project.run(confirm=3)


def test_failed_cells_are_measured_again_and_no_others(confirmed):
    project, _ = confirmed
    failed = ["inference/test_resnet", "inference/test_vit"]
    assert project.worker.cells() == sorted(["inference/test_convnext", *failed * 4])


def test_the_table_says_how_often_each_fails_and_what_that_makes_of_it(confirmed):
    project, printed = confirmed
    rows = {row["model"]: row for row in project.table()}
    found = {model: (row["accuracy_repeats"], row["accuracy_repeats_failed"]) for model, row in rows.items()}
    assert found == {"test_vit": (3, 3), "test_resnet": (3, 1), "test_convnext": (None, None)}
    assert rows["test_vit"]["accuracy_recurrence"] == "deterministic"
    assert rows["test_vit"]["accuracy_reason_class"] == "compiler"
    assert rows["test_resnet"]["accuracy_reason_class"] == "flaky"
    failures = {row["model"]: row["recurrence"] for row in project.table("failures") if row["severity"] == "failure"}
    assert failures == {"test_vit": "deterministic", "test_resnet": "flaky"}
    assert "1 of 3 fresh processes" in printed
    assert len(project.table("repeats")) == 6


def test_nothing_is_left_to_do_and_more_repeats_are_only_those_that_are_missing(confirmed):
    project, _ = confirmed
    assert project.planned(confirm=3) == set()
    starts = len(project.worker.starts())
    project.run(confirm=4)
    assert len(project.worker.starts()) == starts + 2
    assert project.planned() <= {"merge", "flag", "all"}, "without the key nothing is measured"


def test_a_cell_that_is_measured_anew_and_passes_is_not_repeated(confirmed):
    project, _ = confirmed
    project.worker.behaviours = {"test_vit": "signal:SIGSEGV@compile"}
    project.file("inference/test_resnet").unlink()
    starts = len(project.worker.starts())
    project.run(confirm=4)
    assert len(project.worker.starts()) == starts + 1
    (row,) = [row for row in project.table() if row["model"] == "test_resnet"]
    assert (row["accuracy"], row["accuracy_repeats"]) == ("pass", None)


def test_cells_that_failed_before_are_repeated_once_that_is_asked_for(new_project, tmp_path):
    project = new_project(tmp_path, config={**CONFIG, "models": "test_vit,test_resnet"})
    project.worker.behaviours = {"test_vit": "signal:SIGSEGV@compile"}
    project.run()
    project.run(confirm=2)
    rows = {row["model"]: row["accuracy_repeats"] for row in project.table()}
    assert rows == {"test_vit": 2, "test_resnet": None}
    project.run(models="test_resnet")
    project.run("gate", code=1, confirm=2)
    assert sum(row["requested"] for row in project.table()) == 2
