"""How often a comparison of builds is wrong, and what it finds: real samples, drawn again and again.

    snakemake --cores 2 compare --config builds=a,b build_catalogue='{a: {}, b: {}}' processes=20 models=...
    python benchmarks/error_rates.py results/cpu/pairs/a..b [more folders, of other times of the day]

Both builds are the same, so that every process measured the same thing: a bank. Out of it, comparisons are drawn: for each
cell as many turns of two processes of one folder as a comparison has, in each of which one of the two by lot is called the
second build, whose compiled times are made longer by what is planted. Each goes through the very test that `snakemake
compare` does. What is counted:

* planted 0 %: false verdicts on times, and how often the interval contains 0
* planted 1, 2 and 3 %: how often `slower` is found, and how often the interval contains what was planted

with 95 % intervals (Wilson) for independent comparisons. These share one bank, so that the intervals are too narrow.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from timmgate.tables import parquet
from timmgate.tables.comparison import compare, pairs
from timmgate.tables.comparison.pairs import BY_BLOCK
from timmgate.tables.repeats import wilson

PLANTED = (0.0, 0.01, 0.02, 0.03)
FIGURES = ("relative_time", "eager_ms", "compiled_ms")
LONGER = ("compiled_ms", BY_BLOCK["compiled_ms"], BY_BLOCK["relative_time"])
"""Columns of the second build's process that a planted change makes larger."""

Row = dict[str, Any]
Bank = dict[str, list[list[Row]]]
Turns = dict[str, list[list[list[Row]]]]
"""By cell and folder, the two processes of each turn."""


def read(folders: Sequence[Path]) -> Bank:
    """By cell, the processes that passed, folder by folder."""
    bank: Bank = {}
    for folder in folders:
        for path in sorted(folder.glob("*/*.parquet")):
            rows = [row for row in pq.read_table(path).to_pylist() if row["status"] == "pass"]
            bank.setdefault(f"{path.parent.name}/{path.stem}", []).append(rows)
    return bank


def turns(rows: Sequence[Row]) -> list[list[Row]]:
    """The two processes of each turn of a cell."""
    by_turn: dict[int, list[Row]] = {}
    for row in rows:
        by_turn.setdefault(row["turn"], []).append(row)
    return [both for both in by_turn.values() if len(both) == 2]


def draw(bank: Turns, processes: int, planted: float, rng: np.random.Generator) -> list[Row]:
    """The rows of one comparison."""
    drawn = []
    for blocks in bank.values():
        of_block = blocks[rng.integers(len(blocks))]
        for turn, number in enumerate(rng.choice(len(of_block), processes, replace=False)):
            before, after = rng.permutation(np.array(of_block[number], dtype=object))
            longer = {name: after[name] * (1 + planted) for name in LONGER if after.get(name)}
            drawn += [{**before, "build": "before", "turn": turn}, {**after, **longer, "build": "after", "turn": turn}]
    return drawn


def judge(rows: Sequence[Row]) -> list[Row]:
    """What a comparison says of the times."""
    table, nothing = parquet.table(list(rows), pairs.SCHEMA), parquet.SCHEMAS["cells"].empty_table()
    found = compare.compare(table, nothing, "before", "after").to_pylist()
    return [row for row in found if row["figure"] in FIGURES]


def rate(hits: int, total: int) -> str:
    """A share with its interval."""
    low, high = wilson(hits, total)
    return f"{hits} of {total}, {hits / total:.2%} [{low:.2%}, {high:.2%}]"


def main() -> None:
    """Draw, and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--processes", type=int, default=5, help="of each build in a comparison")
    parser.add_argument("--draws", type=int, default=500, help="comparisons for each planted change")
    asked, rng = parser.parse_args(), np.random.default_rng(0)
    bank = {cell: list(map(turns, blocks)) for cell, blocks in read(asked.folders).items()}
    few = [cell for cell, blocks in bank.items() if min(map(len, blocks)) < asked.processes]
    if few or not bank:
        parser.error(f"{few[0] if few else 'the bank'} has fewer than {asked.processes} turns in a folder")
    sizes = [len(block) for blocks in bank.values() for block in blocks]
    print(f"{len(bank)} cells, {2 * sum(sizes)} processes; {asked.draws} comparisons of {asked.processes} turns each")
    for planted in PLANTED:
        rows = [row for _ in range(asked.draws) for row in judge(draw(bank, asked.processes, planted, rng))]
        print(f"{planted:.0%} slower" if planted else "no change")
        for figure in FIGURES:
            of_figure = [row for row in rows if row["figure"] == figure]
            truth = 0.0 if figure == "eager_ms" else planted
            found = sum(row["verdict"] == "slower" if truth else row["verdict"] is not None for row in of_figure)
            covered = sum(row["change_ci_low"] <= truth <= row["change_ci_high"] for row in of_figure)
            word = "found" if truth else "false verdicts"
            print(
                f"    {figure}: {word} {rate(found, len(of_figure))}; truth in the interval {rate(covered, len(of_figure))}"
            )


if __name__ == "__main__":
    main()
