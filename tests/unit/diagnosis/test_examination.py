"""One cell from its row to a finding, with trials that are made up."""

import json
from pathlib import Path

import pytest

from specs import cell, spec
from timmgate.core.diagnosis import Variant
from timmgate.core.outcome import AttemptResult, Verdict
from timmgate.core.run_options import RunOptions
from timmgate.diagnosis import examination
from timmgate.diagnosis.examination import FailedCell, examine

BELOW = ("aot_eager_decomp_partition",)


@pytest.fixture
def failed_cell(tmp_path):
    run = RunOptions(cache=tmp_path / "cache")
    return FailedCell(spec(), 8, run, tmp_path / "results", tmp_path / "logs", measured_at="noon")


@pytest.fixture
def run_trials(monkeypatch):
    """Makes trials end as a function of the request says; returns the names of those that were run."""

    def install(end):
        started = []

        def run(request, log):
            log.line("the last line")
            started.append(request.variant.name)
            attempt, verdict = end(request)
            attempt.wall_s = 1.0
            return attempt, verdict

        monkeypatch.setattr(examination.trial, "run", run)
        monkeypatch.setattr(examination, "die_with_run", lambda _: None)
        return started

    return install


def ended(status, cause=None, **columns):
    return AttemptResult(stage="compile", columns=columns, result={"status": status} if status == "pass" else None), Verdict(
        status, cause
    )


def lost(*details, status="fail_to_run", cause="SIGSEGV"):
    """A worker that ended without a result, after these details."""
    return AttemptResult(stage="compile", details=list(details)), Verdict(status, cause)


def test_a_finding_comes_with_its_trials_and_place(failed_cell, run_trials):
    def end(request):
        if request.known is not None:
            (request.kept / "graph").mkdir(parents=True)
            (request.kept / "graph" / "graph.py").write_text("the script")
            graph = {"graph": "aten.addmm.default", "graph_operators": 1}
            return ended("pass", module="head", module_class="Linear", direction="forward", **graph)
        return ended("pass" if request.variant.name in BELOW else "fail_accuracy", "comparison")

    run_trials(end)
    found = examine(failed_cell)
    assert found.finding.layer == "inductor"
    module = {"module": "head", "module_class": "Linear", "direction": "forward", "fails_in_eager": None}
    assert found.place == {**module, "graph": "aten.addmm.default", "graph_operators": 1}
    assert found.graph_script.is_relative_to(failed_cell.folder) and found.graph_script.read_text() == "the script"
    assert [row["number"] for row in found.trials] == list(range(len(found.trials)))
    assert found.trials[0]["ended"] == "fail"
    assert found.trials[1]["ended"] == "pass"
    assert all(Path(row["log"]).is_file() for row in found.trials)
    assert (failed_cell.folder / "trials.jsonl").exists()  # until its tables are written
    examination.forget(failed_cell)
    assert not (failed_cell.folder / "trials.jsonl").exists()


def test_another_exception_than_the_cells_is_no_pass_and_no_repetition(failed_cell, run_trials):
    causes = {"as it is": "SIGSEGV", "eager": "ValueError", "aot_eager": "SIGABRT", "aot_eager_decomp_partition": "SIGSEGV"}
    run_trials(lambda request: ended("fail_to_run", causes.get(request.variant.name, "KeyError")))
    found = examine(failed_cell)
    assert [row["ended"] for row in found.trials[:3]] == ["fail", "fail", "other"]
    assert "the last line" in found.trials[0]["last_lines"]


def test_a_trial_that_something_else_ended_is_tried_again(failed_cell, run_trials):
    ends = iter(["infra_error", "pass"])
    started = run_trials(lambda request: ended(next(ends, "pass")))
    assert examine(failed_cell).finding.layer == "flaky"
    assert started == ["as it is", "as it is", "as it is, again"]


@pytest.mark.parametrize(
    ("status", "layer"),
    [
        ("eager_1st_run_fail", "eager"),
        ("eager_1st_run_OOM", "unknown"),
        ("infra_error", "unknown"),
        ("model_fail_to_load", "unknown"),
    ],
)
@pytest.mark.parametrize("variant", ["as it is", "aot_eager_decomp_partition"])
def test_a_trial_that_says_nothing_of_its_variant_is_no_evidence(failed_cell, run_trials, status, layer, variant):
    run_trials(lambda request: ended(status if request.variant.name == variant else "fail_accuracy"))
    found = examine(failed_cell)
    assert found.finding.layer == (layer if variant == "as it is" else "unknown")
    assert layer == "eager" or not found.place


def test_a_condition_that_cannot_be_told_ends_no_search(failed_cell, run_trials):
    def end(request):
        if request.known is not None:
            return ended("pass")
        if request.variant.name == "without precision":
            return ended("eager_1st_run_OOM")
        return ended("pass" if request.variant.name == "eager" else "fail_accuracy")

    run_trials(end)
    amp = examination.replace(failed_cell, spec=spec(options={"precision": "amp"}))
    found = examine(amp).finding
    assert (found.layer, found.conditions) == ("aot_autograd", ())


