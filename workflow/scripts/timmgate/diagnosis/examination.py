"""One failed cell, from its row to a finding: runs the trials that a search asks for, and keeps what they came to."""

import json
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from timmgate.core.checks import EAGER_1ST, EAGER_2ND, EAGER_TWICE, NULL_RUNS, REFERENCE
from timmgate.core.diagnosis import GRAPH, GRAPH_SCRIPT, IN_EAGER, MODULE_COLUMNS, SIGNAL, TrialRequest, Variant
from timmgate.core.faults import is_fault
from timmgate.core.outcome import OUT_OF_MEMORY, RETRYABLE, AttemptResult, Verdict
from timmgate.core.redact import redacted, shortened
from timmgate.core.run_options import RunOptions
from timmgate.core.schemas import PASSED, SHOWN_STATUS
from timmgate.core.spec import Cell, Spec
from timmgate.diagnosis import ladder, script
from timmgate.diagnosis.candidates import failed_check
from timmgate.diagnosis.ladder import Ending, Finding, TrialOutcome
from timmgate.diagnosis.script import Case
from timmgate.supervisor import trial
from timmgate.supervisor.capped_log import CappedLog
from timmgate.supervisor.study import StudyError
from timmgate.system.process_tree import die_with_run, interruptible
from timmgate.weights import record

MODULE_SEARCH = Variant("places")
"""The name under which the search of modules is kept."""

LOST_WORKERS = 24
"""Most workers that the search of modules may lose: two for each level of modules within modules, as a module that kills a
worker which has tried others before is tried again in a fresh one.
"""

HUNG_WORKERS = 4
"""The same of those that hang, each of which takes the whole time limit."""

OF_EAGER = (*EAGER_1ST, *EAGER_2ND, *RETRYABLE, "model_fail_to_load")
"""Statuses of a trial that ended before anything was compiled, or for another reason: it says nothing about its variant."""

EAGER_FAILS = tuple(status for status in (*EAGER_1ST, *EAGER_2ND) if status not in OUT_OF_MEMORY)
"""Those of eager that fails itself, and not for lack of time or memory."""

EAGER_STAGES = (REFERENCE.name, EAGER_TWICE.name, NULL_RUNS.name)
"""Stages in which a trial that reaches its time limit says as little."""

LIMITS = ("timeout", "OOM")
"""Statuses that say by themselves what ended a trial."""

TRIALS = "trials.jsonl"
"""The file in which trials are kept until the tables are written."""

SO_FAR = "places, so far"
"""The name under which it is kept where the search of modules is after a lost worker."""

NOWHERE = ("flaky", "unknown", "guards")
"""Layers in which no module by itself can be expected to fail."""

LAST_LINES = 12
"""Of a log, for a trial that ended without an exception of its own: where it hung or crashed."""

Row = dict[str, Any]


@dataclass(frozen=True)
class FailedCell:
    """A cell that failed: the check that failed, the batch size that it ran with, and how it is run.

    `folder` is where outcomes are kept until the examination is over, `logs` has a log for each trial. `measured_at` tells
    one measurement of the cell from the next. `cause` is why it failed, if it was not just wrong.
    """

    spec: Spec
    batch_size: int
    run: RunOptions
    folder: Path
    logs: Path
    measured_at: str = ""
    cause: str | None = None

    @property
    def kept(self) -> Path:
        """Folder of what its trials have in common."""
        return self.run.cache / "expected"


def failed_cell(
    cell: Cell, row: Row, checks: Sequence[str], run: RunOptions, weights: Path | None, folder: Path, log: Path
) -> FailedCell:
    """What a row of `cells` is, out of a run of these checks; `weights` is the file that says where they lie.

    All trials have one compile cache, beside those of the cell.
    """
    check = failed_check(row, checks)
    if check is None:
        sys.exit(f"{cell.mode}/{cell.model} did not fail")
    found = record.read_optional(weights)
    run = replace(run, cache=run.cache / "diagnosis", weights=found.path if found else None)
    batch_size = row[f"{check}_batch_size"] or cell.spec(check).requested_batch_size
    measured_at = row[f"{check}_started_at"]
    cause = what_ended(row[SHOWN_STATUS[check]], row[f"{check}_cause"])
    return FailedCell(cell.spec(check), batch_size, run, folder, log.with_suffix(""), str(measured_at), cause)


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


