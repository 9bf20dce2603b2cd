"""Durations of two processes that took turns."""

import pytest

from timmgate.core.statistics import Sample, ratios_by_block


def samples(eager_s, compiled_s, slower):
    """Two samples for each block, in which the machine is so much slower."""
    return [
        Sample(block, bool(half), eager_s * factor, compiled_s * factor)
        for block, factor in enumerate(slower)
        for half in range(2)
    ]


def test_what_the_machine_does_from_block_to_block_falls_out_even_if_one_process_has_more_blocks():
    machine = [1.0, 3.0, 1.2, 5.0, 1.0]
    found = ratios_by_block(samples(2.0, 1.1, machine), samples(2.0, 1.0, [*machine, 9.0, 9.0]))
    assert found == {
        "eager_ratio": pytest.approx(1.0),
        "compiled_ratio": pytest.approx(1.1),
        "relative_ratio": pytest.approx(1.1),
    }


def test_one_block_that_is_off_does_not_move_the_ratio_and_the_other_way_round_it_is_the_inverse():
    own, other = samples(3.0, 1.0, [1.0, 1.0, 10.0]), samples(2.0, 1.0, [1.0, 1.0, 1.0])
    assert ratios_by_block(own, other)["eager_ratio"] == pytest.approx(1.5)
    assert ratios_by_block(other, own)["eager_ratio"] == pytest.approx(1 / 1.5)
