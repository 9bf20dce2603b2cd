"""Renews the tables every few minutes while cells are measured."""

import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path

from timmgate import module_environment
from timmgate.supervisor import stages
from timmgate.system.timing_lock import no_timing

PERIOD_S = 300.0
"""Time from the end of one renewal to the next one."""

NICENESS = 19
"""The lowest priority."""


def command(folder: Path) -> list[str]:
    """What makes the tables of what there is now, in results/{device}."""
    return [sys.executable, "-m", "timmgate.tables", str(folder)]


class Renewal:
    """A thread that has the tables in results/{device} renewed, by another process, until it is stopped.

    On a CPU nothing is timed meanwhile. When nothing is measured any more it leaves them to the rule `merge`, as it does
    whatever goes wrong.
    """

    def __init__(self, folder: Path, period_s: float = PERIOD_S):
        self._folder, self._period_s = folder, period_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(self._period_s):
            with no_timing("cpu") if self._folder.name == "cpu" else contextlib.nullcontext():
                if not self._stopping.is_set() and stages.under_way(self._folder.name):
                    self._renew()

    def _renew(self) -> None:
        process = subprocess.Popen(
            command(self._folder),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=module_environment(),
            start_new_session=True,  # so that Ctrl-C does not end it half way
        )
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        process.wait()

    def stop(self) -> None:
        """Begin no further renewal."""
        self._stopping.set()
