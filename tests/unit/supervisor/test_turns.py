"""Cells that are timed in turns."""

import contextlib
from dataclasses import replace

from timmgate.core.run_options import RunOptions
from timmgate.supervisor import turns
from timmgate.supervisor.cell import slot_request
from timmgate.system import device_locks


def test_all_turns_are_on_one_device_whichever_is_free(measure, fake_worker, tmp_path):
    for name, value in fake_worker.environment.items():
        measure.patch.setenv(name, value)
    cells = [replace(measure.cell, device="acme", build=build) for build in ("old", "new")]
    run = RunOptions(processes=3, devices=2, jobs_per_gpu=1, cache=tmp_path / "cache")
    specs = [each.spec("performance") for each in cells]
    measured = turns.measure(specs, [run, run], None, tmp_path / "log")
    with contextlib.closing(device_locks.lease(slot_request("acme", run))) as neighbour:
        first = next(measured)
    assert neighbour.device == "acme:0"
    assert [outcome.verdict.status for *_, outcome in (first, *measured)] == ["pass"] * 6
    assert {request.device_number for request in fake_worker.requests()} == {1}


def test_a_device_that_is_gone_is_replaced_by_another(measure, fake_worker, tmp_path):
    for name, value in fake_worker.environment.items():
        measure.patch.setenv(name, value)
    spec = replace(measure.cell, device="acme").spec("performance")
    outcome = turns.once(spec, RunOptions(cache=tmp_path / "cache"), None, tmp_path / "log", device="acme:7")
    assert outcome.verdict.status == "pass"
