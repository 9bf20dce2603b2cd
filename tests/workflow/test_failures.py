"""Cells that fail: a row each, tables that say why, and a run that succeeds all the same."""

import csv

import pytest

ENDINGS = {
    "inference/test_vit": ("raise@load", "model_fail_to_load", "load", "RuntimeError"),
    "inference/test_resnet": ("raise@reference", "eager_1st_run_fail", "reference", "RuntimeError"),
    "inference/test_convnext": ("memory@eager", "eager_1st_run_OOM", "eager", "MemoryError"),
    "inference/test_efficientnet": ("raise@eager2", "eager_2nd_run_fail", "eager", "RuntimeError"),
    "inference/test_byobnet": ("oddity@compile", "fail_to_run", "compile", "ValueError"),
    "inference/test_nfnet": ("memory@run", "OOM", "run", "MemoryError"),
    "training/test_vit": ("signal:SIGSEGV@compile", "fail_to_run", "compile", "SIGSEGV"),
    "training/test_resnet": ("signal:SIGKILL@run", "infra_error", "run", "SIGKILL"),
    "training/test_convnext": ("stubborn@load family@load hang@compile", "timeout", "compile", "limit of 5 s"),
    "training/test_efficientnet": ("exit:3@run", "infra_error", "run", "exit code 3"),
    "training/test_byobnet": ("fail_accuracy", "fail_accuracy", "null_runs", "comparison"),
    "training/test_nfnet": ("garbage@load broken@load hang@load", "infra_error", "load", "broken message"),
    "training-amp/test_vit": ("family@load signal:SIGABRT@end", "pass", "null_runs", None),
    "training-amp/test_resnet": ("flaky:1@compile", "pass", "null_runs", None),
    "training-amp/test_convnext": ("half@run _exit:0@run", "infra_error", "run", "exit code 0"),
    "training-amp/test_efficientnet": ("", "pass", "null_runs", None),
    "training-amp/test_byobnet": ("garbage@load", "pass", "null_runs", None),
    "training-amp/test_nfnet": ("chat:5000@compare", "pass", "null_runs", None),
}
"""Cell: what its worker does, and the status, stage and cause that come of it."""

FAILED = [cell for cell, (_, status, _, _) in ENDINGS.items() if status != "pass"]


@pytest.fixture(scope="module")
def failed(new_project, tmp_path_factory):
    """The project and what the run printed; `run` has made sure that the exit code was 0."""
    config = {"modes": "inference,training,training-amp", "timeout": 5}
    project = new_project(tmp_path_factory.mktemp("failed"), config=config)
    project.worker.behaviours = {cell: words for cell, (words, *_) in ENDINGS.items()}
    return project, project.run()


def test_every_cell_has_its_row_whatever_became_of_it(failed):
    project, _ = failed
    found = {
        f"{row['mode']}/{row['model']}": (row["accuracy"], row["accuracy_stage"], row["accuracy_cause"])
        for row in project.table()
    }
    assert found == {cell: tuple(expected) for cell, (_, *expected) in ENDINGS.items()}


def test_no_process_is_left_of_any_ending(failed):
    project, _ = failed
    assert project.worker.alive() == []


def test_infrastructure_errors_were_tried_twice_and_others_once(failed):
    project, _ = failed
    attempts = {f"{row['mode']}/{row['model']}": row["accuracy_attempt"] for row in project.table()}
    twice = {cell for cell, (words, status, *_) in ENDINGS.items() if status == "infra_error" or "flaky" in words}
    assert attempts == {cell: 2 if cell in twice else 1 for cell in ENDINGS}
    assert sorted(set(project.worker.cells())) == sorted(ENDINGS)
    assert len(project.worker.starts()) == len(ENDINGS) + len(twice)


def test_the_table_of_failures_lists_those_that_did_not_pass_with_the_reason(failed):
    project, _ = failed
    failures = {f"{row['mode']}/{row['model']}": row for row in project.table("failures") if row["severity"] == "failure"}
    assert sorted(failures) == sorted(FAILED)
    row = failures["training/test_vit"]
    assert (row["device"], row["check_name"], row["status"], row["stage"], row["cause"]) == (
        *("cpu", "accuracy"),
        *ENDINGS["training/test_vit"][1:],
    )
    assert "SIGSEGV in the stage" in row["reason"]
    assert row["log"] == "logs/cpu/default/training/test_vit.log"
    assert "fake_worker.py" in row["command"]


def test_the_table_of_failures_for_people_has_the_same_rows_whatever_is_in_the_messages(failed):
    project, _ = failed
    with (project.folder / "results/cpu/failures.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    failures = [row for row in rows if row["severity"] == "failure"]
    assert sorted(f"{row['mode']}/{row['model']}" for row in failures) == sorted(FAILED)
    assert {row["status"] for row in failures} == {status for _, status, *_ in ENDINGS.values()} - {"pass"}


def test_the_summary_counts_every_status_of_every_mode(failed):
    project, _ = failed
    with (project.folder / "results/cpu/summary.tsv").open() as file:
        summary = {row["mode"]: row for row in csv.DictReader(file, delimiter="\t")}
    assert list(summary) == ["inference", "training", "training-amp"]
    for mode, row in summary.items():
        statuses = [status for cell, (_, status, *_) in ENDINGS.items() if cell.startswith(f"{mode}/")]
        assert (int(row["cells"]), int(row["passed"])) == (6, statuses.count("pass"))
        for status in ("pass", "fail_to_run", "OOM", "timeout", "infra_error", "model_fail_to_load"):
            assert int(row[status]) == statuses.count(status)


def test_the_terminal_has_a_line_per_failure_with_its_reason_and_its_log(failed):
    _, printed = failed
    shown = printed[printed.rindex("accuracy on cpu") :]
    for cell in FAILED:
        _, status, stage, cause = ENDINGS[cell]
        (line,) = (" ".join(line.split()) for line in shown.splitlines() if f" {cell} " in line)
        assert line.startswith(f"{status} {cell} accuracy ")
        assert f": {cause} in the stage {stage}" in line or (status == "fail_accuracy" and "1 of 2 tensors differ" in line)
        assert line.endswith(f"log: logs/cpu/default/{cell}.log")


def test_the_terminal_counts_the_failures_of_every_mode(failed):
    _, printed = failed
    (line,) = (line for line in printed.splitlines() if line.startswith("│ training-amp "))
    assert line.split("│")[2:4] == ["     6 ", "      5 "]


def test_the_log_of_a_failed_cell_says_what_happened(failed):
    project, _ = failed
    log = (project.folder / "logs/cpu/default/inference/test_vit.log").read_text()
    assert "RuntimeError: on request" in log
    assert "in raise_error" in log


def test_failed_cells_are_not_measured_again_by_themselves(failed):
    project, _ = failed
    assert project.planned() == set()
