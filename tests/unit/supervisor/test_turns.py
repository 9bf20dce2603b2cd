"""Cells that are timed in turns."""

import contextlib
from dataclasses import replace
from operator import itemgetter

import pytest

from timmgate.core.protocol import Request
from timmgate.core.run_options import RunOptions
from timmgate.supervisor import fresh_process, turns
from timmgate.supervisor.cell import slot_request
from timmgate.system import device_locks


def test_all_turns_are_on_one_device_whichever_is_free(measure, fake_worker, tmp_path):
    measure.behave()
    specs = [replace(spec, device="acme") for spec in measure.specs_of("old", "new")]
    run = RunOptions(processes=3, devices=2, jobs_per_gpu=1, cache=tmp_path / "cache")
    measured = turns.measure(specs, [run, run], None, tmp_path / "log")
    with contextlib.closing(device_locks.lease(slot_request("acme", run))) as neighbour:
        first = next(measured)
    assert neighbour.device == "acme:0"  # which is the emptiest from here on
    assert [outcome.verdict.status for *_, outcome in (first, *measured)] == ["pass"] * 6
    assert {request.device_number for request in fake_worker.requests()} == {1}


@pytest.fixture
def in_three_turns(measure, tmp_path):
    """Times a cell by two builds, whose workers behave as the words say."""

    def measured(words, **limits):
        measure.behave(words)
        run = measure.run_options(processes=3, **limits)
        return list(turns.measure(measure.specs_of("old", "new"), [run, run], None, tmp_path / "log"))

    return measured


def test_in_every_other_turn_the_second_build_begins(in_three_turns, fake_worker):
    measured = in_three_turns("tick:0.05@performance.timing")
    assert [(turn, side) for turn, side, _ in measured] == [(turn, side) for turn in range(3) for side in (0, 1)]
    builds = {start["pid"]: Request.from_json(start["request"]).specs[0].build for start in fake_worker.starts()}
    ticks = sorted((entry for entry in fake_worker.entries() if "tick" in entry), key=itemgetter("at"))
    pids = dict.fromkeys(map(itemgetter("pid"), ticks))
    assert [builds[pid] for pid in pids] == ["old", "new", "new", "old", "old", "new"]


@pytest.mark.parametrize("words", ["", "raise_at_first:2@performance.timing"])
def test_each_may_have_half_of_the_memory_side_by_side_and_one_after_the_other(words, in_three_turns, fake_worker):
    assert len(in_three_turns(words, memory_bytes=4 * 10**9)) == 6
    assert {request.run.memory_bytes for request in fake_worker.requests()} == {2 * 10**9}


def test_what_cannot_run_side_by_side_runs_one_after_the_other(in_three_turns, fake_worker):
    measured = in_three_turns("raise_at_first:2@performance.timing")
    assert [outcome.verdict.status for *_, outcome in measured] == ["pass"] * 6
    assert [side for _, side, _ in measured] == [0, 1, 1, 0, 0, 1]
    assert [request.turns is None for request in fake_worker.requests()] == [False] * 2 + [True] * 6
    assert "compiled_ratio" not in measured[0][2].result.columns


def test_a_device_that_is_gone_is_replaced_by_another(measure, tmp_path):
    measure.behave()
    spec = replace(measure.cell, device="acme").spec("performance")
    outcome = fresh_process.once(spec, RunOptions(cache=tmp_path / "cache"), None, tmp_path / "log", device="acme:7")
    assert outcome.verdict.status == "pass"
