"""Whatever becomes of a worker, the supervisor comes back with a status, a row, and no process left."""

import contextlib
import functools
import itertools
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from timm.utils.decay_batch import decay_batch_step

from conftest import PATIENCE_S
from leftovers import left_behind
from specs import spec
from timmgate import module_environment
from timmgate.core import files
from timmgate.core.checks import CHECKS
from timmgate.core.outcome import Outcome
from timmgate.core.protocol import Request, parse
from timmgate.core.redact import MESSAGE_CHARACTERS
from timmgate.core.run_options import RunOptions
from timmgate.supervisor import cell, monitor
from timmgate.supervisor.capped_log import CappedLog
from timmgate.supervisor.job import Job
from timmgate.supervisor.job import measure as measure_job
from timmgate.supervisor.journal import Journal
from timmgate.system import cgroups, cpu_topology, device_locks, gpus, process_tree
from timmgate.system.device_locks import SlotRequest
from timmgate.system.timing_lock import ActivityLock

LIMIT_S = 3
"""A limit that a worker reaches only on purpose: to start takes a tenth of it, on an idle machine."""

SUPERVISOR = """
import json
import sys
from pathlib import Path
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.supervisor.cell import supervise
from timmgate.supervisor.journal import Journal

folder = Path(sys.argv[2])
journal = Journal(folder / "attempts.jsonl")
with journal.kept():
    run = RunOptions(attempts=3, cache=folder / "cache")
    supervise([Spec.from_dict(json.loads(sys.argv[1]))], run, folder / "worker.log", journal)
    (folder / "row").touch()
"""
"""A supervising process: it measures a spec, and the file `row` stands for its row."""


def verdict(outcome: Outcome) -> tuple[str, str, str | None]:
    return outcome.verdict.status, outcome.result.stage, outcome.verdict.cause


ENDINGS = {
    "": ("pass", "null_runs", None),
    "fail_accuracy": ("fail_accuracy", "null_runs", "comparison"),
    "raise@import": ("infra_error", "import", "RuntimeError"),
    "raise@load": ("model_fail_to_load", "load", "RuntimeError"),
    "raise@reference": ("eager_1st_run_fail", "reference", "RuntimeError"),
    "raise@eager": ("eager_1st_run_fail", "eager", "RuntimeError"),
    "raise@eager2": ("eager_2nd_run_fail", "eager", "RuntimeError"),
    "raise@compile": ("fail_to_run", "compile", "RuntimeError"),
    "raise@run": ("fail_to_run", "run", "RuntimeError"),
    "raise@compile2": ("fail_to_run", "compile", "RuntimeError"),
    "raise@compare": ("infra_error", "compare", "RuntimeError"),
    "memory@load": ("OOM", "load", "MemoryError"),
    "memory@eager": ("eager_1st_run_OOM", "eager", "MemoryError"),
    "memory@eager2": ("eager_2nd_run_OOM", "eager", "MemoryError"),
    "memory@compile": ("OOM", "compile", "MemoryError"),
    "signal:SIGSEGV@load": ("model_fail_to_load", "load", "SIGSEGV"),
    "signal:SIGABRT@eager": ("eager_1st_run_fail", "eager", "SIGABRT"),
    "signal:SIGFPE@eager2": ("eager_2nd_run_fail", "eager", "SIGFPE"),
    "signal:SIGILL@compile": ("fail_to_run", "compile", "SIGILL"),
    "signal:SIGBUS@run": ("fail_to_run", "run", "SIGBUS"),
    "signal:SIGKILL@compile": ("infra_error", "compile", "SIGKILL"),
    "signal:SIGTERM@run": ("infra_error", "run", "SIGTERM"),
    "exit:3@compile": ("infra_error", "compile", "exit code 3"),
    "_exit:0@run": ("infra_error", "run", "exit code 0"),
    "broken@compile": ("infra_error", "compile", "broken message"),
    "strange@compile": ("infra_error", "compile", "broken message"),
    "half@run signal:SIGSEGV@run": ("fail_to_run", "run", "SIGSEGV"),
    "half@run _exit:0@run": ("infra_error", "run", "exit code 0"),
    "signal:SIGKILL@null_runs": ("infra_error", "null_runs", "SIGKILL"),
    "signal:SIGSEGV@end": ("pass", "null_runs", None),
    "raise@end": ("pass", "null_runs", None),
    "exit:4@end fail_accuracy": ("fail_accuracy", "null_runs", "comparison"),
    "garbage@load garbage@end": ("pass", "null_runs", None),
}
"""What the worker does, and the status, stage and cause that come of it."""


