"""The status of every way that a measurement can end (protocol, section 4)."""

import ast
import itertools
import signal
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timmgate import PACKAGE_ROOT
from timmgate.core.checks import CHECKS
from timmgate.core.outcome import RETRYABLE, AttemptResult, Verdict
from timmgate.core.schemas import STATUSES
from timmgate.supervisor.classification import OWN_SIGNALS, classify

EAGER_1ST, EAGER_2ND = ("eager_1st_run_fail", "eager_1st_run_OOM"), ("eager_2nd_run_fail", "eager_2nd_run_OOM")
COMPILERS, OURS = ("fail_to_run", "OOM"), ("infra_error", "OOM")
BOTH = {"import": [OURS], "load": [("model_fail_to_load", "OOM")], "compile": [COMPILERS] * 2, "run": [COMPILERS] * 2}
WHOSE = {
    "accuracy": {
        **BOTH,
        "reference": [EAGER_1ST],
        "eager": [EAGER_1ST, EAGER_2ND],
        "compare": [OURS],
        "null_runs": [EAGER_2ND],
    },
    "performance": {
        **BOTH,
        "eager": [EAGER_1ST],
        "compare": [COMPILERS],
        "warmup": [COMPILERS],
        "queue": [OURS],
        "timing": [COMPILERS],
    },
}
"""By check and stage, for each visit the status of a failure there and of one for lack of memory."""

EVERY_STAGE = [
    (check, stage, visit, *words)
    for check, stages in WHOSE.items()
    for stage, visits in stages.items()
    for visit, words in enumerate(visits, start=1)
]


def exception(out_of_memory: bool, is_ours: bool = False) -> dict:
    failure = {"cause": "RuntimeError", "message": "no", "out_of_memory": out_of_memory, "is_ours": is_ours}
    return {"failure": failure, "returncode": 1}


FAILS, LACKS_MEMORY, OUTSIDE = "fails", "lacks memory", "outside"
ENDS = {
    "an exception": (exception(out_of_memory=False), FAILS),
    "an exception about memory": (exception(out_of_memory=True), LACKS_MEMORY),
    **{f"its own {number.name}": ({"returncode": -number}, FAILS) for number in OWN_SIGNALS},
    "SIGKILL by the kernel": ({"returncode": -signal.SIGKILL, "oom_killed": True}, LACKS_MEMORY),
    "our limit of memory": ({"returncode": None, "memory_bytes": 10, "peak_rss_bytes": 11}, LACKS_MEMORY),
    "SIGKILL by somebody": ({"returncode": -signal.SIGKILL}, OUTSIDE),
    "SIGTERM": ({"returncode": -signal.SIGTERM}, OUTSIDE),
    "exit code 0": ({"returncode": 0}, OUTSIDE),
    "exit code 3": ({"returncode": 3}, OUTSIDE),
    "a broken message": ({"returncode": 0, "supervisor_error": ("broken message", "not JSON")}, OUTSIDE),
    "a column that no table has": (exception(out_of_memory=False, is_ours=True), OUTSIDE),
    "our limit of time": ({"returncode": None}, "timeout"),
}
"""Every way to end without a result: what is seen of it, and whose it is."""


def ending(stage: str, visits: int = 1, check: str = "accuracy", **seen) -> AttemptResult:
    return AttemptResult(check=check, stage=stage, visits=Counter({stage: visits}), timeout_s=5.0, **seen)


@pytest.mark.parametrize(("how", "place"), list(itertools.product(ENDS, EVERY_STAGE)), ids=str)
def test_every_end_in_every_stage_of_every_check_has_its_status(how, place):
    check, stage, visit, fails, lacks_memory = place
    seen, whose = ENDS[how]
    expected = {FAILS: fails, LACKS_MEMORY: lacks_memory, OUTSIDE: "infra_error", "timeout": "timeout"}[whose]
    verdict = classify(ending(stage, visit, check, **seen))
    assert verdict.status == expected
    assert verdict.cause and verdict.message


def reported_stages(file: Path) -> set[str]:
    """The stages that a module of the worker reports."""
    calls = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    return {
        node.args[0].value
        for node in calls
        if isinstance(node.func, ast.Attribute) and node.func.attr == "stage" and isinstance(node.args[0], ast.Constant)
    }


