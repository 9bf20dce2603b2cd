"""One failed cell, from its row to a finding: runs the trials that a search asks for, and keeps what they came to."""

import json
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from timmgate.core.diagnosis import GRAPH, GRAPH_SCRIPT, TrialRequest, Variant
from timmgate.core.outcome import RETRYABLE, AttemptResult, Verdict
from timmgate.core.run_options import RunOptions
from timmgate.core.schemas import PASSED
from timmgate.core.spec import Cell, Spec
from timmgate.diagnosis import ladder, script
from timmgate.diagnosis.ladder import Ending, Finding, Outcome
from timmgate.diagnosis.script import Case
from timmgate.diagnosis.suspects import failed_check
from timmgate.supervisor import trial
from timmgate.supervisor.capped_log import CappedLog
from timmgate.supervisor.job import SUPERVISION_BYTES
from timmgate.supervisor.study import StudyError
from timmgate.system.cgroups import memory_limit_bytes
from timmgate.system.process_tree import die_with_run, interruptible, machine_memory_bytes
from timmgate.weights import record

PLACES = Variant("places")
"""The name under which the search of modules is kept."""

PLACE = ("module", "module_class", "direction", "graph", "graph_operators")
"""Columns that the search of modules reports."""

LOST_WORKERS = 3
"""So often the search of modules is started again after a module whose compilation killed its worker."""

NOWHERE = ("flaky", "backend", "guards")
"""Layers in which no module by itself can be expected to fail."""

