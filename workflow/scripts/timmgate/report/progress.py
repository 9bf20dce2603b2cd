"""Where a run stands: what its cells are, which of them are done, failed, running or queued, and how long the rest takes.

What Snakemake starts and ends is told to it, with the time; what became of a cell it reads in the cell's journal, and the
stage that a cell is in, in the file that its supervisor keeps.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from timmgate.core.build import names_builds
from timmgate.core.schemas import FAILED, KEY
from timmgate.core.spec import CellKey
from timmgate.core.verdict import status_by_rule
from timmgate.report.time_left import Done, Estimate, Law
from timmgate.supervisor import journal, stages
from timmgate.supervisor.stages import Stage

STATES = ("done", "failed", "running", "queued")

STAGES_A_LOOK = 100
"""Stage files that are read in one look, at most; those of more cells are read in turn."""

CELLS_A_LOOK = 200
"""Journals of cells that earlier runs have measured that are read in one look."""

ESTIMATE_EVERY_S = 5.0

ENDING = "ending"
"""The stage of a cell whose supervisor is done, until Snakemake says so."""


@dataclass(frozen=True)
class Plan:
    """What was asked for: `cells`, of which `to_measure` are not done yet, and what their models cost."""

    device: str
    checks: Sequence[str]
    cells: Sequence[CellKey]
    to_measure: Collection[CellKey]
    cost: Mapping[str, float]
    accuracy_rule: str
    results: Path = Path("results")
    logs: Path = Path("logs")

    @cached_property
    def has_builds(self) -> bool:
        """Whether a cell has to be called by its build too."""
        return names_builds(build for _, build, _, _ in self.cells)

    def name(self, cell: CellKey) -> str:
        """A cell for people."""
        return "/".join(cell[1 if self.has_builds else 2 :])

    def log(self, cell: CellKey) -> Path:
        """The log of a cell."""
        *folders, model = cell
        return self.logs.joinpath(*folders, f"{model}.log")

    def ends(self, cell: CellKey) -> dict[str, dict[str, Any]]:
        """By requested check, the status that it ended with the last time, by the journal and `accuracy_rule`."""
        known = journal.last_ends(self.results.joinpath(*cell, journal.NAME))
        return {check: self._by_rule(check, known[check]) for check in self.checks if check in known}

    def _by_rule(self, check: str, end: dict[str, Any]) -> dict[str, Any]:
        if check != "accuracy":
            return end
        status, _ = status_by_rule(end["status"], end.get("strict"), self.accuracy_rule)
        return {**end, "status": status}

    def with_reasons(self, cell: CellKey, ends: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """The same with the `reason` of every failure, as far as its row can be read."""
        failed = [check for check, end in ends.items() if end["status"] in FAILED]
        if not failed:
            return dict(ends)
        from timmgate.tables import merge  # with it Arrow, which Snakemake's process needs for nothing else

        row = merge.row_of(cell, self.results.joinpath(*cell), self.checks, self.accuracy_rule)
        return {**ends, **{check: {**ends[check], "reason": row[f"{check}_reason"]} for check in failed}}


@dataclass
class Job:
    """Something that runs: a cell, or a job of another rule. `stage` is what its supervisor said last."""

    name: str
    rule: str
    since_s: float
    cell: CellKey | None = None
    stage: Stage | None = None


@dataclass(frozen=True)
class Finished:
    """A cell that has just been measured, how its checks ended, and its seconds."""

    name: str
    ends: Mapping[str, Mapping[str, Any]]
    seconds: float
    log: Path

    @property
    def failures(self) -> dict[str, Mapping[str, Any]]:
        """Of the checks, those that failed."""
        return {check: end for check, end in self.ends.items() if end["status"] in FAILED}


@dataclass
class Progress:
    """The state of a run at any time; times are seconds since the epoch. `others` counts jobs that are no cells, by rule."""

    plan: Plan
    began_s: float
    jobs: dict[int, Job] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._state = {cell: "queued" if cell in self.plan.to_measure else "done" for cell in self.plan.cells}
        self._before = [cell for cell, state in self._state.items() if state == "done"]
        self._left = Counter(map(self._kind, self.plan.to_measure))
        self._done: list[Done] = []
        self._first_s: float | None = None
        self._estimate: Estimate | None = None
        self._estimated_s = 0.0
        self.others: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.counts: defaultdict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for cell, state in self._state.items():
            self.counts[cell[1:3]][state] += 1

    def _kind(self, cell: CellKey) -> tuple[str, float]:
        """What the time of a cell depends on: its build and mode, and its model's cost."""
        _, build, mode, model = cell
        return f"{build}/{mode}", self.plan.cost.get(model, 1.0)

    def total(self) -> Counter[str]:
        """How many cells there are in each state."""
        return sum(self.counts.values(), Counter())

    def _move(self, cell: CellKey, state: str) -> None:
        if cell in self._state:
            counts = self.counts[cell[1:3]]
            counts[self._state[cell]] -= 1
            counts[state] += 1
            self._state[cell] = state

    def started(self, number: int, rule: str, wildcards: Mapping[str, str], now_s: float) -> None:
        """Snakemake has started a job, or handed it to a cluster."""
        cell = tuple(wildcards[name] for name in KEY) if rule == "measure" else None
        name = self.plan.name(cell) if cell else " ".join([rule, *wildcards.values()])
        self.jobs[number] = Job(name, rule, now_s, cell)
        if not cell:
            self.others[rule]["running"] += 1
        else:
            self._first_s = self._first_s or now_s
            self._left[self._kind(cell)] -= self._state.get(cell) == "queued"
            self._move(cell, "running")

    def finished(self, number: int, now_s: float) -> Finished | None:
        """A job has ended well; what became of its cell, if it was one."""
        job = self._ended(number, "done")
        if job is None or job.cell is None:
            return None
        ends = self.plan.with_reasons(job.cell, self.plan.ends(job.cell))
        finished = Finished(job.name, ends, now_s - job.since_s, self.plan.log(job.cell))
        self._done.append(Done(*self._kind(job.cell), finished.seconds))
        self._move(job.cell, "failed" if finished.failures else "done")
        return finished

    def lost(self, number: int) -> Job | None:
        """A job has ended without a result; it, if it was a cell. Snakemake may start it again."""
        job = self._ended(number, "failed")
        if job is None or job.cell is None:
            return None
        self._move(job.cell, "failed")
        return job

    def _ended(self, number: int, state: str) -> Job | None:
        job = self.jobs.pop(number, None)
        if job and job.cell is None:
            self.others[job.rule].update({"running": -1, state: 1})
        return job

    def look(self) -> None:
        """Read what supervisors say, and what became of cells in earlier runs; a part of it where there is much."""
        for job in self._in_turn():
            job.stage = stages.read(stages.path_of(job.cell)) or (job.stage and replace(job.stage, stage=ENDING))
        for _ in range(min(CELLS_A_LOOK, len(self._before))):
            cell = self._before.pop()
            if any(end["status"] in FAILED for end in self.plan.ends(cell).values()):
                self._move(cell, "failed")

    def _in_turn(self) -> list[Job]:
        """Jobs whose stage is to be read now: those that were read longest ago."""
        numbers = [number for number, job in self.jobs.items() if job.cell][:STAGES_A_LOOK]
        for number in numbers:  # to the end of the line
            self.jobs[number] = self.jobs.pop(number)
        return [self.jobs[number] for number in numbers]

    def running(self) -> Iterator[Job]:
        """The jobs that run, in the order in which they are of interest: what is timed, waits for that, the longest."""
        order = {"timing": 0, "queue": 1}
        yield from sorted(
            self.jobs.values(), key=lambda job: (order.get(job.stage.stage, 2) if job.stage else 3, job.since_s)
        )

    def time_left(self, now_s: float) -> Estimate | None:
        """How long the cells that are left will take; None while nobody can say. Renewed every few seconds."""
        if self._estimate is None or now_s - self._estimated_s >= ESTIMATE_EVERY_S:
            self._estimated_s, self._estimate = now_s, self._time_left(now_s)
        return self._estimate

    def _time_left(self, now_s: float) -> Estimate | None:
        if not self._done or self._first_s is None or now_s <= self._first_s:
            return None
        law = Law(self._done)
        passed = {job.cell: now_s - job.since_s for job in self.jobs.values() if job.cell}
        # One that takes longer than expected may well take half as long again.
        rests = [max(law.seconds(*self._kind(cell)) - seconds, seconds / 2) for cell, seconds in passed.items()]
        workers = (sum(done.seconds for done in self._done) + sum(passed.values())) / (now_s - self._first_s)
        left = law.left(+self._left, sum(rests))
        return left.shared_by(max(workers, 1.0), at_least=max(rests, default=0.0))