@pytest.mark.parametrize("check", CHECKS)
def test_every_stage_that_a_worker_reports_is_in_the_record_of_its_check_and_classified_here(check):
    worker = PACKAGE_ROOT / "timmgate" / "worker"
    others = {f"{each}.py" for each in CHECKS if each != check}
    reported = set().union(*(reported_stages(file) for file in worker.glob("*.py") if file.name not in others))
    assert reported == {stage.name for stage in CHECKS[check].stages} == set(WHOSE[check])


def test_a_stage_that_nobody_knows_is_nobodys_fault():
    assert classify(ending("lunch", **exception(out_of_memory=False))).status == "infra_error"


def test_a_signal_of_its_own_is_the_cause():
    assert classify(ending("run", returncode=-signal.SIGSEGV)).cause == "SIGSEGV"


def passed(**columns) -> AttemptResult:
    result = {"status": "pass", "cause": None, "message": None}
    return ending("timing", check="performance", result=result, columns=columns)


def test_a_timed_output_that_is_wrong_fails_the_check():
    verdict = classify(passed(timed_output_ok=False, timed_output_margin=12.34))
    assert (verdict.status, verdict.cause) == ("fail_accuracy", "timed output")
    assert verdict.message == "the compiled output at the timed batch size is wrong: 12.3 times the limit"


@pytest.mark.parametrize("columns", [{"timed_output_ok": True}, {"timed_output_ok": None}, {}])
def test_a_timed_output_that_is_right_or_was_not_judged_changes_nothing(columns):
    assert classify(passed(**columns)) == Verdict("pass")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU, 63])
def test_any_other_signal_came_from_outside(number):
    verdict = classify(ending("compile", returncode=-number))
    assert verdict.status == "infra_error"
    assert verdict.cause == (number.name if isinstance(number, signal.Signals) else "signal 63")


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_an_exit_without_a_message_is_not_the_models_doing(code):
    verdict = classify(ending("run", returncode=code))
    assert (verdict.status, verdict.cause) == ("infra_error", f"exit code {code}")
    assert "without a result" in verdict.message


def test_the_limit_is_named_in_the_cause_of_a_timeout():
    verdict = classify(ending("compile", returncode=None))
    assert (verdict.status, verdict.cause) == ("timeout", "limit of 5 s")
    assert "not ended" in verdict.message


def test_a_kill_at_the_limit_is_a_timeout_although_the_kernels_counter_moved():
    assert classify(ending("compile", returncode=None, oom_killed=True)).status == "timeout"


@pytest.mark.parametrize("returncode", [None, 0, 1, -signal.SIGSEGV, -signal.SIGKILL])
def test_a_result_stands_whatever_the_process_does_afterwards(returncode):
    result = {"status": "fail_accuracy", "cause": "comparison", "message": "differs"}
    verdict = classify(ending("compare", result=result, returncode=returncode, supervisor_error=("broken message", "")))
    assert verdict == Verdict("fail_accuracy", "comparison", "differs")


@pytest.mark.parametrize("returncode", [None, 1, -signal.SIGABRT])
def test_a_reported_exception_stands_whatever_the_process_does_afterwards(returncode):
    failure = {"cause": "KeyError", "message": "'x'", "out_of_memory": False}
    assert classify(ending("load", failure=failure, returncode=returncode)) == Verdict(
        "model_fail_to_load", "KeyError", "'x'"
    )


def test_what_keeps_worker_and_supervisor_apart_is_worth_another_attempt():
    verdict = classify(ending("run", supervisor_error=("broken message", "not JSON")))
    assert verdict == Verdict("infra_error", "broken message", "not JSON")
    assert verdict.status in RETRYABLE


@given(
    place=st.sampled_from([(check, stage) for check, stages in WHOSE.items() for stage in stages]),
    visits=st.integers(1, 9),
    failure=st.none() | st.fixed_dictionaries({"cause": st.text(), "message": st.text(), "out_of_memory": st.booleans()}),
    supervisor_error=st.none() | st.tuples(st.text(), st.text()),
    returncode=st.none() | st.integers(-64, 255),
    oom_killed=st.booleans(),
)
def test_whatever_was_seen_there_is_one_of_the_status_words_a_cause_and_a_message(place, visits, **seen):
    check, stage = place
    verdict = classify(ending(stage, visits, check, **seen))
    assert verdict.status in STATUSES
    assert verdict.status not in ("pass", "fail_accuracy", "not_run"), "only a worker's own result says so"
    assert verdict.cause is not None
    assert verdict.message is not None
