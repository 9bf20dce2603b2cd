"""Where a run stands, from what Snakemake says, the journals, and the files of the supervisors."""

import json

import pytest

from timmgate.core import schemas
from timmgate.report import progress
from timmgate.report.progress import Plan, Progress
from timmgate.supervisor import journal, stages
from timmgate.tables import parquet

MODELS = ("test_vit", "test_resnet", "test_nfnet")
CHECKS = ("accuracy", "performance")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def cell(model, mode="inference", build="default"):
    return "cpu", build, mode, model


def wildcards(of):
    return dict(zip(("device", "build", "mode", "model"), of, strict=True))


def new(*, to_measure=MODELS, models=MODELS, cost=None):
    cells = [cell(model) for model in models]
    return Progress(Plan("cpu", CHECKS, cells, {cell(model) for model in to_measure}, cost or {}, "strict"), began_s=0.0)


def leave(of, strict=None, **statuses):
    """A journal with an end of each check."""
    path = progress.Path("results", *of, journal.NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"event": "ended", "attempt": 1, "stage": "compare", "cause": None, "message": "said"}
    known |= {"strict": strict}
    lines = [{**known, "check_name": check, "status": status} for check, status in statuses.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"event": "rows"}]))


def measure(run, number, model, *, took_s=10.0, at_s=0.0, **statuses):
    run.started(number, "measure", wildcards(cell(model)), at_s)
    leave(cell(model), **(statuses or dict.fromkeys(CHECKS, "pass")))
    return run.finished(number, at_s + took_s)


def test_cells_go_from_queued_to_running_to_done_or_failed(folder):
    run = new()
    assert run.total() == {"queued": 3}
    run.started(1, "measure", wildcards(cell("test_vit")), 0.0)
    assert run.total() == {"queued": 2, "running": 1}
    measure(run, 1, "test_vit")
    measure(run, 2, "test_resnet", accuracy="fail_accuracy", performance="pass")
    assert run.total() == {"queued": 1, "done": 1, "failed": 1}
    assert run.counts["default", "inference"]["failed"] == 1


@pytest.mark.parametrize("status", ["pass_due_to_skip", "not_applicable"])
def test_what_is_no_failure_is_done(folder, status):
    run = new()
    assert not measure(run, 1, "test_vit", accuracy=status, performance="pass").failures
    assert run.total()["done"] == 1


def test_a_cell_that_is_done_says_how_its_checks_ended_where_its_log_is_and_how_long_it_took(folder):
    ended = measure(new(), 1, "test_vit", took_s=12.0, accuracy="fail_accuracy", performance="timeout")
    assert {check: end["status"] for check, end in ended.ends.items()} == {
        "accuracy": "fail_accuracy",
        "performance": "timeout",
    }
    assert list(ended.failures) == ["accuracy", "performance"]
    assert (ended.name, ended.seconds) == ("inference/test_vit", 12.0)
    assert ended.log.as_posix() == "logs/cpu/default/inference/test_vit.log"


@pytest.mark.parametrize(
    ("rule", "strict", "dynamo", "status"),
    [
        ("strict", "fail", "pass", "fail_accuracy"),
        ("strict", "pass", "fail_accuracy", "pass"),
        ("strict", "undecided", "fail_accuracy", "fail_accuracy"),
        ("dynamo", "fail", "pass", "pass"),
        ("both", "pass", "fail_accuracy", "fail_accuracy"),
    ],
)
def test_a_cell_has_failed_by_the_rule_that_was_asked_for(folder, rule, strict, dynamo, status):
    of = cell("test_vit")
    run = Progress(Plan("cpu", ("accuracy",), [of], {of}, {}, rule), 0.0)
    run.started(1, "measure", wildcards(of), 0.0)
    leave(of, accuracy=dynamo, strict=strict)
    assert run.finished(1, 1.0).ends["accuracy"]["status"] == status


def test_a_failure_comes_with_the_reason_that_its_row_has(folder):
    of, why = (
        cell("test_vit"),
        {"accuracy_stage": "compile", "accuracy_cause": "RuntimeError", "accuracy_message": "no kernel"},
    )
    key = dict(zip(schemas.KEY, of, strict=True))
    row = parquet.table([{**key, "accuracy": "fail_to_run", **why, "details": []}], parquet.FILE_SCHEMAS["accuracy"])
    path = progress.Path("results", *of, "accuracy.parquet")
    path.parent.mkdir(parents=True)
    parquet.write_cell(row, path)
    ends = measure(new(), 1, "test_vit", accuracy="fail_to_run", performance="timeout").ends
    assert "RuntimeError" in ends["accuracy"]["reason"] and "no kernel" in ends["accuracy"]["reason"]
    assert ends["performance"]["reason"] is None, "it has no row"


