"""Shows where a run stands, while it runs: redrawn in place in a terminal, else in lines.

In a terminal whatever else is printed meanwhile scrolls by above it, also each failure. Elsewhere there is a line for each
cell when it is done, and one for the whole run every minute.
"""

import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from timmgate.report.progress import STATES, Finished, Job, Plan, Progress
from timmgate.report.time_left import duration_words
from timmgate.supervisor.stages import WAITING

REDRAW_S = 1.0
"""Time between two looks, and two pictures."""

SUMMARY_S = 60.0
"""Time between two lines about the whole run."""

STYLES = {"done": "green", "failed": "bold red", "running": "cyan", "queued": "dim"}

IN_WORDS = {WAITING: "waits for a core or device", "queue": "waits to be timed", "timing": "is timed"}
"""Stages that say little by themselves."""

SPACE = 8
"""Lines of a terminal that are left to what scrolls by."""


class Board(ABC):
    """What has to be told of a run, and a thread that shows it, between `start` and `stop`. May be told by any thread."""

    def __init__(self, plan: Plan, console: Console):
        self._progress = Progress(plan, time.time())
        self._console = console
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to show it."""
        self._thread.start()

    def stop(self) -> None:
        """Leave the terminal as it was."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        """Show it again and again. What fails here is said, and the run goes on without."""
        try:
            while True:
                with self._lock:
                    self._progress.look()
                    self.show(time.time())
                if self._stopping.wait(REDRAW_S):
                    return
        except Exception:
            traceback.print_exc()
        finally:
            self.close()

    def started(self, number: int, rule: str, wildcards: Mapping[str, str], at_s: float) -> None:
        """Snakemake has started a job."""
        with self._lock:
            self._progress.started(number, rule, wildcards, at_s)

    def finished(self, number: int, at_s: float) -> None:
        """A job has ended well."""
        with self._lock:
            if ended := self._progress.finished(number, at_s):
                self.show_finished(ended)

    def lost(self, number: int) -> None:
        """A job has ended without a result; a line, if it was a cell."""
        with self._lock:
            job = self._progress.lost(number)
            if job and job.cell:
                log = self._progress.plan.log(job.cell)
                self._print(Text.assemble(("lost", STYLES["failed"]), f" {job.name}  ended without a row  log: {log}"))

    def _print(self, line: Text) -> None:
        self._console.print(line, soft_wrap=True)

    @abstractmethod
    def show(self, now_s: float) -> None:
        """Show where the run stands."""

    @abstractmethod
    def show_finished(self, ended: Finished) -> None:
        """Show a cell that is done."""

    @abstractmethod
    def close(self) -> None:
        """Show nothing any more."""


class Picture(Board):
    """Redrawn in place, in a terminal."""

    def __init__(self, plan: Plan, console: Console):
        super().__init__(plan, console)
        self._live = Live(console=console, auto_refresh=False, transient=True)

    def start(self) -> None:
        """Begin to show it."""
        self._live.start()
        super().start()

    def show(self, now_s: float) -> None:
        """Draw it anew."""
        width, height = self._console.size
        self._live.update(picture(self._progress, now_s, width, height - SPACE), refresh=True)

    def show_finished(self, ended: Finished) -> None:
        """Only what failed, above the picture."""
        for check, end in ended.failures.items():
            self._print(failure(ended, check, end))

    def close(self) -> None:
        """Remove the picture."""
        self._live.stop()


class Lines(Board):
    """One line after the other, for files and pipes."""

    def __init__(self, plan: Plan, console: Console):
        super().__init__(plan, console)
        self._shown_s = time.time()

    def show(self, now_s: float) -> None:
        """A line every minute."""
        if now_s - self._shown_s >= SUMMARY_S:
            self._shown_s = now_s
            self._print(Text(f"{time.strftime('%X', time.localtime(now_s))} {summary(self._progress, now_s)}"))

    def show_finished(self, ended: Finished) -> None:
        """A line for every cell."""
        counts = self._progress.total()
        self._print(Text(f"{counts['done'] + counts['failed']} of {sum(counts.values())} {line(ended)}"))

    def close(self) -> None:
        """Nothing is to be undone."""


def board(plan: Plan, stream: TextIO, no_color: bool) -> Board:
    """The board that suits a stream."""
    console = Console(file=stream, no_color=no_color or None, highlight=False)
    return (Picture if stream.isatty() and not console.is_dumb_terminal else Lines)(plan, console)


def picture(progress: Progress, now_s: float, width: int, height: int) -> Group:
    """Everything, below an empty line, in so many columns and, but for the shortest terminals, lines."""
    counts, running = table(progress, max(height // 2 - 2, 2)), list(progress.running())
    room = max(height - counts.row_count - 5, 1)
    jobs = [job_line(job, now_s, width) for job in running[:room]]
    if len(running) > room:
        jobs.append(Text(f"  and {len(running) - room} more", style="dim"))
    title = Text(headline(progress, now_s), style="bold", no_wrap=True, overflow="ellipsis")
    return Group("", title, counts, Text(busy(running), no_wrap=True, overflow="ellipsis"), *jobs)


def headline(progress: Progress, now_s: float) -> str:
    """Device, cells, the time that has passed, and the time that is left."""
    counts = progress.total()
    ended = counts["done"] + counts["failed"]
    return f"{progress.plan.device}: {ended} of {sum(counts.values())} cells, {times(progress, now_s)}{others(progress)}"


def others(progress: Progress) -> str:
    """How many jobs that are no cells are done, of the rules of which some run."""
    told = (
        f"; {rule}: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
        for rule, counts in progress.others.items()
        if counts["running"]
    )
    return "".join(told)


def times(progress: Progress, now_s: float) -> str:
    """The time that has passed, and the time that is left with its interval."""
    passed, left = duration_words(now_s - progress.began_s), progress.time_left(now_s)
    if left is None:
        return f"{passed}; time left: unknown until a cell is done"
    if left.high == 0:
        return passed
    return f"{passed}; about {duration_words(left.seconds)} left ({duration_words(left.low)} to {duration_words(left.high)})"


def table(progress: Progress, rows: int) -> Table:
    """Cells by build, mode and state, in so many rows and one of sums; if that is too few, the modes with most to do."""
    modes = list(progress.counts.items())
    builds = progress.plan.has_builds
    if len(modes) > rows:
        modes.sort(key=lambda item: (-item[1]["running"], -item[1]["queued"]))
        rest = sum((counts for _, counts in modes[rows - 1 :]), Counter())
        modes = [*modes[: rows - 1], (("", f"{len(modes) - rows + 1} more"), rest)]
    shown = Table(box=None, padding=(0, 1), header_style="")
    for name in [*(["build"] if builds else []), "mode"]:
        shown.add_column(name, no_wrap=True, overflow="ellipsis")
    for state in STATES:
        shown.add_column(state, justify="right", style=STYLES[state], no_wrap=True)
    for (build, mode), counts in modes:
        shown.add_row(*([build] if builds else []), mode, *(str(counts[state] or "") for state in STATES))
    if len(modes) > 1:
        counts = progress.total()
        shown.add_row(*([""] if builds else []), "all", *(str(counts[state] or "") for state in STATES))
    return shown


def busy(running: list[Job]) -> str:
    """How many jobs run, and what keeps some of them."""
    stages = Counter(job.stage.stage for job in running if job.stage and not job.stage.is_paused)
    parts = {
        "being timed": stages["timing"],
        "waiting to be timed": stages["queue"],
        "paused meanwhile": sum(job.stage.is_paused for job in running if job.stage),
        "not begun": sum(job.stage is None for job in running if job.cell) + stages[WAITING],
    }
    said = ", ".join(f"{number} {what}" for what, number in parts.items() if number)
    return f"running: {len(running)}{said and f', of them {said}'}"


def job_line(job: Job, now_s: float, width: int) -> Text:
    """One job in one line: what it is, cut off if need be, the check and stage, and since when."""
    what, since_s = _doing(job)
    doing = f"  {what} {duration_words(max(now_s - since_s, 0.0))}"
    name = Text(f"  {job.name}")
    name.truncate(max(width - len(doing), 12), overflow="ellipsis")
    return Text.assemble(name, (doing, STYLES["running"]), no_wrap=True)


def _doing(job: Job) -> tuple[str, float]:
    if job.stage is None:
        return ("starting" if job.cell else ""), job.since_s
    words_of_stage = IN_WORDS.get(job.stage.stage, job.stage.stage)
    paused = ", paused" if job.stage.is_paused else ""
    return f"{job.stage.check} {words_of_stage}{paused}", job.stage.since_s


def failure(ended: Finished, check: str, end: Mapping[str, Any]) -> Text:
    """A check that failed: status, cell, check, the reason, and the log."""
    words_of_cell = "  ".join(filter(None, (f" {ended.name} {check}", end.get("reason"), f"log: {ended.log}")))
    return Text.assemble((end["status"], STYLES["failed"]), words_of_cell)


def line(ended: Finished) -> str:
    """A cell that is done: how each check ended, why if it failed, its seconds, and the log if something failed."""
    checks = [" ".join(filter(None, (check, end["status"], end.get("reason")))) for check, end in ended.ends.items()]
    log = [f"log: {ended.log}"] if ended.failures else []
    return "  ".join([ended.name, ", ".join(checks), duration_words(ended.seconds), *log])


def summary(progress: Progress, now_s: float) -> str:
    """Where the run stands, in one line."""
    counts = progress.total()
    states = ", ".join(f"{counts[state]} {state}" for state in STATES)
    return f"{states} of {sum(counts.values())} cells, {times(progress, now_s)}{others(progress)}"