LAST_LINES = 12
"""Of a log, for a trial that ended without an exception of its own: where it hung or crashed."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Patient:
    """A failed cell: the check that failed, the batch size that it ran with, and how it is run.

    `folder` is where outcomes are kept until the examination is over, `logs` has a log for each trial. `measured_at` tells
    one measurement of the cell from the next.
    """

    spec: Spec
    batch_size: int
    run: RunOptions
    folder: Path
    logs: Path
    measured_at: str = ""

    @property
    def kept(self) -> Path:
        """Folder of what its trials have in common."""
        return self.run.cache / "expected"


def patient(
    cell: Cell, row: Row, checks: Sequence[str], run: RunOptions, weights: Path | None, folder: Path, log: Path
) -> Patient:
    """The patient that a row of `cells` is, out of a run of these checks; `weights` is the file that says where they lie.

    All trials have one compile cache, beside those of the cell.
    """
    check = failed_check(row, checks)
    if check is None:
        sys.exit(f"{cell.mode}/{cell.model} did not fail")
    found = record.read_optional(weights)
    memory_bytes = int(min(memory_limit_bytes(), machine_memory_bytes())) - SUPERVISION_BYTES
    run = replace(run, cache=run.cache / "diagnosis", weights=found.path if found else None, memory_bytes=memory_bytes)
    batch_size = row[f"{check}_batch_size"] or cell.spec(check).requested_batch_size
    measured_at = row[f"{check}_started_at"]
    return Patient(cell.spec(check), batch_size, run, folder, log.with_suffix(""), str(measured_at))


@dataclass
class Examination:
    """What came of it. `trials` are rows, in their order; `place` has the columns that the search of modules reported.

    `script` is that of the module, `graph_script` that of the smallest graph.
    """

    finding: Finding
    trials: list[Row]
    place: Mapping[str, Any] = field(default_factory=dict)
    script: Path | None = None
    graph_script: Path | None = None


def write_script(case: Case, patient: Patient, found: Examination, weights: Path | None) -> Path | None:
    """The script of the module that was found, in a folder beside the tables; None without a module, or if it cannot be."""
    module = found.place.get("module")
    if not module:
        return None
    try:
        log = patient.logs / "module_script.log"
        return script.write(case, patient.run, weights, patient.folder / "module", log, module)
    except StudyError as error:
        print(f"no script of {module}: {error}", file=sys.stderr)
        return None


def examine(patient: Patient) -> Examination:
    """Search the layer, then the place. What was tried before an interruption is not tried again."""
    die_with_run(signal.SIGTERM)
    with interruptible():
        trials = Trials(patient)
        finding = trials.follow(ladder.search(patient.spec.options))
        place = {} if finding.layer in NOWHERE else trials.place(finding.variant)
        trials.forget()
        return Examination(finding, trials.rows, place, graph_script=trials.graph_script(place))


class Trials:
    """The trials of a cell, in a file of their own, one line of JSON each."""

    def __init__(self, patient: Patient):
        self._patient, self.rows = patient, list[Row]()
        self._file = patient.folder / "trials.jsonl"
        self._cell = f"{patient.spec.identity()} {patient.measured_at}"
        self._known = {row["variant"]: row for row in self._kept()}
        self._failure: tuple[str, str | None] | None = None

    def _kept(self) -> Iterator[Row]:
        for line in self._file.read_text(encoding="utf-8").splitlines() if self._file.is_file() else []:
            try:
                row = json.loads(line)
            except ValueError:  # written half
                continue
            if row.pop("cell") == self._cell:
                yield row

    def follow(self, search: ladder.Search) -> Finding:
        """Run what a search asks for, until it has found something."""
        variant = next(search)
        while True:
            row = self._row(variant)
            try:
                variant = search.send(self._outcome(row))
            except StopIteration as stop:
                found: Finding = stop.value
                return found

    def _outcome(self, row: Row) -> Outcome:
        """How a trial ended; what failing is, the first one that fails says."""
        failure = row["status"], row["cause"] if row["status"] != "fail_accuracy" else None
        if self._failure is None and row["status"] not in PASSED:
            self._failure = failure
        ended: Ending = "pass" if row["status"] in PASSED else "fail" if failure == self._failure else "other"
        row["ended"] = ended
        return Outcome(ended, row.get("applications") or 0, row.get("application"), row.get("raised_in"))

    def _row(self, variant: Variant) -> Row:
        """The trial of a variant: as it is known, or run now."""
        row = self._known.get(variant.name)
        if row is None:
            row = self._known[variant.name] = self._keep(self._run(variant))
        if row not in self.rows:
            row["number"] = len(self.rows)
            self.rows.append(row)
        return row

    def _run(self, variant: Variant) -> Row:
        for _ in range(self._patient.run.attempts):
            attempt, verdict, log = self._start(variant)
            if verdict.status not in RETRYABLE:
                break
        return {"variant": variant.name, **self._about(attempt, verdict, log), **attempt.columns}

    def _start(self, variant: Variant, known: Mapping[str, str] | None = None) -> tuple[AttemptResult, Verdict, Path]:
        patient = self._patient
        log = patient.logs / f"{len(self.rows):02}.{'_'.join(variant.name.split())}.log"
        request = TrialRequest(patient.spec, patient.run, variant, patient.batch_size, patient.kept, known)
        with CappedLog(log) as stream:
            return *trial.run(request, stream), log

    def _about(self, attempt: AttemptResult, verdict: Verdict, log: Path) -> Row:
        crashed = verdict.status not in (*PASSED, "fail_accuracy")
        return {
            "status": verdict.status,
            "cause": verdict.cause,
            "message": verdict.message,
            "stage": attempt.stage,
            "wall_s": attempt.wall_s,
            "cpu_s": attempt.cpu_s,
            "started_at": attempt.started_at.isoformat(),
            "log": str(log),
            "last_lines": "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:]) if crashed else None,
        }

    def _keep(self, row: Row) -> Row:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": self._cell, **row}) + "\n")
        return row

    def place(self, variant: Variant) -> Mapping[str, Any]:
        """The columns of the smallest module that fails; nothing where the search did not come to an end."""
        row = self._known.get(PLACES.name) or self._keep(self._search_places(replace(variant, name=PLACES.name)))
        row |= {"number": len(self.rows), "ended": None}
        self.rows.append(row)
        return {name: row.get(name) for name in PLACE}

    def graph_script(self, place: Mapping[str, Any]) -> Path | None:
        """The script of the smallest graph, beside the tables, if the search of modules came to one."""
        if not place.get("graph"):
            return None
        folder = self._patient.folder / GRAPH
        shutil.copytree(self._patient.kept / GRAPH, folder, dirs_exist_ok=True)
        return folder / GRAPH_SCRIPT

    def _search_places(self, variant: Variant) -> Row:
        known: dict[str, str] = {}
        wall_s = 0.0
        for _ in range(LOST_WORKERS):
            attempt, verdict, log = self._start(variant, known)
            wall_s += attempt.wall_s
            known = known | {each["module"]: each.get("ended") or "raised" for each in attempt.details}
            if attempt.result or attempt.failure:
                break
        return {"variant": variant.name, **self._about(attempt, verdict, log), **attempt.columns, "wall_s": wall_s}

    def forget(self) -> None:
        """The examination is over: the next one starts anew."""
        self._file.unlink(missing_ok=True)
        for row in self.rows:
            row["started_at"] = datetime.fromisoformat(row["started_at"])
