"""Cells that are timed in turns."""

from dataclasses import replace

from timmgate.core.run_options import RunOptions
from timmgate.supervisor import turns


def test_all_turns_are_on_one_device(measure, fake_worker, tmp_path):
    for name, value in fake_worker.environment.items():
        measure.patch.setenv(name, value)
    cells = [replace(measure.cell, device="acme", build=build) for build in ("old", "new")]
    run = RunOptions(processes=3, devices=2, cache=tmp_path / "cache")
    measured = list(turns.measure([each.spec("performance") for each in cells], [run, run], None, tmp_path / "log"))
    assert [outcome.verdict.status for *_, outcome in measured] == ["pass"] * 6
    assert len({request.device_number for request in fake_worker.requests()}) == 1