def test_a_search_that_hangs_has_come_as_far_as_it_has(failed_cell, run_trials):
    def end(request):
        if request.known is None:
            return ended("pass" if request.variant.name in BELOW else "fail_accuracy")
        tried = {"module": "blocks.0", "module_class": "Block"}
        known = [{"module": "blocks", "ended": "forward"}, {"module": "blocks.0", "ended": "forward"}]
        return lost(*known, tried, status="timeout", cause="limit of 3 s")

    run_trials(end)
    assert examine(failed_cell).place["module"] == "blocks.0"


def test_outcomes_are_kept_until_the_end_and_only_for_the_same_measurement(failed_cell, run_trials):
    class Interrupted(Exception):
        pass

    def stop(request):
        if request.variant.name == "aot_eager_decomp_partition":
            raise Interrupted
        return ended("fail_accuracy")

    first = run_trials(stop)
    with pytest.raises(Interrupted):
        examine(failed_cell)
    with (failed_cell.folder / "trials.jsonl").open("a") as file:
        file.write('{"variant": "written ha')
    second = run_trials(stop)
    with pytest.raises(Interrupted):
        examine(failed_cell)
    assert (first, second) == (["as it is", "aot_eager_decomp_partition"], ["aot_eager_decomp_partition"])
    third = run_trials(stop)
    with pytest.raises(Interrupted):
        examine(examination.replace(failed_cell, measured_at="midnight"))
    assert third == first


def crash(failed_cell):
    """The failed_cell, of which a process died."""
    return examination.replace(failed_cell, cause="signal")


def searching(end):
    """A cell that crashes in AOTAutograd: `end` is of the search of modules."""

    def of_trial(request):
        if request.known is not None:
            return end(request)
        return ended("pass") if request.variant.name == "eager" else ended("fail_to_run", "SIGSEGV")

    return of_trial


def trying(module):
    return {"module": module, "module_class": "Conv2d"}


def test_a_module_that_kills_a_fresh_worker_as_the_cell_does_is_where_it_goes_wrong(failed_cell, run_trials):
    asked = []

    def end(request):
        asked.append((dict(request.known), request.cause))
        if request.known.get("head"):
            return ended("pass", module="head", direction="raised")
        return lost(
            *([] if "stem" in request.known else [trying("stem"), {"module": "stem", "ended": "pass"}]), trying("head")
        )

    run_trials(searching(end))
    found = examine(crash(failed_cell))
    assert found.place["module"] == "head"
    known = [{}, {"stem": "pass"}, {"stem": "pass", "head": "raised"}]
    assert asked == [(each, "signal") for each in known], "it is tried again in a worker that has tried nothing else"
    assert len({*failed_cell.logs.glob("*places*")}) == 3 and "the last line" in found.trials[-1]["last_lines"]


@pytest.mark.parametrize(("status", "cause"), [("timeout", None), ("OOM", "SIGKILL")])
def test_a_module_that_ends_otherwise_than_the_cell_is_no_place(status, cause, failed_cell, run_trials):
    def end(request):
        return ended("pass") if request.known else lost(trying("stem"), status=status, cause=cause)

    run_trials(searching(end))
    assert examine(examination.replace(failed_cell, cause="ValueError")).place["module"] is None


@pytest.mark.parametrize("status", ["fail_to_run", "timeout"])
def test_of_modules_that_lie_in_each_other_and_kill_their_workers_the_innermost_that_was_reached_is_told(
    status, failed_cell, run_trials
):
    names = [*(".".join("abcdefgh"[: depth + 1]) for depth in range(8)), "in eager"]

    def end(request):
        if request.known is None:
            return ended("pass") if request.variant.name == "eager" else ended(status, "SIGSEGV")
        if len(request.known) == len(names):
            return AttemptResult(result={"status": "pass"}, columns={"fails_in_eager": True}), Verdict("pass")
        return lost(trying(names[len(request.known)]), status=status)

    started = run_trials(end)
    place = examine(crash(failed_cell)).place
    is_hanging = status == "timeout"
    assert started.count("places") == (examination.HUNG_WORKERS if is_hanging else len(names) + 1)
    assert (place["module"], place["direction"]) == (names[3] if is_hanging else names[-2], "raised")
    assert place["fails_in_eager"] == (None if is_hanging else True)


def test_where_the_search_of_modules_is_survives_an_interruption(failed_cell, run_trials):
    class Interrupted(Exception):
        pass

    def stop(request):
        if "a" in request.known:
            raise Interrupted
        return lost(trying("a"))

    run_trials(searching(stop))
    with pytest.raises(Interrupted):
        examine(crash(failed_cell))
    asked = []

    def end(request):
        asked.append(request.known)
        return ended("pass", module="a", direction="raised")

    run_trials(searching(end))
    examine(crash(failed_cell))
    assert asked == [{"a": "raised"}]