def test_only_checks_that_were_asked_for_count(folder):
    run = Progress(Plan("cpu", ("performance",), [cell("test_vit")], {cell("test_vit")}, {}, "strict"), 0.0)
    assert not measure(run, 1, "test_vit", accuracy="fail_accuracy", performance="pass").failures


def test_with_several_builds_a_cell_is_called_by_its_build_too(folder):
    cells = [cell("test_vit", build=build) for build in ("release", "nightly")]
    run = Progress(Plan("cpu", CHECKS, cells, set(cells), {}, "strict"), 0.0)
    run.started(1, "measure", wildcards(cells[1]), 0.0)
    assert [job.name for job in run.running()] == ["nightly/inference/test_vit"]


def test_cells_of_earlier_runs_are_done_and_soon_known_to_have_failed(folder, monkeypatch):
    monkeypatch.setattr(progress, "CELLS_A_LOOK", 2)
    leave(cell("test_vit"), accuracy="pass", performance="OOM")
    run = new(to_measure=["test_nfnet"])
    assert run.total() == {"done": 2, "queued": 1}
    run.look()
    assert run.total() == {"done": 1, "failed": 1, "queued": 1}


def test_a_cell_whose_supervisor_was_lost_has_failed_until_it_is_started_again(folder):
    run = new()
    run.started(1, "measure", wildcards(cell("test_vit")), 0.0)
    assert run.lost(1).name == "inference/test_vit"
    assert run.total() == {"queued": 2, "failed": 1}
    measure(run, 1, "test_vit")
    assert run.total() == {"queued": 2, "done": 1}


def test_jobs_of_other_rules_run_too_but_are_no_cells(folder):
    run = new()
    run.started(1, "weights", {"source": "pretrained", "model": "resnet50"}, 0.0)
    run.look()
    assert [job.name for job in run.running()] == ["weights pretrained resnet50"]
    assert run.finished(1, 5.0) is None
    assert run.total() == {"queued": 3}


def test_what_is_not_known_is_passed_over(folder):
    run = new()
    assert run.finished(7, 0.0) is None
    run.lost(7)
    run.started(1, "measure", wildcards(cell("somebody_elses")), 0.0)
    run.finished(1, 1.0)
    assert run.total() == {"queued": 3}


def test_what_is_timed_comes_first_then_what_waits_for_it_then_the_longest(folder):
    run = new()
    for number, model in enumerate(MODELS):
        run.started(number, "measure", wildcards(cell(model)), float(number))
    for model, stage in zip(MODELS, ("compile", "queue", "timing"), strict=True):
        stages.StageFile(stages.path_of(cell(model))).tell("performance", stage)
    run.look()
    assert [job.stage.stage for job in run.running()] == ["timing", "queue", "compile"]
    stages.path_of(cell("test_vit")).unlink()
    run.look()
    assert [job.stage.stage for job in run.running()] == ["timing", "queue", progress.ENDING]


def test_the_stages_of_many_are_read_in_turn(folder, monkeypatch):
    monkeypatch.setattr(progress, "STAGES_A_LOOK", 2)
    run = new()
    for number, model in enumerate(MODELS):
        run.started(number, "measure", wildcards(cell(model)), 0.0)
        stages.StageFile(stages.path_of(cell(model))).tell("accuracy", "compile")
    run.look()
    assert sum(job.stage is not None for job in run.running()) == 2
    run.look()
    assert sum(job.stage is not None for job in run.running()) == 3


def test_nobody_knows_how_long_it_takes_until_a_cell_is_done(folder):
    run = new()
    assert run.time_left(10.0) is None
    measure(run, 1, "test_vit", at_s=10.0, took_s=10.0)
    left = run.time_left(20.0)
    assert left.seconds == pytest.approx(20.0)
    assert left.low < 20.0 < left.high


def test_cells_that_run_at_once_take_less_time_together(folder):
    models = [f"model_{number}" for number in range(12)]
    run = new(models=models, to_measure=models)
    for number, model in enumerate(models[:4]):
        run.started(number, "measure", wildcards(cell(model)), 0.0)
    for number, model in enumerate(models[:4]):
        leave(cell(model), **dict.fromkeys(CHECKS, "pass"))
        run.finished(number, 10.0)
    assert run.time_left(10.0).seconds == pytest.approx(8 * 10.0 / 4)


def test_a_cell_that_takes_longer_than_expected_is_not_about_to_end(folder):
    run = new(to_measure=MODELS[:2])
    measure(run, 1, "test_vit", took_s=10.0)
    run.started(2, "measure", wildcards(cell("test_resnet")), 10.0)
    assert run.time_left(10.0 + 100.0).low >= 50.0


def test_there_is_nothing_left_when_all_is_done(folder):
    run = new(to_measure=["test_vit"])
    measure(run, 1, "test_vit")
    assert run.time_left(20.0).high == 0.0
