"""What the tests of supervisors share: one way to have a cell measured by the fake worker."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from specs import cell
from timmgate.core.outcome import Outcome
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Cell, Spec
from timmgate.supervisor import monitor
from timmgate.supervisor.cell import supervise
from timmgate.supervisor.job import Job
from timmgate.supervisor.journal import NAME, Journal
from timmgate.system import process_tree
from timmgate.tables import rows

UNHURRIED_S = 300


@dataclass
class Measure:
    """Has a fake worker measure a cell, behaving as the words say; afterwards none of its processes may live."""

    worker: Any
    folder: Path
    patch: pytest.MonkeyPatch
    cell: Cell

    @property
    def log(self) -> Path:
        """Where the log goes."""
        return self.folder / "logs" / "worker.log"

    @property
    def journal(self) -> Path:
        """Where the attempts go."""
        return self.folder / NAME

    def run_options(self, timeout: float = UNHURRIED_S, attempts: int = 1, **policy: Any) -> RunOptions:
        """Limits are generous unless the test is about one."""
        return RunOptions(timeout=timeout, attempts=attempts, cache=self.folder / "cache", **{"threads": 2, **policy})

    def behave(self, words: str = "") -> None:
        """Have this process start fake workers, which behave as the words say in our cell."""
        self.worker.behaviours = {self.cell.model: words}
        for name, value in self.worker.environment.items():
            self.patch.setenv(name, value)

    def specs_of(self, *builds: str) -> list[Spec]:
        """The performance check of the cell, of each build."""
        return [replace(self.cell, build=build).spec("performance") for build in builds]

    def checks(self, words: str, *checks: str, **limits: Any) -> list[Outcome]:
        """The outcomes of these checks."""
        self.behave(words)
        specs = [self.cell.spec(check) for check in checks]
        outcomes = supervise(specs, self.run_options(**limits), self.log, Journal(self.journal))
        assert self.worker.alive() == []
        return outcomes

    def __call__(self, words: str = "", **limits: Any) -> Outcome:
        """The outcome of the accuracy check."""
        return self.checks(words, "accuracy", **limits)[0]

    def both(self, words: str = "", **limits: Any) -> list[Outcome]:
        """The outcomes of both checks."""
        return self.checks(words, "accuracy", "performance", **limits)

    def row(self, outcome: Outcome) -> dict[str, Any]:
        """The row that is written of an outcome, as it is read from its file; `details` are nested in it."""
        spec, file = self.cell.spec(outcome.result.check), self.folder / f"{outcome.result.check}.parquet"
        job = Job(cell=self.cell, files={spec.check: file}, run=self.run_options(), log=self.log, attempts=1)
        rows.writer(job, "tiny", {"python": "3.10", "sources": {"torch": "0" * 64}})(spec, outcome, job.run)
        (row,) = pq.read_table(file).to_pylist()
        return row


@pytest.fixture
def limit_at_a_hang(fake_worker, monkeypatch) -> None:
    """The time limit is reached as soon as a worker hangs, however slow the machine is."""
    limit_s, seen = monitor.Follower._limit_s, set()

    def limit(follower: monitor.Follower) -> float:
        pids = {*process_tree.tree(follower._worker.pid)} & {start["pid"] for start in fake_worker.starts()}
        if pids & seen:  # one turn later, so that what it said before it hung has been read
            return -1.0
        seen.update(pids & fake_worker.hung())
        return limit_s(follower)

    monkeypatch.setattr(monitor.Follower, "_limit_s", limit)


@pytest.fixture
def measure(fake_worker, tmp_path, monkeypatch) -> Measure:
    """Measures a cell of 8 images."""
    monkeypatch.setattr("timmgate.supervisor.cell.BACKOFF_S", 0.01)
    return Measure(fake_worker, tmp_path, monkeypatch, cell(batch_size=8))
