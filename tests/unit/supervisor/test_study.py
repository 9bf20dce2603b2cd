"""Processes that study a model: how they end is told, and nothing of them is left."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest

import specs
from conftest import wait_until
from timmgate.core.build import BuildOptions
from timmgate.core.run_options import RunOptions
from timmgate.supervisor import study
from timmgate.system.timing_lock import exclusive_device

STUDIES = {
    "finds": "    return [{'found': places}]",
    "looks": "    return [{name: os.environ[name] for name in places}]",
    "fails": "    sys.exit(3)",
    "crashes": "    os.kill(os.getpid(), signal.SIGSEGV)",
    "prints": "    print('x' * (10 << 20))\n    return []",
    "allocates": "    held = bytearray(b'x') * (400 << 20)\n    time.sleep(600)",
    "ticks": """
    ticks = pathlib.Path(places)
    while not ticks.with_name("enough").exists():
        with ticks.open("a") as file:
            file.write(".")
        time.sleep(0.01)
    return []
""",
    "hangs": """
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    pathlib.Path(places).write_text(str(child.pid))
    time.sleep(600)
""",
}
HEAD = "import os, pathlib, signal, subprocess, sys, time\n\ndef study(spec, run, device_number, places):\n"
LIMIT_S = 600.0


@pytest.fixture
def run(tmp_path):
    """Run options with which the modules of `STUDIES` are found; each in a folder of the test."""
    for name, code in STUDIES.items():
        (tmp_path / f"study_that_{name}.py").write_text(HEAD + code)
    return RunOptions(build=BuildOptions(env={"PYTHONPATH": str(tmp_path)}))


@pytest.fixture
def study_that(run, tmp_path):
    """Has the study of that name made, with limits, of what may be anything."""

    def rows(name, places=None, limit_s=LIMIT_S, **limits):
        log = tmp_path / "log"
        return study.rows(f"study_that_{name}", specs.spec(), replace(run, **limits), None, log, limit_s, places=places)

    return rows


def test_a_study_hands_its_rows_on(study_that):
    assert study_that("finds", ["first"]) == [{"found": ["first"]}]


def test_a_study_compiles_into_its_own_cache_with_its_share_of_the_cores_and_leaves_the_toolchain_alone(
    study_that, tmp_path
):
    folders = {"cache": tmp_path / "cache", "toolchain": tmp_path / "toolchain"}
    (seen,) = study_that("looks", ["TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS"], threads=3, **folders)
    assert [*seen.values()] == [str(tmp_path / "cache"), "3"]


@pytest.mark.parametrize(("name", "how"), [("fails", "exit code 3"), ("crashes", "SIGSEGV")])
def test_a_study_that_fails_ends_the_job_with_a_sentence(study_that, name, how):
    with pytest.raises(study.StudyError, match=f"inference/test_vit: study_that_{name} failed .{how}: .*; see .*log"):
        study_that(name)


def test_a_study_has_the_memory_limit_of_a_measurement(study_that):
    with pytest.raises(study.StudyError, match=r"failed .limit of 0.3 GB: the processes used 0\.\d GB"):
        study_that("allocates", memory_bytes=300 * 10**6)


def test_of_a_study_that_prints_without_end_both_ends_are_kept(study_that, tmp_path):
    study_that("prints")
    assert (tmp_path / "log").stat().st_size < 9 << 20


def test_a_study_is_paused_while_a_measurement_is_timed(study_that, tmp_path):
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
        assert study_that("ticks", str(ticks)) == []
        assert looking.result() == 0


def test_a_study_that_hangs_is_ended_with_all_that_it_started(study_that, tmp_path):
    child = tmp_path / "child"
    for limit_s in (5.0, 50.0, 500.0):  # a busy machine may not have started it before
        with pytest.raises(study.StudyError, match=f"failed .limit of {limit_s:g} s"):
            study_that("hangs", str(child), limit_s)
        if child.is_file() and child.read_text():
            break
    assert not psutil.pid_exists(int(child.read_text()))
