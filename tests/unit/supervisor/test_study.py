"""Processes that study a model: how they end is told, and nothing of them is left."""

import time
from concurrent.futures import ThreadPoolExecutor

import psutil
import pytest

import specs
from conftest import wait_until
from timmgate.core.build import BuildOptions
from timmgate.core.run_options import RunOptions
from timmgate.supervisor import study
from timmgate.system.timing_lock import exclusive_device

PATIENCE_S = 60.0
STUDIES = {
    "writes": "import json, sys; json.dump([{'found': 1}], open(sys.argv[2], 'w'))",
    "fails": "import sys; sys.exit(3)",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "ticks": """
import pathlib, sys, time
ticks = pathlib.Path(sys.argv[2])
while not ticks.with_name("enough").exists():
    with ticks.open("a") as file:
        file.write(".")
    time.sleep(0.01)
""",
    "hangs": """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
pathlib.Path(sys.argv[2]).write_text(str(child.pid))
time.sleep(600)
""",
}


@pytest.fixture
def run(tmp_path):
    """Run options with which the modules of `STUDIES` are found; each in a folder of the test."""
    for name, code in STUDIES.items():
        (tmp_path / f"study_that_{name}.py").write_text(code)
    return RunOptions(build=BuildOptions(env={"PYTHONPATH": str(tmp_path)}))


def test_a_study_hands_its_rows_on(run, tmp_path):
    assert study.rows("study_that_writes", specs.spec(), run, None, tmp_path / "log") == [{"found": 1}]


@pytest.mark.parametrize(("name", "how"), [("fails", "ended with exit code 3"), ("crashes", "was killed by SIGSEGV")])
def test_a_study_that_fails_ends_the_job_with_a_sentence(run, tmp_path, name, how):
    with pytest.raises(study.StudyError, match=f"study_that_{name} {how}; see .*log"):
        study.rows(f"study_that_{name}", specs.spec(), run, None, tmp_path / "log")


def test_a_study_is_paused_while_a_measurement_is_timed(run, tmp_path):
    ticks = tmp_path / "ticks"

    def grown(before: int) -> bool:
        return ticks.is_file() and ticks.stat().st_size > before

    def look() -> int:
        """How much it did while a measurement was timed; afterwards it goes on, and is told to end."""
        try:
            wait_until(lambda: grown(0))
            with exclusive_device("cpu"):
                before = ticks.stat().st_size
                time.sleep(0.3)
                done = ticks.stat().st_size - before
            wait_until(lambda: grown(before))
        finally:
            (tmp_path / "enough").touch()
        return done

    with ThreadPoolExecutor(1) as thread:
        looking = thread.submit(look)
        assert study.process("study_that_ticks", specs.spec(), run, None, tmp_path / "log", ticks, None) is None
        assert looking.result() == 0


def test_a_study_that_hangs_is_ended_with_all_that_it_started(run, tmp_path):
    answer = tmp_path / "child"
    for limit_s in (1.0, 10.0, 100.0):  # a busy machine may not have started it before
        about = specs.spec(), run, None, tmp_path / "log", answer, limit_s
        assert study.process("study_that_hangs", *about) == f"did not end in {limit_s:.0f} s"
        if answer.is_file() and answer.read_text():
            break
    child = int(answer.read_text())
    deadline = time.monotonic() + PATIENCE_S
    while psutil.pid_exists(child) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not psutil.pid_exists(child)
