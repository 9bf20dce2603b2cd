"""How often a nightly gate is red without a reason, and what it finds: nights drawn from real processes.

    snakemake --cores 2 compare --config builds=a,b build_catalogue='{a: {}, b: {}}' processes=20 models=...
    python benchmarks/nights.py results/cpu/pairs/a..b [more folders, of other times of the day]

The bank is that of error_rates.py: both builds are the same, so nothing changed in any night. A night has `--cells` cells,
each of which is one of the bank's, with the figures of one of its processes; all of a night come from one folder, as the
cells of a night share its hours. Their baseline are the nights before, as many as the gate takes of a history. A night goes
through the gate's own functions: what may have got worse is timed again, at most `--confirm` times, in
processes of the same folder. What is
counted:

* nights that fail although nothing changed
* planted in some cells of a night, 3 % of time, 10 % of compile time, 5 % of memory, a graph break: how often it is found

with 95 % intervals (Wilson), as if cells that share a night were independent. Compile time is that of warm compilations,
which a bank has of every process.
"""

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import numpy as np
from error_rates import rate, read

from timmgate.core.thresholds import Thresholds
from timmgate.tables.figures import FIGURES, comparable
from timmgate.tables.gate import judgement
from timmgate.tables.gate.confirmation import is_settled
from timmgate.tables.gate.deviations import MAX_HISTORY, deviations, suspects
from timmgate.tables.gate.measured_baseline import Baseline

PLANTED = {
    "compiled_ms": lambda value: value * 1.03,
    "compile_cold_cpu_s": lambda value: value * 1.10,
    "compiled_allocated_bytes": lambda value: value * 1.05,
    "graph_breaks": lambda value: value + 1,
}
"""By figure, what becomes of it in a cell that changed."""

CHANGED = 0.05
"""Share of the cells of a night in which something is planted: few enough to leave the scatter of all as it is. A choice."""

ALIKE = dict.fromkeys(comparable("performance"))

Row = dict[str, Any]
Key = tuple[str, str]


class Suite:
    """Cells that are those of the bank again and again, numbered."""

    def __init__(self, bank: Mapping[str, Sequence[Sequence[Row]]], cells: int, rng: np.random.Generator):
        self._bank, self._rng, names = bank, rng, sorted(bank)
        self.cells: dict[Key, str] = {
            (str(number), names[number % len(names)]): names[number % len(names)] for number in range(cells)
        }
        self._folders = min(map(len, bank.values()))

    def row(self, key: Key, folder: int) -> Row:
        """What one process of a cell measured."""
        rows = self._bank[self.cells[key]][folder]
        found = rows[self._rng.integers(len(rows))]
        about = {"build": "default", "mode": key[0], "model": key[1], "performance": "pass", "log": "", **ALIKE}
        ran = {"performance_batch_size": found["batch_size"], "compile_cold_cpu_s": found["compile_warm_cpu_s"]}
        return {**found, **about, **ran}

    def some(self) -> set[Key]:
        """The cells that change in a night."""
        keys = [*self.cells]
        return {keys[number] for number in self._rng.choice(len(keys), max(1, round(CHANGED * len(keys))), replace=False)}

    def night(self) -> tuple[dict[Key, Row], int]:
        """A row for each cell, and the folder that they are from."""
        folder = int(self._rng.integers(self._folders))
        return {key: self.row(key, folder) for key in self.cells}, folder


def judged(
    suite: Suite,
    before: Sequence[dict[Key, Row]],
    thresholds: Thresholds,
    confirm: int,
    planted: str | None = None,
    changed: Set[Key] = frozenset(),
) -> tuple[list[Row], int, int]:
    """What the gate says of a night, how many cells it had timed again, and in how many processes; `planted` is the figure
    that is worse in the cells `changed`.
    """
    baseline = Baseline({key: [night[key] for night in before] for key in suite.cells})
    night, folder = suite.night()

    def with_fault(key: Key, row: Row) -> Row:
        return row if planted is None or key not in changed else {**row, planted: PLANTED[planted](row[planted])}

    rows = [with_fault(key, row) for key, row in night.items()]
    fresh: dict[Key, list[Row]] = {}
    for key, suspect in suspects(rows, baseline, thresholds, confirm).items():
        again = fresh[key] = []
        while len(again) < confirm and not is_settled(suspect, again, confirm):
            again.append(with_fault(key, suite.row(key, folder)))
    return list(deviations(rows, baseline, thresholds, fresh, confirm)), len(fresh), sum(map(len, fresh.values()))


def main() -> None:
    """Draw nights, and print the rates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--nights", type=int, default=2000)
    parser.add_argument("--planted", type=int, default=300, help="cells of each planted change, at least")
    parser.add_argument("--cells", type=int, default=248)
    parser.add_argument("--confirm", type=int, default=8)
    parser.add_argument("--max-slowdown", type=float, default=Thresholds().max_slowdown)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng = np.random.default_rng(asked.seed)
    suite, thresholds = Suite(read(asked.folders), asked.cells, rng), Thresholds(max_slowdown=asked.max_slowdown)
    before = [suite.night()[0] for _ in range(MAX_HISTORY)]
    red, again, processes, classes = 0, 0, 0, Counter[str]()
    for _ in range(asked.nights):
        found, cells, some = judged(suite, before, thresholds, asked.confirm)
        failing = {row["class"] for row in found} & {*judgement.FAILING}
        red, classes = red + bool(failing), classes + Counter(failing)
        again, processes = again + cells, processes + some
        before = [*before[1:], suite.night()[0]]
    print(f"nothing changed: red nights {rate(red, asked.nights)} {dict(classes) or ''}")
    print(f"    timed again in a night: {again / asked.nights:.1f} cells, in {processes / asked.nights:.1f} processes")
    for figure in FIGURES:
        caught, all_changed = 0, 0
        while all_changed < asked.planted:
            changed = suite.some()
            found, *_ = judged(suite, before, thresholds, asked.confirm, figure.column, changed)
            worse = {(row["mode"], row["model"]) for row in found if row["class"] == figure.worse}
            caught, all_changed = caught + len(worse & changed), all_changed + len(changed)
            before = [*before[1:], suite.night()[0]]
        print(f"planted in {figure.column}: found in the same night {rate(caught, all_changed)}")


if __name__ == "__main__":
    main()
