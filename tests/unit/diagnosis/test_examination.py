"""One cell from its row to a finding, with trials that are made up."""

import json
from pathlib import Path

import pytest

from specs import spec
from timmgate.core.diagnosis import Variant
from timmgate.core.outcome import AttemptResult, Verdict
from timmgate.core.run_options import RunOptions
from timmgate.diagnosis import examination
from timmgate.diagnosis.examination import Patient, examine

BELOW = ("aot_eager_decomp_partition",)


@pytest.fixture
def patient(tmp_path):
    run = RunOptions(cache=tmp_path / "cache")
    return Patient(spec(), 8, run, tmp_path / "results", tmp_path / "logs", measured_at="noon")


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


def test_a_finding_comes_with_its_trials_and_place(patient, run_trials):
    def end(request):
        if request.known is not None:
            (request.kept / "graph").mkdir(parents=True)
            (request.kept / "graph" / "graph.py").write_text("the script")
            graph = {"graph": "aten.addmm.default", "graph_operators": 1}
            return ended("pass", module="head", module_class="Linear", direction="forward", **graph)
        return ended("pass" if request.variant.name in BELOW else "fail_accuracy", "comparison")

    run_trials(end)
    found = examine(patient)
    assert found.finding.layer == "inductor"
    module = {"module": "head", "module_class": "Linear", "direction": "forward"}
    assert found.place == {**module, "graph": "aten.addmm.default", "graph_operators": 1}
    assert found.graph_script.is_relative_to(patient.folder) and found.graph_script.read_text() == "the script"
    assert [row["number"] for row in found.trials] == list(range(len(found.trials)))
    assert found.trials[0]["ended"] == "fail"
    assert found.trials[1]["ended"] == "pass"
    assert all(Path(row["log"]).is_file() for row in found.trials)
    assert not (patient.folder / "trials.jsonl").exists()


def test_another_exception_than_the_cells_is_no_pass_and_no_repetition(patient, run_trials):
    causes = {"as it is": "SIGSEGV", "eager": "ValueError", "aot_eager": "SIGSEGV", "aot_eager_decomp_partition": "SIGSEGV"}
    run_trials(lambda request: ended("fail_to_run", causes.get(request.variant.name, "KeyError")))
    found = examine(patient)
    assert [row["ended"] for row in found.trials[:3]] == ["fail", "fail", "other"]
    assert "the last line" in found.trials[0]["last_lines"]


def test_a_trial_that_something_else_ended_is_tried_again(patient, run_trials):
    ends = iter(["infra_error", "pass"])
    started = run_trials(lambda request: ended(next(ends, "pass")))
    assert examine(patient).finding.layer == "flaky"
    assert started == ["as it is", "as it is", "as it is, again"]


def test_outcomes_are_kept_until_the_end_and_only_for_the_same_measurement(patient, run_trials):
    class Interrupted(Exception):
        pass

    def stop(request):
        if request.variant.name == "aot_eager_decomp_partition":
            raise Interrupted
        return ended("fail_accuracy")

    first = run_trials(stop)
    with pytest.raises(Interrupted):
        examine(patient)
    with (patient.folder / "trials.jsonl").open("a") as file:
        file.write('{"variant": "written ha')
    second = run_trials(stop)
    with pytest.raises(Interrupted):
        examine(patient)
    assert (first, second) == (["as it is", "aot_eager_decomp_partition"], ["aot_eager_decomp_partition"])
    third = run_trials(stop)
    with pytest.raises(Interrupted):
        examine(examination.replace(patient, measured_at="midnight"))
    assert third == first


def test_a_module_that_kills_the_worker_is_where_it_goes_wrong(patient, run_trials):
    asked = []

    def end(request):
        if request.known is None:
            return ended("pass" if request.variant.name == "eager" else "fail_to_run", None)
        asked.append(request.known)
        if len(asked) == 1:
            attempt = AttemptResult(details=[{"module": "stem"}, {"module": "stem", "ended": "pass"}, {"module": "head"}])
            return attempt, Verdict("fail_to_run", "SIGSEGV")
        return ended("pass", module="head", direction="raised")

    run_trials(end)
    assert examine(patient).place["module"] == "head"
    assert asked == [{}, {"stem": "pass", "head": "raised"}]


def test_a_variant_changes_what_it_says_and_nothing_else():
    cell = spec(options={"inductor_config": {"max_fusion_size": 8, "cpp.simdlen": 4}, "training": True})
    changed = Variant("v", options={"backend": "eager"}, settings={"cpp.simdlen": 1}).of(cell)
    assert changed.options.inductor_config == {"max_fusion_size": 8, "cpp.simdlen": 1}
    assert (changed.options.backend, changed.options.training) == ("eager", True)
    assert cell.options.backend == "inductor"


def test_a_request_survives_json(patient):
    request = examination.TrialRequest(
        patient.spec, patient.run, Variant("v", layer="lowerings"), 4, Path("kept"), {"a": "b"}
    )
    again = examination.TrialRequest.from_json(request.to_json())
    assert json.loads(again.to_json()) == json.loads(request.to_json())
    assert again.variant.variables["TORCH_BISECT_MAX"] == "-1"
