"""Two builds that are timed side by side, by two fake workers that take turns."""

import json
from dataclasses import replace

import pytest

from timmgate.core.build import BuildOptions
from timmgate.supervisor import side_by_side


@pytest.fixture
def timed(measure, fake_worker, tmp_path):
    """Times a cell with two builds; the words are how workers behave, and `variables` those of the second build."""

    def outcomes(words="", variables=None, **limits):
        measure.behave(words)
        run = measure.run_options(**limits)
        runs = [run, replace(run, build=BuildOptions(env=variables or {}))]
        found = side_by_side.measure(measure.specs_of("old", "new"), runs, None, tmp_path / "log")
        assert fake_worker.alive() == []
        return found

    return outcomes


def test_both_have_their_figures_and_how_they_compare_by_the_blocks_that_both_had(timed):
    old, new = timed(variables={"FAKE_COMPILED_S": "0.15", "FAKE_SCATTER": "0"})
    assert [outcome.verdict.status for outcome in (old, new)] == ["pass", "pass"]
    columns = new.result.columns
    assert columns["compiled_ms"] == pytest.approx(150)
    assert columns["compiled_ratio"] == pytest.approx(1.5, rel=0.01)
    assert columns["relative_ratio"] == pytest.approx(1.5, rel=0.01)
    assert columns["eager_ratio"] == pytest.approx(1)
    assert old.result.columns["compiled_ratio"] == pytest.approx(1 / columns["compiled_ratio"])


def test_they_take_turns_and_nobody_runs_in_the_turn_of_the_other(timed, fake_worker):
    assert timed("tick:0.2@performance.timing")
    ticks = [entry for entry in fake_worker.entries() if "tick" in entry]
    order = [entry["pid"] for entry in sorted(ticks, key=lambda entry: entry["at"])]
    assert len(set(order)) == 2
    assert order == sorted(order, key=order.index), "first all of one, then all of the other"


@pytest.mark.parametrize(("wanted", "given"), [((1, 1), "AB"), ((3, 1), "ABABAB"), ((1, 2), "ABAB")])
def test_turns_alternate_strictly_until_both_have_enough(wanted, given):
    had = []

    class Side:
        def __init__(self, name, turns):
            self.name, self.turns = name, turns

        def take_turn(self):
            had.append(self.name)
            return had.count(self.name) == self.turns

        def finish(self):
            had.append(self.name.lower())

    side_by_side.give_turns([Side(name, turns) for name, turns in zip("AB", wanted, strict=True)])
    assert "".join(had) == f"{given}ab"


@pytest.mark.parametrize(
    "words",
    [
        "raise@performance.compile",
        "signal:SIGSEGV@performance.timing",
        "raise@performance.timing",
        "family@performance.load raise@performance.timing",
    ],
)
@pytest.mark.parametrize("side", ["both", "the second"])
def test_one_that_comes_to_no_result_leaves_nothing_of_either_and_the_log_says_why(timed, words, side, measure, tmp_path):
    found = timed(words) if side == "both" else timed(variables={"FAKE_WORKER": json.dumps({measure.cell.model: words})})
    assert found is None
    assert "side by side: " in (tmp_path / "log").read_text()


def test_one_that_hangs_in_its_turn_is_killed_with_the_other(timed, fake_worker, limit_at_a_hang, tmp_path):
    assert timed("hang@performance.timing") is None
    assert len(fake_worker.starts()) == 2
    assert "side by side: timeout" in (tmp_path / "log").read_text()
    assert "hang_here" in (tmp_path / "log").read_text(), "its stack"


def test_the_second_starts_when_the_first_waits_for_its_turns(timed, fake_worker):
    assert timed("tick:0.1@performance.compile")
    ticks = [entry["pid"] for entry in fake_worker.entries() if "tick" in entry]
    assert ticks == sorted(ticks, key=ticks.index)
