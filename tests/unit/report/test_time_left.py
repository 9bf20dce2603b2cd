"""How long the rest of a run takes, estimated from the cells that are done."""

import math
import random

import pytest

from timmgate.report.time_left import Done, Estimate, Law, duration_words


def seconds(mode: str, cost: float, chance: random.Random, spread: float = 0.3) -> float:
    """What a cell takes in a world where a mode is a factor, cost has the power 0.5, and the rest is chance."""
    return {"inference": 20.0, "training": 60.0}[mode] * cost**0.5 * math.exp(chance.gauss(0, spread))


def test_nothing_is_known_until_a_cell_is_done():
    with pytest.raises(ValueError, match="no cell is done"):
        Law([])


def test_cells_like_the_ones_that_are_done_take_as_long():
    law = Law([Done("inference", 1.0, 30.0)] * 5)
    assert law.seconds("inference", 1.0) == pytest.approx(30.0)
    assert law.left({("inference", 1.0): 10}).seconds == pytest.approx(300.0)


def test_the_power_of_the_cost_and_the_factor_of_a_mode_are_found():
    cells = [(mode, cost) for mode in ("inference", "training") for cost in (0.1, 1.0, 10.0, 100.0)] * 5
    law = Law([Done(mode, cost, seconds(mode, cost, random.Random(0), spread=0.0)) for mode, cost in cells])
    assert law.seconds("inference", 50.0) == pytest.approx(20 * 50**0.5, rel=0.1)
    assert law.seconds("training", 0.5) == pytest.approx(60 * 0.5**0.5, rel=0.1)


def test_a_mode_of_which_nothing_is_known_is_less_certain():
    law = Law([Done("inference", 1.0, 30.0)] * 20)
    known, unknown = law.left({("inference", 1.0): 50}), law.left({("training", 1.0): 50})
    assert unknown.high / unknown.low > 2 * known.high / known.low


def test_the_interval_holds_the_truth_most_of_the_time_and_narrows():
    """90 % is what it says; of 200 runs no fewer than 80 % must be in it."""
    hits, widths = 0, []
    for seed in range(200):
        chance = random.Random(seed)
        suite = [math.exp(chance.gauss(0, 1.5)) for _ in range(60)]
        cells = [(mode, cost) for mode in ("inference", "training") for cost in suite]
        chance.shuffle(cells)
        took = [Done(mode, cost, seconds(mode, cost, chance)) for mode, cost in cells]
        left = Law(took[:30]).left({(cell.mode, cell.cost): 1 for cell in took[30:]})
        hits += left.low <= sum(cell.seconds for cell in took[30:]) <= left.high
        widths.append(left.high / left.low)
    assert hits >= 160
    few = Law(took[:3]).left({(cell.mode, cell.cost): 1 for cell in took[30:]})
    assert few.high / few.low > max(widths)


def test_several_workers_share_the_rest_but_nobody_does_it_faster_than_its_longest_cell():
    assert Estimate(100.0, 80.0, 120.0).shared_by(4.0) == Estimate(25.0, 20.0, 30.0)
    assert Estimate(100.0, 80.0, 120.0).shared_by(4.0, at_least=28.0) == Estimate(28.0, 28.0, 30.0)


@pytest.mark.parametrize(
    ("duration", "text"),
    [(0.4, "0 s"), (59, "59 s"), (61, "1 min"), (3599, "1 h"), (3 * 3600 + 1200, "3 h 20 min"), (2 * 86400, "2 d")],
)
def test_durations_are_in_the_units_that_people_use(duration, text):
    assert duration_words(duration) == text
