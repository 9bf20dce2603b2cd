"""The live board as a logger of Snakemake: `snakemake --logger timmgate`.

Snakemake finds it by the name of this package. Every Snakemake of the environment imports it: nothing heavy is imported
before there is something to show.
"""

import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from snakemake_interface_logger_plugins.base import LogHandlerBase
from snakemake_interface_logger_plugins.common import LogEvent

if TYPE_CHECKING:
    from timmgate.report.board import Board
    from timmgate.report.progress import Plan

SEEN = "seen"
"""Attribute of a record with an event that is set when the record has come here."""

QUEUE_S = 10.0
"""Longest time for that."""


class LogHandler(LogHandlerBase):
    """Shows a board while cells are measured, and of what Snakemake says what is neither progress nor details of jobs.

    With `--verbose` and in a dry run there is no board and all of it; with `--quiet` what that leaves, and a board unless it
    names `all` or `progress`. Snakemake's log file has everything.
    """

    def __post_init__(self) -> None:
        from snakemake.logging import ColorizingTextHandler, DefaultFilter, DefaultFormatter
        from snakemake.settings.enums import Quietness

        settings = self.common_settings
        is_quiet = {Quietness.ALL, Quietness.PROGRESS} & set(settings.quiet or ())
        self._is_wanted = not (settings.verbose or settings.dryrun or is_quiet)
        options = {name: getattr(settings, name) for name in ("debug_dag", "verbose", "dryrun", "printshellcmds")}
        self._terminal = ColorizingTextHandler(
            nocolor=settings.nocolor,
            stream=self._stream(),
            formatter=DefaultFormatter(settings.quiet, settings.show_failed_logs),
            filter=DefaultFilter(settings.quiet, **options),
        )
        self._board: Board | None = None
        self._board_s = math.inf, -math.inf

    def _stream(self) -> "object":
        return sys.stdout if self.common_settings.stdout else sys.stderr

    @contextmanager
    def board(self, plan: "Plan") -> Iterator[None]:
        """Show a board of what is planned, where it is wanted."""
        from threading import Event
        from time import time

        from snakemake.logging import logger

        from timmgate.report.board import board

        if not self._is_wanted:
            yield
            return
        shown = board(plan, sys.stderr, self.common_settings.nocolor)
        self._board_s = time(), math.inf
        shown.start()
        self._board = shown
        try:
            yield
        finally:
            seen = Event()  # records come to us through a queue: wait for what was said until now
            logger.info("", extra={SEEN: seen})
            seen.wait(QUEUE_S)
            self._board = None
            self._board_s = self._board_s[0], time()
            shown.stop()

    def emit(self, record: logging.LogRecord) -> None:
        """Show what Snakemake says. Called by one thread that is none of those that say it."""
        try:
            if seen := getattr(record, SEEN, None):
                seen.set()
            if self._board:
                self._tell(self._board, record)
            if self._is_shown(record):
                self._terminal.setStream(self._stream())  # above the board, if there is one
                self._terminal.handle(record)
        except Exception:
            self.handleError(record)

    def _is_shown(self, record: logging.LogRecord) -> bool:
        """Warnings and errors are, but for cells of the board, which has a line for that.

        What jobs do is not where a board is wanted, and nothing else while there is one.
        """
        since_s, until_s = self._board_s
        has_board = since_s <= record.created <= until_s
        if record.levelno >= logging.WARNING:
            return not (has_board and getattr(record, "rule_name", None) == "measure")
        return not (self._is_wanted and (hasattr(record, "event") or has_board))

    @staticmethod
    def _tell(board: "Board", record: logging.LogRecord) -> None:
        match getattr(record, "event", None):
            case LogEvent.JOB_INFO:
                board.started(record.jobid, record.rule_name, record.wildcards, record.created)
            case LogEvent.JOB_FINISHED:
                board.finished(record.job_id, record.created)
            case LogEvent.JOB_ERROR:
                board.lost(record.jobid)

    @property
    def writes_to_stream(self) -> bool:
        """It does."""
        return True

    @property
    def writes_to_file(self) -> bool:
        """It does not."""
        return False

    @property
    def has_filter(self) -> bool:
        """The board needs what a filter would keep back."""
        return True

    @property
    def has_formatter(self) -> bool:
        """What is printed is formatted by Snakemake's own."""
        return True

    @property
    def needs_rulegraph(self) -> bool:
        """It does not."""
        return False