def write_script(case: Case, failed_cell: FailedCell, found: Examination, weights: Path | None) -> Path | None:
    """The script of the module that was found, in a folder beside the tables; None without a module, or if it cannot be."""
    module = found.place.get("module")
    if not module:
        return None
    try:
        log = failed_cell.logs / "module_script.log"
        return script.write(case, failed_cell.run, weights, failed_cell.folder / "module", log, module)
    except StudyError as error:
        print(f"no script of {module}: {error}", file=sys.stderr)
        return None


def examine(failed_cell: FailedCell) -> Examination:
    """Search the layer, then the place. What was tried before an interruption is not tried again."""
    die_with_run(signal.SIGTERM)
    with interruptible():
        trials = Trials(failed_cell)
        finding = trials.follow(ladder.search(failed_cell.spec.options))
        is_planted = is_fault(failed_cell.spec.options.backend)  # which has its place in the whole graph
        place = {} if finding.layer in NOWHERE or is_planted else trials.place(finding)
        return Examination(finding, trials.rows, place, graph_script=trials.graph_script(place))


def forget(failed_cell: FailedCell) -> None:
    """Its tables are written: the next examination starts anew."""
    (failed_cell.folder / TRIALS).unlink(missing_ok=True)


def what_ended(status: str, cause: str | None) -> str | None:
    """The cause of what is not just wrong."""
    if status == "fail_accuracy":
        return None
    if status in LIMITS:
        return status
    return SIGNAL if (cause or "").startswith("SIG") else cause


def _is_of_eager(row: Row) -> bool:
    return row["status"] in OF_EAGER or (row["status"] == "timeout" and row["stage"] in EAGER_STAGES)


def deepest(known: Mapping[str, str]) -> dict[str, Any]:
    """Of the modules that were tried, the innermost that went wrong, as columns; none where none did."""
    wrong = [module for module, ended in known.items() if module and module != IN_EAGER and ended != "pass"]
    module = max(wrong, key=lambda name: name.count("."), default=None)
    return {"module": module, "direction": known[module]} if module else {}