@pytest.mark.parametrize("words", ENDINGS)
def test_every_ending_has_its_status_stage_and_cause_and_is_a_row(words, measure):
    outcome = measure(words)
    assert verdict(outcome) == ENDINGS[words]
    row = measure.row(outcome)
    assert (row["accuracy"], row["accuracy_stage"], row["accuracy_cause"]) == ENDINGS[words]
    assert [leaf["leaf"] for leaf in row["details"]] == [leaf["leaf"] for leaf in outcome.result.details]


def test_a_row_says_how_it_ended_and_where_it_comes_from_although_the_worker_failed(measure):
    row = measure.row(measure("raise@compile"))
    not_reached = {"accuracy_run_s", "accuracy_compare_s", "accuracy_null_runs_s"}
    course = {name for name in row if name.startswith("accuracy_")} - not_reached
    provenance = {
        "host",
        "torch",
        "timm",
        "python",
        "sources",
        "snakemake",
        "command",
        "log",
        "suite",
        "options",
        "protocol",
    }
    assert {name for name in course | provenance if row[name] is None} == set()
    assert {name for name in not_reached if row[name] is not None} == set()


@pytest.mark.parametrize(("device", "driver"), [("cuda", "580.65.06"), ("cpu", None)])
def test_a_row_has_the_driver_of_the_gpu_that_it_was_measured_on(device, driver, measure, monkeypatch, tmp_path):
    (tmp_path / "version").write_text("580.65.06")
    monkeypatch.setattr(gpus, "DRIVER_FILES", {tmp_path / "version": re.compile(r"(\S+)")})
    measure = replace(measure, cell=replace(measure.cell, device=device))
    assert measure.row(measure())["driver"] == driver


def test_an_hour_in_which_the_supervisor_was_suspended_is_none_of_the_workers_time(measure, monkeypatch):
    looks = itertools.count()
    clock = SimpleNamespace(sleep=time.sleep, monotonic=lambda: time.monotonic() + 3600 * (next(looks) > 5))
    monkeypatch.setattr(monitor, "time", clock)
    assert verdict(measure()) == ("pass", "null_runs", None)


def test_a_hang_ends_at_the_limit(measure):
    outcome = measure("hang@compile", timeout=LIMIT_S)
    assert verdict(outcome) == ("timeout", "compile", "limit of 3 s")
    assert outcome.result.worker_s >= LIMIT_S


@pytest.mark.parametrize("words", ["stubborn@load hang@compile", "stubborn@load family@load hang@compile"])
def test_a_hang_of_what_will_not_end_by_itself_ends_at_the_limit(words, measure, limit_at_a_hang):
    assert verdict(measure(words)) == ("timeout", "compile", "limit of 300 s")


@pytest.mark.parametrize("found", ["pass", "fail_accuracy"])
@pytest.mark.parametrize(
    ("words", "limits", "limit"),
    [
        ("hang@null_runs", {}, "timeout: limit of 300 s"),
        ("allocate:600@null_runs sleep:600@null_runs", {"memory_bytes": 200_000_000}, "eager_2nd_run_OOM: limit of 0.2 GB"),
        ("signal:SIGSEGV@null_runs", {}, "eager_2nd_run_fail: SIGSEGV"),
    ],
)
def test_where_null_runs_reach_a_limit_or_die_the_dynamo_verdict_stands(
    words, limits, limit, found, measure, limit_at_a_hang
):
    accuracy, performance = measure.both(f"{words} {found}", **limits)
    row = measure.row(accuracy)
    assert (row["accuracy"], row["strict"], row["strict_error"]) == (found, None, limit)
    assert [leaf["leaf"] for leaf in row["details"]] == ["output.0", "output.1"]
    assert performance.verdict.status == "pass"