def test_an_exception_of_a_worker_that_may_have_broken_its_memory_ends_no_search(failed_cell, run_trials):
    asked = []

    def end(request):
        asked.append(dict(request.known))
        if len(asked) == 1:
            details = [trying("conv"), {"module": "conv", "ended": "pass"}, trying("norm")]
            return AttemptResult(details=details, failure={"cause": "TypeError"}), Verdict("fail_to_run", "TypeError")
        return ended("pass")

    run_trials(searching(end))
    examine(crash(failed_cell))
    assert asked == [{}, {"conv": "pass"}]


def test_a_module_whose_worker_was_killed_from_outside_is_tried_again(failed_cell, run_trials):
    asked = []

    def end(request):
        asked.append(dict(request.known))
        return lost(trying("head"), status="infra_error") if len(asked) == 1 else ended("pass")

    run_trials(searching(end))
    assert examine(crash(failed_cell)).place["module"] is None
    assert asked == [{}, {}]


def test_a_worker_that_dies_before_it_comes_to_a_module_is_not_started_again(failed_cell, run_trials):
    started = run_trials(
        lambda request: lost() if request.known is not None else ended("pass" if request.variant.name in BELOW else "OOM")
    )
    assert examine(failed_cell).place["module"] is None
    assert started.count("places") == 1


def test_a_trial_whose_eager_runs_die_says_nothing_of_its_variant_and_is_tried_again(failed_cell, run_trials):
    ends = iter(["fail_to_run", "eager_1st_run_fail", "pass", "eager_2nd_run_fail"])
    started = run_trials(lambda request: ended(next(ends, "pass")))
    examine(failed_cell)
    assert started[:3] == ["as it is", *BELOW, *BELOW]


@pytest.mark.parametrize("stage", ["reference", "compile"])
def test_a_time_limit_says_something_of_a_variant_only_where_it_was_compiled(stage, failed_cell, run_trials):
    hung = AttemptResult(stage=stage), Verdict("timeout", "limit of 3 s")
    ends = iter([ended("fail_to_run", "SIGSEGV"), hung, hung])
    started = run_trials(lambda request: next(ends, ended("pass")))
    found = examine(failed_cell)
    if stage == "compile":
        assert found.trials[1]["ended"] == "other" and found.finding.layer != "unknown"
    else:
        assert (started, found.finding.layer, found.trials[1]["ended"]) == (["as it is", *BELOW, *BELOW], "unknown", "eager")


def test_a_cell_whose_eager_runs_die_is_eagers(failed_cell, run_trials):
    asked = []

    def end(request):
        asked.append((request.variant.name, request.cause, request.null_runs))
        return lost() if request.known is not None else ended("eager_1st_run_fail", "SIGSEGV")

    run_trials(end)
    found = examine(failed_cell)
    assert (found.finding.layer, found.trials[0]["ended"]) == ("eager", "eager")
    assert asked == [("as it is", None, True), ("as it is", None, True), ("places", "signal", True)]


def test_modules_are_searched_for_how_the_variant_fails_that_they_are_compiled_with(failed_cell, run_trials):
    asked = []

    def end(request):
        if request.known is not None:
            asked.append((request.variant.options, request.cause, request.null_runs))
            return ended("pass")
        below = {"eager": ended("pass"), "aot_eager": ended("fail_to_run", "RuntimeError")}
        return below.get(request.variant.name, ended("fail_to_run", "InductorError"))

    run_trials(end)
    examine(examination.replace(failed_cell, cause="InductorError"))
    assert asked == [({"backend": "aot_eager"}, "RuntimeError", False)]


@pytest.mark.parametrize(
    ("status", "cause", "looked_for"),
    [("fail_accuracy", "comparison", None), ("fail_to_run", "SIGBUS", "signal"), ("fail_to_run", "KeyError", "KeyError")],
)
def test_what_is_looked_for_is_why_the_cell_failed(status, cause, looked_for, tmp_path):
    row = {"accuracy_by_rule": status, "accuracy_cause": cause, "accuracy_stage": "run"}
    row |= {"accuracy_batch_size": 8, "accuracy_started_at": "noon"}
    run = RunOptions(cache=tmp_path)
    found = examination.failed_cell(cell(), row, ["accuracy"], run, None, tmp_path / "results", tmp_path / "a.log")
    assert found.cause == looked_for


def test_a_variant_changes_what_it_says_and_nothing_else():
    cell = spec(options={"inductor_config": {"max_fusion_size": 8, "cpp.simdlen": 4}, "training": True})
    changed = Variant("v", options={"backend": "eager"}, settings={"cpp.simdlen": 1}).of(cell)
    assert changed.options.inductor_config == {"max_fusion_size": 8, "cpp.simdlen": 1}
    assert (changed.options.backend, changed.options.training) == ("eager", True)
    assert cell.options.backend == "inductor"


def test_a_request_survives_json(failed_cell):
    request = examination.TrialRequest(
        failed_cell.spec, failed_cell.run, Variant("v", layer="lowerings"), 4, Path("kept"), {"a": "b"}
    )
    again = examination.TrialRequest.from_json(request.to_json())
    assert json.loads(again.to_json()) == json.loads(request.to_json())
    assert again.variant.variables["TORCH_BISECT_MAX"] == "-1"
