"""What the tests of processes share: a stand-in for the worker, and what it left behind."""

import fcntl
import json
import shlex
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import psutil
import pytest

from timmgate.config import builds, registry
from timmgate.config.builds import Build
from timmgate.core.protocol import Request

ROOT = Path(__file__).parents[1]
# A shell has what it starts in the background ignore SIGINT, and nohup SIGHUP; our children would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
hypothesis.settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("unhurried")
PATIENCE_S = 300.0
"""Longest time for something to happen that must: a busy machine may take many times as long as an idle one."""


@dataclass
class FakeWorker:
    """How tests tell tests/fake_worker.py what to do, and what it did: `environment` makes a supervisor start it."""

    journal: Path
    behaviours: dict[str, str] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        return {
            "TIMMGATE_WORKER": shlex.join([sys.executable, str(ROOT / "tests" / "fake_worker.py")]),
            "FAKE_WORKER": json.dumps(self.behaviours),
            "FAKE_WORKER_JOURNAL": str(self.journal),
        }

    def entries(self) -> list[dict]:
        """What every process of it wrote at its start; a line that is being written is left out."""
        lines = self.journal.read_text().split("\n")[:-1] if self.journal.exists() else []
        return [json.loads(line) for line in lines]

    def starts(self) -> list[dict]:
        """The entries of the workers that measure, without those of their children."""
        return [entry for entry in self.entries() if "cell" in entry]

    def requests(self) -> list[Request]:
        """What these were told."""
        return [Request.from_json(entry["request"]) for entry in self.starts()]

    def preflights(self) -> list[dict]:
        """The entries of those that were asked whether the request is possible."""
        return [entry for entry in self.entries() if "preflight" in entry]

    def cells(self) -> list[str]:
        """The cells that were started, as "mode/model", sorted."""
        return sorted(entry["cell"] for entry in self.starts())

    def alive(self) -> list[dict]:
        """The processes of it that still live."""
        return [entry for entry in self.entries() if _is_alive(entry["pid"])]

    def hung(self) -> set[int]:
        """The process ids of those that hang."""
        path = Path(f"{self.journal}.hung")
        return {int(line) for line in path.read_text().split()} if path.exists() else set()

    def wait_for_start(self, processes: int) -> None:
        """Return when so many processes that measure have started, counting their children."""
        wait_until(lambda: len(self.entries()) - len(self.preflights()) >= processes)

    def wait_for_end(self) -> None:
        """Return when none of its processes lives any more."""
        wait_until(lambda: not self.alive())


def _is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"it did not happen within {PATIENCE_S} s"
        time.sleep(0.02)


SLOWEST_FIRST = (
    *("test_real_worker.py", "test_cell.py", "test_script.py", "test_diagnose.py", "test_gate.py", "test_retry.py"),
    *("workflow", "browser", "weights", "worker", "system", "supervisor", "report", "tables", "diagnosis", "config"),
)
"""Files and folders of tests that take longest; the first computes while the second waits."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest comes first, so that two processes of pytest-xdist, which share it file by file, end together."""

    def rank(item: pytest.Item) -> int:
        ranks = (number for number, name in enumerate(SLOWEST_FIRST) if name in item.path.parts)
        return next(ranks, len(SLOWEST_FIRST))

    items.sort(key=rank)


@pytest.fixture(scope="session", autouse=True)
def own_locks(tmp_path_factory):
    """Locks of devices of our own: whatever else is measured on this machine shall not pause our processes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIMMGATE_LOCKS", str(tmp_path_factory.mktemp("locks")))
        yield


@pytest.fixture(scope="session")
def build_cache(pytestconfig) -> Path:
    """A folder that remembers digests of installed sources, which take seconds to make: it is kept for the next session."""
    return pytestconfig.cache.mkdir("builds")


@pytest.fixture(scope="session")
def installed(build_cache) -> Build:
    """The build of the environment that the tests run in."""
    with (build_cache / "lock").open("w") as lock:  # of the processes of pytest-xdist one finds out, and the others read it
        fcntl.flock(lock, fcntl.LOCK_EX)
        return builds.find(build_cache)


@pytest.fixture(scope="session")
def listed(installed, build_cache) -> Path:
    """A folder with the list of the models of the installed timm, to be copied; it is kept like the digests."""
    with (build_cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        registry.load(build_cache, installed)
    return build_cache


@pytest.fixture(scope="session")
def new_fake_worker() -> type[FakeWorker]:
    """Makes one from the path of its journal."""
    return FakeWorker


@pytest.fixture
def fake_worker(tmp_path, new_fake_worker) -> FakeWorker:
    return new_fake_worker(tmp_path / "journal.jsonl")