def test_where_a_later_seed_reaches_a_limit_the_dynamo_verdict_stands(measure, limit_at_a_hang):
    row = measure.row(measure("enter:compile@null_runs hang@null_runs"))
    assert (row["accuracy"], row["strict"], row["strict_error"]) == ("pass", None, "timeout: limit of 300 s")


@pytest.mark.parametrize(
    "words",
    ["family@load", "family@load raise@compile", "family@load signal:SIGKILL@run", "family@load broken@run hang@run"],
)
def test_no_process_outlives_its_worker_however_the_worker_ends(words, measure, fake_worker):
    start = time.monotonic()
    measure(words)  # which looks for survivors
    assert {entry.get("role") for entry in fake_worker.entries()} == {None, "sibling", "daemon"}
    assert time.monotonic() - start < PATIENCE_S, "children that keep the pipe open for ten minutes hold nothing up"


def test_children_of_the_supervising_process_that_are_not_the_workers_are_left_alone(measure):
    neighbour = subprocess.Popen(["sleep", "60"])
    try:
        measure("family@load")
        assert neighbour.poll() is None
    finally:
        neighbour.kill()
        neighbour.wait()


@pytest.mark.parametrize(("words", "status"), [("hang@end", "pass"), ("hang@end fail_accuracy", "fail_accuracy")])
def test_a_worker_that_hangs_after_its_result_is_not_waited_for_and_the_result_stands(words, status, measure, monkeypatch):
    monkeypatch.setattr(monitor, "TEARDOWN_S", 0.5)
    start = time.monotonic()
    outcome = measure(words)
    assert outcome.verdict.status == status
    assert time.monotonic() - start < PATIENCE_S


def test_a_worker_that_hangs_after_it_reported_an_exception_is_not_waited_for(measure, monkeypatch):
    monkeypatch.setattr(monitor, "TEARDOWN_S", 0.5)
    start = time.monotonic()
    outcome = measure("linger@load raise@compile")
    assert verdict(outcome) == ("fail_to_run", "compile", "RuntimeError")
    assert time.monotonic() - start < PATIENCE_S


def test_a_worker_that_cannot_be_started_gives_a_row_too(measure, monkeypatch):
    monkeypatch.setattr(cell, "worker_program", lambda build: ["/nonexistent/python", "-m", "worker"])
    outcome = measure(attempts=2)
    assert verdict(outcome) == ("infra_error", "import", "FileNotFoundError")
    assert outcome.attempt == 2
    assert "/nonexistent/python" in outcome.verdict.message
    assert measure.row(outcome)["accuracy"] == "infra_error"


def test_more_messages_than_a_pipe_holds_all_arrive(measure):
    outcome = measure("chat:20000@compare")
    assert outcome.verdict.status == "pass"
    leaves = [leaf["leaf"] for leaf in outcome.result.details]
    assert leaves == [*(f"gradient.{number}" for number in range(20000)), "output.0", "output.1"]


def test_messages_that_were_sent_just_before_a_crash_all_arrive(measure):
    outcome = measure("chat:300@compare signal:SIGKILL@compare")
    assert len(outcome.result.details) == 300


@pytest.mark.parametrize("words", ["signal:SIGSEGV@compile", "raise@compile"])
def test_what_was_known_before_a_crash_is_in_the_row(words, measure):
    row = measure.row(measure(words))
    assert (row["device_name"], row["batch_size"], row["input_size"]) == ("a fake", 8, [3, 4, 4])
    assert row["leaves"] is None


def test_an_error_message_of_any_text_is_kept_in_row_and_log(measure):
    message = measure.row(measure("oddity@load"))["accuracy_message"]
    assert message.startswith('first line\nsecond line\twith a tab, a "quote", a byte ? of no encoding')
    assert message in measure.log.read_bytes().decode()


