"""Snakemake's command line without its targets."""

import pytest

from timmgate.config.command_line import options_alone

LINES = {
    "--cores 1": "--cores 1",
    "gate --cores 1": "--cores 1",
    "--profile profiles/slurm gate --config device=cuda": "--profile profiles/slurm --config device=cuda",
    "--cores 1 --config device=cuda -- gate": "--cores 1 --config device=cuda",
    "--config device=cuda -- gate report": "--config device=cuda",
    "gate export --cores 1": "--cores 1",
    "all --cores all": "--cores all",
    "gate --cores 1 --forcerun gate": "--cores 1 --forcerun gate",
    "results/cpu/cells.parquet --cores 1": "--cores 1",
}


@pytest.mark.parametrize("line", LINES)
def test_targets_are_left_out_and_values_of_options_stay(line):
    assert options_alone(line.split()) == LINES[line].split()