class Trials:
    """The trials of a cell, in a file of their own, one line of JSON each."""

    def __init__(self, failed_cell: FailedCell):
        self._failed_cell, self.rows = failed_cell, list[Row]()
        self._file = failed_cell.folder / TRIALS
        self._cell = f"{failed_cell.spec.identity()} {failed_cell.measured_at}"
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
        """Run what a search asks for, until it has found something, or a trial that it goes by says nothing."""
        variant = next(search)
        while True:
            row = self._row(variant)
            outcome = self._outcome(row)
            of_eager = variant in (ladder.REPEAT, ladder.AGAIN) and row["status"] in EAGER_FAILS
            if outcome.ended == "eager" and not of_eager and variant not in ladder.WITHOUT:
                return Finding("unknown")
            try:
                variant = search.send(outcome)
            except StopIteration as stop:
                found: Finding = stop.value
                return found

    def _outcome(self, row: Row) -> TrialOutcome:
        """How a trial ended; what failing is, the first one that fails says."""
        failure = row["status"], what_ended(row["status"], row["cause"])
        if self._failure is None and row["status"] not in PASSED and not _is_of_eager(row):
            self._failure = failure
        row["ended"] = self._ending(row, failure)
        return TrialOutcome(row["ended"], row.get("applications") or 0, row.get("application"), row.get("raised_in"))

    def _ending(self, row: Row, failure: tuple[str, str | None]) -> Ending:
        if row["status"] in PASSED:
            return "pass"
        if _is_of_eager(row):
            return "eager"
        return "fail" if failure == self._failure else "other"

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
        for number in range(self._failed_cell.run.attempts):
            attempt, verdict, log = self._start(variant, self._failed_cell.cause, number)
            about = self._about(attempt, verdict, log)
            if verdict.status not in RETRYABLE and not _is_of_eager(about):
                break
        return {"variant": variant.name, **about, **attempt.columns}

    def _start(
        self, variant: Variant, cause: str | None, again: int, known: Mapping[str, str] | None = None, null_runs: bool = True
    ) -> tuple[AttemptResult, Verdict, Path]:
        failed_cell = self._failed_cell
        name = "_".join([*variant.name.split(), *(["again", str(again)] if again else [])])
        log = failed_cell.logs / f"{len(self.rows):02}.{name}.log"
        about = failed_cell.spec, failed_cell.run, variant, failed_cell.batch_size, failed_cell.kept
        request = TrialRequest(*about, known, cause, null_runs)
        with CappedLog(log) as stream:
            return *trial.run(request, stream), log

    def _about(self, attempt: AttemptResult, verdict: Verdict, log: Path) -> Row:
        crashed = verdict.status not in (*PASSED, "fail_accuracy")
        return {
            "status": verdict.status,
            "cause": verdict.cause,
            "message": shortened(verdict.message),
            "stage": attempt.stage,
            "wall_s": attempt.wall_s,
            "cpu_s": attempt.cpu_s,
            "started_at": attempt.started_at.isoformat(),
            "log": str(log),
            "last_lines": redacted("\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:]))
            if crashed
            else None,
        }

    def _keep(self, row: Row) -> Row:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": self._cell, **row}) + "\n")
        return row

    def place(self, finding: Finding) -> Mapping[str, Any]:
        """The columns of the smallest module that fails; of those that killed their workers, as far as the search came."""
        row = self._known.get(MODULE_SEARCH.name) or self._keep(self._search_places(finding))
        row |= {"number": len(self.rows), "ended": None}
        self.rows.append(row)
        return {name: row.get(name) for name in MODULE_COLUMNS}

    def graph_script(self, place: Mapping[str, Any]) -> Path | None:
        """The script of the smallest graph, beside the tables, if the search of modules came to one."""
        if not place.get("graph"):
            return None
        folder = self._failed_cell.folder / GRAPH
        shutil.copytree(self._failed_cell.kept / GRAPH, folder, dirs_exist_ok=True)
        return folder / GRAPH_SCRIPT

    def _search_places(self, finding: Finding) -> Row:
        variant, cause = replace(finding.variant, name=MODULE_SEARCH.name), self._cause_of(finding.variant)
        null_runs = cause is None or finding.layer == "eager"
        kept = self._known.get(SO_FAR, {})
        known, place, wall_s = dict(kept.get("ended", {})), dict(kept.get("place", {})), 0.0
        lost = Counter[str](kept.get("lost", {}))
        while True:
            attempt, verdict, log = self._start(variant, cause, lost.total(), known, null_runs)
            wall_s += attempt.wall_s
            about = self._about(attempt, verdict, log)
            known = known | {each["module"]: each["ended"] for each in attempt.details if "ended" in each}
            has_ended = attempt.result or (attempt.failure and cause != SIGNAL)  # broken memory raises this and that
            if has_ended or not attempt.details:
                break
            lost[verdict.status] += 1
            first, last = attempt.details[0]["module"], attempt.details[-1]["module"]
            if first == last and last not in known and verdict.status not in RETRYABLE:  # and not what came before it
                ends_so = what_ended(verdict.status, verdict.cause) == cause
                known = known | {last: "raised" if ends_so else "pass"}
                if ends_so and last != IN_EAGER:
                    kind = attempt.details[-1]["module_class"]
                    place = {"module": last, "module_class": kind, "direction": "raised", "log": about["log"]}
                    place |= {"last_lines": about["last_lines"]}
            self._known[SO_FAR] = self._keep({"variant": SO_FAR, "ended": known, "place": place, "lost": dict(lost)})
            if lost["timeout"] >= HUNG_WORKERS or lost.total() >= LOST_WORKERS:
                break
        return {"variant": variant.name, **about, **(place or deepest(known)), **attempt.columns, "wall_s": wall_s}

    def _cause_of(self, variant: Variant) -> str | None:
        """What is looked for in the modules of a variant: how its own trial failed, which may not be how the cell did."""
        tried = (self._known.get(each) for each in (variant.name, ladder.AGAIN.name))
        row = next((row for row in tried if row and row["status"] not in PASSED), None)
        return what_ended(row["status"], row["cause"]) if row else self._failed_cell.cause