def test_a_long_error_message_is_cut_in_the_row_and_whole_in_the_log(measure):
    message = "very%long%" * 1000
    row = measure.row(measure(f"raise:{message}@run"))
    assert len(row["accuracy_message"]) == MESSAGE_CHARACTERS
    assert message.replace("%", " ").strip() in measure.log.read_text()


def test_an_infrastructure_error_is_tried_again_until_it_is_cured(measure, fake_worker):
    outcome = measure("flaky:2@compile", attempts=5)
    assert outcome.verdict.status == "pass"
    assert outcome.attempt == 3
    assert len(fake_worker.starts()) == 3


def test_an_infrastructure_error_that_stays_is_tried_as_often_as_allowed(measure, fake_worker):
    outcome = measure("signal:SIGKILL@compile", attempts=3)
    assert verdict(outcome) == ("infra_error", "compile", "SIGKILL")
    assert outcome.attempt == 3
    assert len(fake_worker.starts()) == 3


@pytest.mark.parametrize("words", ["", "fail_accuracy", "raise@load", "memory@compile", "signal:SIGSEGV@run", "hang@run"])
def test_what_the_model_caused_is_not_tried_again(words, measure, fake_worker):
    outcome = measure(words, timeout=LIMIT_S, attempts=3)
    assert outcome.attempt == 1
    assert len(fake_worker.starts()) == 1


def test_an_attempt_starts_afresh_without_what_the_one_before_reported(measure):
    outcome = measure("chat:5@load flaky:1@compile", attempts=2)
    assert outcome.verdict.status == "pass"
    assert len(outcome.result.details) == 5 + 2
    assert outcome.result.visits["load"] == 1


def test_the_row_has_the_number_of_the_last_attempt_and_the_time_of_all(measure):
    row = measure.row(measure("sleep:0.4@load flaky:1@compile", attempts=2))
    assert row["accuracy_attempt"] == 2
    assert row["accuracy_worker_s"] >= 0.4
    assert row["accuracy_wall_s"] >= row["accuracy_worker_s"] + 0.4
    assert 0 < row["accuracy_cpu_s"] < row["accuracy_wall_s"]


@pytest.fixture
def counter(tmp_path, monkeypatch) -> Path:
    """The file in which the kernel counts what it killed for lack of memory: nothing yet."""
    path = tmp_path / "memory.events"
    path.write_text("low 0\noom 0\noom_kill 0\n")
    monkeypatch.setattr(cgroups, "_groups", lambda: iter([tmp_path / "absent", tmp_path]))
    return path


def test_a_kill_by_the_kernel_for_lack_of_memory_shows_in_its_counter(measure, counter):
    by_kernel = measure(f"oom:{counter}@compile")
    assert verdict(by_kernel) == ("OOM", "compile", "SIGKILL")
    by_someone = measure("signal:SIGKILL@compile")  # the counter stays at 1
    assert verdict(by_someone) == ("infra_error", "compile", "SIGKILL")


def test_a_killed_child_is_a_lack_of_memory_only_where_the_failure_says_so(measure, counter):
    of_compiler = measure(f"count:{counter}@load raise:Killed%signal%terminated%program%cc1plus@compile")
    assert verdict(of_compiler) == ("OOM", "compile", "RuntimeError")
    counter.write_text("oom_kill 0\n")
    of_another = measure(f"count:{counter}@load raise:no%such%kernel@compile")
    assert verdict(of_another) == ("fail_to_run", "compile", "RuntimeError")


def test_what_the_kernel_ended_beside_others_is_tried_again_with_all_cores(measure, fake_worker, counter, monkeypatch):
    shared = [True]
    monkeypatch.setattr(device_locks.SlotLease, "was_shared", lambda lease: shared.pop() if shared else False)
    again = measure(f"oom_once:{counter}@compile")
    assert (again.verdict.status, again.attempt) == ("pass", 2)
    assert len(fake_worker.starts()) == 2


