"""The status of every way that a measurement can end (protocol, section 4)."""

import signal
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from timmgate.core.outcome import RETRYABLE, AttemptResult, Verdict
from timmgate.core.schemas import STAGES, STATUSES
from timmgate.supervisor.classification import OWN_SIGNALS, classify

OF_THE_MODEL = [
    ("load", 1, "model_fail_to_load", "OOM"),
    ("reference", 1, "eager_1st_run_fail", "eager_1st_run_OOM"),
    ("eager", 1, "eager_1st_run_fail", "eager_1st_run_OOM"),
    ("eager", 2, "eager_2nd_run_fail", "eager_2nd_run_OOM"),
    ("compile", 1, "fail_to_run", "OOM"),
    ("compile", 2, "fail_to_run", "OOM"),
    ("run", 1, "fail_to_run", "OOM"),
    ("import", 1, "infra_error", "OOM"),
    ("compare", 1, "infra_error", "OOM"),
]
"""Stage, how often it was entered, the status of a failure there and of one for want of memory."""

EVERY_STAGE = pytest.mark.parametrize(("stage", "visits", "fails", "out_of_memory"), OF_THE_MODEL)


def ending(stage: str, visits: int = 1, **seen) -> AttemptResult:
    return AttemptResult(stage=stage, visits=Counter({stage: visits}), timeout_s=5.0, **seen)


@EVERY_STAGE
def test_an_exception_has_the_status_of_its_stage(stage, visits, fails, out_of_memory):
    failure = {"cause": "RuntimeError", "message": "no", "out_of_memory": False}
    assert classify(ending(stage, visits, failure=failure, returncode=1)) == Verdict(fails, "RuntimeError", "no")


@EVERY_STAGE
def test_an_exception_for_want_of_memory_has_the_out_of_memory_status_of_its_stage(stage, visits, fails, out_of_memory):
    failure = {"cause": "OutOfMemoryError", "message": "too big", "out_of_memory": True}
    assert classify(ending(stage, visits, failure=failure, returncode=1)).status == out_of_memory


@EVERY_STAGE
@pytest.mark.parametrize("number", sorted(OWN_SIGNALS))
def test_a_signal_that_a_process_brings_upon_itself_counts_as_a_failure(stage, visits, fails, out_of_memory, number):
    verdict = classify(ending(stage, visits, returncode=-number))
    assert (verdict.status, verdict.cause) == (fails, number.name)


@EVERY_STAGE
def test_a_kill_by_the_kernel_for_want_of_memory_is_told_from_other_kills(stage, visits, fails, out_of_memory):
    by_kernel = classify(ending(stage, visits, returncode=-signal.SIGKILL, oom_killed=True))
    by_others = classify(ending(stage, visits, returncode=-signal.SIGKILL, oom_killed=False))
    assert (by_kernel.status, by_kernel.cause) == (out_of_memory, "SIGKILL")
    assert (by_others.status, by_others.cause) == ("infra_error", "SIGKILL")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGXCPU, 63])
def test_any_other_signal_came_from_outside(number):
    verdict = classify(ending("compile", returncode=-number))
    assert verdict.status == "infra_error"
    assert verdict.cause == (number.name if isinstance(number, signal.Signals) else "signal 63")


@pytest.mark.parametrize("code", [0, 1, 3, 255])
def test_an_exit_without_a_word_is_not_the_models_doing(code):
    verdict = classify(ending("run", returncode=code))
    assert (verdict.status, verdict.cause) == ("infra_error", f"exit code {code}")
    assert "run" in verdict.message


def test_the_limit_is_named_in_the_cause_of_a_timeout():
    verdict = classify(ending("compile", returncode=None))
    assert (verdict.status, verdict.cause) == ("timeout", "limit of 5 s")
    assert "compile" in verdict.message


def test_a_kill_at_the_limit_is_a_timeout_although_the_kernels_counter_moved():
    assert classify(ending("compile", returncode=None, oom_killed=True)).status == "timeout"


@pytest.mark.parametrize("returncode", [None, 0, 1, -signal.SIGSEGV, -signal.SIGKILL])
def test_a_result_stands_whatever_the_process_does_afterwards(returncode):
    result = {"status": "fail_accuracy", "cause": "comparison", "message": "differs"}
    verdict = classify(ending("compare", result=result, returncode=returncode, trouble=("broken message", "")))
    assert verdict == Verdict("fail_accuracy", "comparison", "differs")


@pytest.mark.parametrize("returncode", [None, 1, -signal.SIGABRT])
def test_a_reported_exception_stands_whatever_the_process_does_afterwards(returncode):
    failure = {"cause": "KeyError", "message": "'x'", "out_of_memory": False}
    assert classify(ending("load", failure=failure, returncode=returncode)) == Verdict(
        "model_fail_to_load", "KeyError", "'x'"
    )


def test_trouble_between_worker_and_supervisor_is_worth_another_attempt():
    verdict = classify(ending("run", trouble=("broken message", "not JSON")))
    assert verdict == Verdict("infra_error", "broken message", "not JSON")
    assert verdict.status in RETRYABLE


@given(
    stage=st.sampled_from(sorted({stage for stages in STAGES.values() for stage in stages})),
    visits=st.integers(1, 9),
    failure=st.none() | st.fixed_dictionaries({"cause": st.text(), "message": st.text(), "out_of_memory": st.booleans()}),
    trouble=st.none() | st.tuples(st.text(), st.text()),
    returncode=st.none() | st.integers(-64, 255),
    oom_killed=st.booleans(),
)
def test_whatever_was_seen_there_is_one_of_the_status_words_a_cause_and_a_message(stage, visits, **seen):
    verdict = classify(ending(stage, visits, **seen))
    assert verdict.status in STATUSES
    assert verdict.status not in ("pass", "fail_accuracy", "not_run"), "only a worker's own result says so"
    assert verdict.cause is not None
    assert verdict.message is not None
