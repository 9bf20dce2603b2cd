"""How often a comparison of builds is wrong, and what it finds: real samples, drawn again and again.

    snakemake --cores 2 compare --config builds=a,b build_catalogue='{a: {}, b: {}}' processes=20 models=...
    python benchmarks/error_rates.py results/cpu/pairs/a..b [more folders, of other times of the day]

Both builds are the same, so that every process measured the same thing: a bank. Out of it, comparisons are drawn: for each
cell twice as many whole processes of one folder as a build gets, half of them called the second build, whose compiled times
are made longer by what is planted. Each goes through the very test that `snakemake compare` does. What is counted:

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

from timmgate.tables import comparison, pairs, parquet
from timmgate.tables.repeats import wilson

PLANTED = (0.0, 0.01, 0.02, 0.03)
FIGURES = ("relative_time", "eager_ms", "compiled_ms")

Row = dict[str, Any]
Bank = dict[str, list[list[Row]]]


def read(folders: Sequence[Path]) -> Bank:
    """By cell, the processes that passed, folder by folder."""
    bank: Bank = {}
    for folder in folders:
        for path in sorted(folder.glob("*/*.parquet")):
            rows = [row for row in pq.read_table(path).to_pylist() if row["status"] == "pass"]
            bank.setdefault(f"{path.parent.name}/{path.stem}", []).append(rows)
    return bank


def draw(bank: Bank, processes: int, planted: float, rng: np.random.Generator) -> list[Row]:
    """The rows of one comparison."""
    drawn = []
    for blocks in bank.values():
        rows = blocks[rng.integers(len(blocks))]
        chosen = rng.choice(len(rows), 2 * processes, replace=False)
        for place, number in enumerate(chosen):
            is_after = place % 2 == 1
            factor = 1 + planted if is_after else 1.0
            own = {"build": "after" if is_after else "before", "turn": place // 2, "position": place}
            drawn.append({**rows[number], **own, "compiled_ms": rows[number]["compiled_ms"] * factor})
    return drawn


def judge(rows: Sequence[Row]) -> list[Row]:
    """What a comparison says of the times."""
    table, nothing = parquet.table(list(rows), pairs.SCHEMA), parquet.SCHEMAS["cells"].empty_table()
    found = comparison.compare(table, nothing, "before", "after").to_pylist()
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
    bank = read(asked.folders)
    few = [cell for cell, blocks in bank.items() if min(map(len, blocks)) < 2 * asked.processes]
    if few or not bank:
        parser.error(f"{few[0] if few else 'the bank'} has fewer than {2 * asked.processes} processes in a folder")
    sizes = [len(rows) for blocks in bank.values() for rows in blocks]
    print(f"{len(bank)} cells, {sum(sizes)} processes; {asked.draws} comparisons of {asked.processes} each")
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