@pytest.mark.parametrize("known", [True, False], ids=["lost", "not lost"])
def test_a_cell_that_was_lost_with_its_machine_compiles_into_an_empty_cache(known, measure):
    (cache := measure.folder / "cache").mkdir()
    (cache / "half.so").touch()
    if known:
        Journal(measure.journal, 0, {"accuracy": measure.cell.spec("accuracy").identity()}).began("accuracy")
    measure.behave()
    file = measure.folder / "accuracy.parquet"
    job = Job(cell=measure.cell, files={"accuracy": file}, run=measure.run_options(), log=measure.log, attempts=2)
    measure_job(job, lambda *_: None)
    assert (cache / "half.so").exists() is not known


def test_stage_seconds_add_up_over_visits_to_no_more_than_the_time_from_outside(measure):
    outcome = measure("sleep:0.3@eager sleep:0.3@eager2 sleep:0.3@run2")
    seconds = outcome.result.stage_s
    assert list(seconds) == [stage.name for stage in CHECKS["accuracy"].stages]
    assert seconds["eager"] > 0.4 and seconds["run"] > 0.2
    assert 0.9 <= sum(seconds.values()) <= outcome.wall_s


def test_seconds_after_the_result_belong_to_no_stage(measure):
    outcome = measure("sleep:0.5@end")
    assert outcome.wall_s > sum(outcome.result.stage_s.values()) + 0.3


def test_the_log_has_the_command_the_output_and_the_verdict_of_every_attempt(measure):
    measure("garbage@load flaky:1@compile", attempts=2)
    text = measure.log.read_text(errors="replace")
    assert (
        text.count(
            shlex.join(cell.worker_command(Request([measure.cell.spec("accuracy")], measure.run_options(attempts=2))))
        )
        == 2
    )
    assert text.count("not for you") == 4
    assert (
        text.index("attempt 1:")
        < text.index("accuracy: infra_error SIGKILL")
        < text.index("attempt 2:")
        < text.index("\naccuracy: pass\n")
    )


def test_the_log_has_the_traceback_of_an_exception(measure):
    measure("raise:it%broke@compile")
    assert "in raise_error" in measure.log.read_text()
    assert "RuntimeError: it broke" in measure.log.read_text()


def test_the_log_says_where_a_worker_hung(measure, limit_at_a_hang):
    measure("stubborn@load hang@compile")
    assert "in hang_here" in measure.log.read_text()


def test_a_new_measurement_begins_a_new_log(measure):
    measure("raise:the%first@load")
    measure("raise:the%second@load")
    assert "the first" not in measure.log.read_text()


def test_the_worker_is_told_what_to_measure_and_how(measure, fake_worker):
    measure()
    (request,) = fake_worker.requests()
    assert list(request.specs) == [measure.cell.spec("accuracy")]
    assert request.run == measure.run_options()


