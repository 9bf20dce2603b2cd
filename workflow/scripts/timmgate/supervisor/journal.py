"""Every attempt at a cell, in a file beside its rows that only grows: what became of it, also of those that left no row.

A JSON line when a check begins and one when it ends. A beginning without an end is the trace of a supervisor that was
killed; the next one finds it, on whatever machine it runs, and so knows how many attempts there were.
"""

import json
import os
import socket
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from timmgate.core.outcome import RETRYABLE, AttemptResult, Verdict, now
from timmgate.core.redact import shortened
from timmgate.system.process_tree import interruptible

NAME = "attempts.jsonl"
"""Of the file, beside the rows."""

LOST = Verdict("infra_error", "lost", "whatever supervised it was ended from outside, or its machine went down")
"""What becomes of a check whose supervisor did not live to see its end."""


NO_IDENTITIES: Mapping[str, str] = {}


class Journal:
    """The attempts at one cell since its rows were written last. `retry` is how often a rerun of it was requested.

    `identities` are those of its checks: attempts at what the cell was before, as with another torch, do not count.
    By check, `attempts` counts them, `failed_attempts` those that ended in a way that another attempt can cure, and
    `last_failed` has what is known of the last of these; `wall_s` is the duration of all. `has_loss` says whether one of
    them left only a trace. `error` is what kept the rows from being written the last time, if it was not somebody's request.
    Methods that write raise OSError if they cannot.
    """

    def __init__(self, path: Path, retry: int = 0, identities: Mapping[str, str] = NO_IDENTITIES):
        self._path, self._retry, self._identities = path, retry, identities
        self.attempts: Counter[str] = Counter()
        self.failed_attempts: Counter[str] = Counter()
        self.wall_s: defaultdict[str, float] = defaultdict(float)
        self.last_failed: dict[str, dict[str, Any]] = {}
        self.error: str | None = None
        self.has_loss = False
        for entry in entries(path):
            if entry.get("identity") == identities.get(entry.get("check_name", "")):
                self._count(entry)

    def began(self, check: str) -> None:
        """An attempt at a check begins."""
        number = self.attempts[check] + 1
        self._append(**self._about("began", check, number), began_at=now().isoformat())

    def ended(self, check: str, attempt: AttemptResult, verdict: Verdict) -> None:
        """It has ended."""
        self._end(check, self.attempts[check] + 1, attempt, verdict)

    def never_began(self, check: str, attempt: AttemptResult, verdict: Verdict) -> None:
        """There is nothing to begin with."""
        self._end(check, 0, attempt, verdict)

    def _about(self, event: str, check: str, number: int) -> dict[str, Any]:
        about = {"event": event, "check_name": check, "attempt": number, "retry": self._retry, "host": socket.gethostname()}
        return about | ({"identity": self._identities[check]} if check in self._identities else {})

    def _end(self, check: str, number: int, attempt: AttemptResult, verdict: Verdict) -> None:
        entry = {
            **self._about("ended", check, number),
            "status": verdict.status,
            "stage": attempt.stage,
            "cause": verdict.cause,
            "message": shortened(verdict.message),
            "strict": attempt.columns.get("strict"),
            "strict_message": shortened(attempt.columns.get("strict_message")),
            "batch_size": attempt.columns.get("batch_size"),
            "wall_s": attempt.wall_s,
            "peak_rss_bytes": attempt.peak_rss_bytes or None,
            "ended_at": now().isoformat(),
        }
        self._append(**entry)
        self._count(entry)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """A measurement, up to its rows. One that is ended on request, or by an error here, is none of the attempts.

        It can be asked to end while the context lasts: SystemExit.
        """
        with interruptible(self._interrupted):
            try:
                yield
            except Exception as error:
                self._interrupted(shortened(str(error)))
                raise
            self._append(event="rows")

    def _interrupted(self, error: str | None = None) -> None:
        with suppress(OSError):
            self._append(event="interrupted", error=error)

    def _count(self, entry: dict[str, Any]) -> None:
        match entry["event"]:
            case "rows":
                for of_checks in (self.attempts, self.failed_attempts, self.wall_s, self.last_failed):
                    of_checks.clear()
                self.error, self.has_loss = None, False
            case "interrupted":
                self.error = entry.get("error")
            case "ended":
                self.error, check = None, entry["check_name"]
                self.attempts[check] += 1
                self.wall_s[check] += entry.get("wall_s") or 0.0
                self.has_loss |= entry["cause"] == LOST.cause
                if entry["status"] in RETRYABLE:
                    self.failed_attempts[check] += 1
                    self.last_failed[check] = entry

    def _append(self, **entry: Any) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a+b") as file:
            # A line that was cut off, as when the disk was full, stays a line of its own.
            start = b"\n" if _is_cut_off(file) else b""
            file.write(start + json.dumps(entry).encode() + b"\n")


def _is_cut_off(file: BinaryIO) -> bool:
    if file.seek(0, os.SEEK_END) == 0:
        return False
    file.seek(-1, os.SEEK_END)
    return file.read() != b"\n"


def entries(path: Path, is_measured_now: bool = False) -> Iterator[dict[str, Any]]:
    """What the file says, with an end for what was lost. A line that is not complete is passed over.

    An attempt that has only begun, at the end of the file, is lost unless the cell is being measured now.
    """
    under_way = None
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry["event"] == "began":
            if under_way:
                yield lost(under_way)
            under_way = entry
        elif entry["event"] == "ended":
            yield {**(under_way or {}), **entry}
            under_way = None
        else:
            under_way = None
            yield entry
    if under_way and not is_measured_now:
        yield lost(under_way)


def last_ends(path: Path) -> dict[str, dict[str, Any]]:
    """By check, how it ended the last time."""
    return {entry["check_name"]: entry for entry in entries(path) if entry["event"] == "ended"}


def lost(began: dict[str, Any]) -> dict[str, Any]:
    """The end of an attempt that has none."""
    return {**began, "event": "ended", **asdict(LOST)}


def rows_of(path: Path, key: dict[str, str], is_measured_now: bool = False) -> list[dict[str, Any]]:
    """The attempts that have ended as rows of the table `attempts`; `key` is the cell."""
    times = ("began_at", "ended_at")
    return [
        {
            **key,
            **{name: value for name, value in entry.items() if name not in ("event", "identity", *times)},
            **{name: datetime.fromisoformat(entry[name]) for name in times if name in entry},
        }
        for entry in entries(path, is_measured_now)
        if entry["event"] == "ended"
    ]