def test_the_command_in_the_row_repeats_the_measurement_in_a_shell(measure, fake_worker, tmp_path):
    row = measure.row(measure("fail_accuracy"))
    environment = {key: value for key, value in os.environ.items() if key not in ("TIMMGATE_WORKER", "PYTHONPATH")}
    done = subprocess.run(row["command"], shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kind, content, _ = parse(done.stdout.splitlines()[-1].encode())
    assert (kind, content["status"]) == ("result", "fail_accuracy")
    first, second = fake_worker.requests()
    assert second.specs == first.specs


def test_both_checks_of_a_cell_are_done_by_one_process_and_each_has_its_own_times(measure, fake_worker):
    accuracy, performance = measure.both("sleep:0.5@compile sleep:0.2@performance.warmup")
    assert len(fake_worker.starts()) == 1
    assert accuracy.verdict.status == performance.verdict.status == "pass"
    assert len(accuracy.result.details) == 2
    assert len(performance.result.details) == 10
    assert accuracy.wall_s > accuracy.result.worker_s > 0.4
    assert performance.wall_s > performance.result.stage_s["warmup"] > 0
    assert performance.result.started_at > accuracy.result.started_at
    assert set(performance.result.stage_s) == {stage.name for stage in CHECKS["performance"].stages}


@pytest.mark.parametrize("words", ["raise@compile", "signal:SIGSEGV@run", "hang@compile", "signal:SIGKILL@end"])
def test_a_check_whose_predecessor_took_the_process_with_it_has_a_process_of_its_own(
    words, measure, fake_worker, limit_at_a_hang
):
    accuracy, performance = measure.both(words)
    assert (accuracy.verdict.status == "pass") is words.endswith("@end")
    assert performance.verdict.status == "pass"
    assert len(fake_worker.starts()) == 2


def test_a_failure_of_the_second_check_leaves_the_result_of_the_first(measure, fake_worker):
    accuracy, performance = measure.both("signal:SIGSEGV@performance.timing")
    assert accuracy.verdict.status == "pass" and len(accuracy.result.details) == 2
    assert verdict(performance) == ("fail_to_run", "timing", "SIGSEGV")
    assert len(fake_worker.starts()) == 1


def test_each_check_has_a_limit_of_its_own(measure):
    accuracy, performance = measure.both("sleep:3@compile sleep:3@performance.compile", timeout=5.5)
    assert accuracy.verdict.status == performance.verdict.status == "pass"


def test_a_timing_that_runs_out_of_memory_is_tried_with_smaller_batches(measure, fake_worker):
    accuracy, performance = measure.both("fits:5@performance.run")
    assert accuracy.attempt == 1
    assert performance.verdict.status == "pass"
    assert performance.result.columns["batch_size"] == 4
    assert performance.attempt == 3, "with 8, 6 and 4 images"


def test_a_timing_that_never_fits_is_out_of_memory(measure):
    _, performance = measure.both("fits:0@performance.run")
    assert verdict(performance) == ("OOM", "run", "MemoryError")
    assert performance.result.columns["batch_size"] == 1


def test_in_training_a_batch_has_two_images_at_least(measure):
    measure = replace(measure, cell=replace(measure.cell, options=replace(measure.cell.options, training=True)))
    _, performance = measure.both("fits:0@performance.run")
    assert verdict(performance) == ("OOM", "run", "MemoryError")
    assert performance.result.columns["batch_size"] == 2


def test_batch_sizes_fall_as_timms_do():
    assert [cell.next_batch_size(size) for size in range(1, 300)] == [decay_batch_step(size) for size in range(1, 300)]


def test_no_worker_starts_while_another_measurement_is_timed(measure, fake_worker):
    """The device is taken by another process, which says when it is about to give it back."""
    code = """
import time
from timmgate.system.timing_lock import exclusive_device
with exclusive_device("cpu"):
    print(flush=True)
    time.sleep(1.5)
    print(time.monotonic(), flush=True)
"""
    other = subprocess.Popen([sys.executable, "-c", code], env=module_environment(), stdout=subprocess.PIPE)
    other.stdout.readline()
    outcome = measure("tick:0.01@load")
    freed, _ = other.communicate()
    (tick,) = (entry["at"] for entry in fake_worker.entries() if "tick" in entry)
    assert tick > float(freed)
    assert outcome.verdict.status == "pass"


def test_a_cell_that_takes_too_much_memory_is_ended_and_out_of_memory(measure):
    outcome = measure("allocate:600@eager2 hang@eager2", memory_bytes=200_000_000)
    assert verdict(outcome) == ("eager_2nd_run_OOM", "eager", "limit of 0.2 GB")
    assert 2e8 < outcome.result.peak_rss_bytes < 1e9
    assert measure.row(outcome)["accuracy_peak_rss_bytes"] == outcome.result.peak_rss_bytes


def test_the_memory_of_all_processes_of_a_worker_counts(measure):
    assert measure("sleep:1@compile", memory_bytes=20_000_000).verdict.status == "pass"
    status, _, cause = verdict(measure("family@load hang@compile", memory_bytes=20_000_000))  # whichever stage it is seen in
    assert (status, cause) == ("OOM", "limit of 0.02 GB")


def test_a_hung_process_that_cannot_be_killed_is_named_in_the_row(measure, fake_worker, limit_at_a_hang, monkeypatch):
    kill_all = process_tree.kill_all
    monkeypatch.setattr(process_tree, "kill_all", lambda worker, others: kill_all(worker, others) or (4242,))
    outcome = measure("hang@compile")
    assert outcome.verdict.message == "it had not ended; process 4242 could not be killed"


def test_a_process_that_cannot_be_killed_is_known_to_whoever_comes_next(measure, limit_at_a_hang, monkeypatch):
    kill_all = process_tree.kill_all
    with contextlib.closing(ActivityLock("cpu")) as share:
        process = subprocess.Popen(["sleep", "600"], pass_fds=share.filenos)
    with process:
        monkeypatch.setattr(process_tree, "kill_all", lambda worker, others: kill_all(worker, others) or (process.pid,))
        measure("hang@compile")
        assert device_locks.stuck("cpu") == {"activity": process.pid}
        process.kill()
    assert device_locks.stuck("cpu") == {}


def test_a_worker_with_more_threads_than_there_are_cores_gets_all_of_them():
    cores = tuple(cpu_topology.available())
    assert cell.slot_request("cpu", RunOptions(threads=10_000)) == SlotRequest(("cpu",), cores, len(cores))


@pytest.mark.skipif(len(cpu_topology.available()) < 2, reason="needs two cores")
def test_a_worker_runs_on_the_cores_of_its_lane_and_the_supervisor_keeps_its_own(measure, fake_worker, monkeypatch):
    cores = cpu_topology.available()
    monkeypatch.setattr(cpu_topology, "lanes", lambda wanted: [(core,) for core in cores[: int(wanted)]])
    request = cell.slot_request("cpu", RunOptions(timing_lanes=2))
    assert request == SlotRequest(("cpu:0", "cpu:1"), (0,), cores=((cores[0],), (cores[1],)))
    with contextlib.closing(device_locks.lease(request)) as neighbour:
        (outcome,) = measure.checks("", "performance", timing_lanes=2, threads=1)
    assert cell.slot_request("cpu", RunOptions(timing_lanes=2, threads=2)).devices == ("cpu",), "a lane has fewer cores"
    (start,) = fake_worker.starts()
    (free,) = {"cpu:0", "cpu:1"} - {neighbour.device}
    number = int(free.removeprefix("cpu:"))
    assert start["cores"] == [cores[number]]
    assert fake_worker.requests()[0].device_number == number
    assert sorted(os.sched_getaffinity(0)) == sorted(cores)
    assert outcome.result.columns["timing_lanes"] == 2


def test_a_clock_that_jumps_changes_neither_limits_nor_durations(measure, monkeypatch):
    jumps = itertools.count()
    monkeypatch.setattr(time, "time", lambda: next(jumps) * 1e6)
    monkeypatch.setattr(time, "time_ns", lambda: next(jumps) * 10**15)
    outcome = measure("sleep:0.3@compile", timeout=PATIENCE_S)
    assert outcome.verdict.status == "pass"
    assert 0.3 < outcome.wall_s < PATIENCE_S


def test_what_an_earlier_supervisor_left_behind_is_killed_first(measure):
    leftover = left_behind(process_tree.mark().split()[2])
    measure()
    assert leftover.wait(PATIENCE_S) == -signal.SIGKILL


@pytest.mark.parametrize("lost", [1, 2])
def test_attempts_that_left_only_a_trace_count(lost, measure, fake_worker):
    for _ in range(lost):
        Journal(measure.journal).began("accuracy")
    outcome = measure("", attempts=2)
    if lost == 1:
        assert (outcome.verdict.status, outcome.attempt) == ("pass", 2)
    else:
        assert (verdict(outcome), outcome.attempt) == (("infra_error", None, "lost"), 2)
        assert fake_worker.starts() == []


def test_a_log_that_grows_without_end_is_cut_and_the_worker_not_held_up(measure, monkeypatch):
    monkeypatch.setattr("timmgate.supervisor.cell.CappedLog", functools.partial(CappedLog, half_bytes=10_000))
    outcome = measure("chatter:2000000@load raise@compile")
    assert outcome.verdict.status == "fail_to_run"
    assert measure.log.stat().st_size < 30_000
    text = measure.log.read_text()
    assert "attempt 1:" in text[:1000]
    assert "in raise_error" in text[-3000:], "the end is kept"


def test_secrets_of_the_environment_are_in_no_row(measure, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    row = measure.row(measure("raise:denied%for%hf_0123456789abcdef@load"))
    assert row["accuracy_message"] == "denied for <HF_TOKEN>"
    outcome = measure()
    outcome.result.columns["reference_error"] = "denied for hf_0123456789abcdef"
    outcome.result.details[0]["message"] = "hf_0123456789abcdef"
    row = measure.row(outcome)
    assert row["reference_error"] == "denied for <HF_TOKEN>"
    assert "hf_0123456789abcdef" not in str(row)


@pytest.fixture
def supervisor(fake_worker, tmp_path):
    """Start a supervising process over a fake worker; it is killed at the end."""
    started = []

    def start(words: str) -> subprocess.Popen:
        fake_worker.behaviours = {"*": words}
        environment = {**module_environment(), **fake_worker.environment}
        command = [sys.executable, "-c", SUPERVISOR, spec().to_json(), str(tmp_path)]
        started.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_supervisor_that_is_asked_to_end_kills_everything_and_writes_no_row(
    number, code, supervisor, fake_worker, tmp_path
):
    process = supervisor("stubborn@load family@load hang@compile")
    fake_worker.wait_for_start(3)
    process.send_signal(number)
    assert process.wait(PATIENCE_S) == code
    assert fake_worker.alive() == []
    assert len(fake_worker.starts()) == 1
    assert not (tmp_path / "row").exists()


def test_a_supervisor_that_is_asked_impatiently_still_cleans_up(supervisor, fake_worker):
    process = supervisor("stubborn@load family@load hang@compile")
    fake_worker.wait_for_start(3)
    for _ in range(50):
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        time.sleep(0.001)
    assert process.wait(PATIENCE_S) != 0
    assert fake_worker.alive() == []


def test_a_supervisor_under_nohup_ignores_the_hangup(fake_worker, supervisor, tmp_path):
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does; the child inherits it
    try:
        process = supervisor("sleep:0.5@compile")
    finally:
        signal.signal(signal.SIGHUP, previous)
    fake_worker.wait_for_start(1)
    process.send_signal(signal.SIGHUP)
    assert process.wait(PATIENCE_S) == 0
    assert (tmp_path / "row").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel must kill the worker")
def test_no_worker_outlives_a_killed_supervisor(supervisor, fake_worker):
    process = supervisor("stubborn@load hang@compile")
    fake_worker.wait_for_start(1)
    process.kill()
    fake_worker.wait_for_end()


def test_a_process_that_is_asked_to_end_while_it_writes_leaves_no_file(tmp_path):
    def write_and_be_asked(scratch: Path) -> None:
        scratch.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as end, process_tree.interruptible():
        files.write_atomically(tmp_path / "row", write_and_be_asked)
    assert end.value.code == 143
    assert list(tmp_path.iterdir()) == []


def test_signal_handlers_are_as_they_were_after_a_measurement(measure):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    measure()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before


def test_no_file_descriptor_stays_open_after_a_measurement(measure):
    measure()
    before = psutil.Process().num_fds()
    for words in ("", "signal:SIGKILL@load", "family@load"):
        measure(words)
    assert psutil.Process().num_fds() == before


def test_a_device_that_does_not_answer_is_left_to_others(measure, fake_worker):
    measure = replace(measure, cell=replace(measure.cell, device="acme"))
    outcome = measure("raise_at_first:2@import", devices=3, attempts=3)
    assert outcome.verdict.status == "pass"
    assert {request.device_number for request in fake_worker.requests()} == {0, 1, 2}


@pytest.mark.parametrize(("cores", "expected"), [((), ()), (((0,), (1,), (2,)), ((1,),))])
def test_a_part_of_the_devices_keeps_its_cores(cores, expected):
    request = SlotRequest(("cpu:0", "cpu:1", "cpu:2"), (0,), cores=cores)
    assert request.of("cpu:1") == SlotRequest(("cpu:1",), (0,), cores=expected)
    assert request.without("cpu:1").devices == ("cpu:0", "cpu:2")
