"""A run as a person watches it: the board in a terminal, lines in a pipe, tables at any time, and what Ctrl-C leaves."""

import os
import pty
import re
import signal
import subprocess
import sys
import threading

import pyarrow.parquet as pq
import pytest

from timmgate.supervisor import stages
from timmgate.tables import renewal
from workflow.conftest import PATIENCE_S, TABLES

WITHOUT_PLUGIN = """
import pkgutil, sys
found = pkgutil.iter_modules
pkgutil.iter_modules = lambda *where: (each for each in found(*where) if each.name != "snakemake_logger_plugin_timmgate")
from snakemake.cli import main
main(sys.argv[1:])
"""


@pytest.fixture
def two(project):
    """A project of two cells, one of which fails."""
    project.config = {"modes": "inference", "models": "test_vit,test_resnet"}
    project.worker.behaviours = {"test_resnet": "fail_accuracy"}
    return project


@pytest.fixture
def hanging(two):
    """A run with one cell done and one that goes on once `go` is there."""
    two.worker.behaviours = {"test_resnet": f"wait:{two.folder / 'go'}@compile"}
    run = two.start()
    two.worker.wait_for_start(2)
    wait_for(lambda: two.file("inference/test_vit").exists() and stage_of(two) == "compile", run)
    yield two, run
    run.kill()
    run.communicate()


def wait_for(condition, run):
    forever = threading.Event()
    while not condition():
        assert run.poll() is None
        forever.wait(0.05)


def stage_of(project):
    """The stage of the hanging cell, as its supervisor says."""
    said = stages.read(project.folder / stages.path_of(("cpu", "default", "inference", "test_resnet")))
    return said and said.stage


def make_tables(project):
    """Make the tables of what there is; what that said."""
    command = renewal.command(renewal.Path("results", "cpu"))
    done = subprocess.run(command, cwd=project.folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_pipe_has_a_line_for_each_cell_and_nothing_of_snakemakes_progress(two):
    printed = two.run()
    assert not any(path.is_file() for path in (two.folder / stages.FOLDER).rglob("*")), "nothing is left of the stages"
    lines = [line for line in printed.splitlines() if re.match(r"\d of 2 ", line)]
    assert sorted(re.sub(r"^\d of 2 |  \d+ s", "", line) for line in lines) == [
        "inference/test_resnet  accuracy fail_accuracy output.1 is wrong: 1 of 2 tensors differ; there are no null runs"
        "  log: logs/cpu/default/inference/test_resnet.log",
        "inference/test_vit  accuracy pass",
    ]
    assert [line[0] for line in lines] == ["1", "2"]
    assert "\x1b" not in printed
    assert "Finished jobid" not in printed and "rule measure" not in printed
    (log,) = (two.folder / ".snakemake" / "log").iterdir()
    assert "Finished jobid" in log.read_text() and "rule measure" in log.read_text()


def test_all_that_snakemake_says_is_there_where_it_is_wanted(two):
    printed = two.run("--verbose", models="test_vit")
    assert "Finished jobid" in printed
    assert not re.search(r"^\d of 1 inference/", printed, flags=re.MULTILINE)


def test_nothing_is_shown_where_quiet_is_wanted(two):
    printed = two.run("--quiet", "all", models="test_vit")
    assert "of 1 inference/" not in printed


def test_snakemake_works_as_ever_where_the_plugin_is_not_installed(two):
    _, *options = map(str, two.command())
    environment = {**os.environ, **two.worker.environment}
    command = [sys.executable, "-c", WITHOUT_PLUGIN, *options]
    done = subprocess.run(command, cwd=two.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Finished jobid" in done.stderr
    assert two.statuses() == {"inference/test_vit": "pass", "inference/test_resnet": "fail_accuracy"}


def test_tables_can_be_made_beside_a_run_and_change_nothing_for_it(hanging):
    project, run = hanging
    assert make_tables(project) == "results/cpu has tables of 1 of 2 requested cells; 0 of them failed"
    assert project.statuses() == {"inference/test_vit": "pass", "inference/test_resnet": "not_run"}
    assert [row["model"] for row in project.table("attempts")] == ["test_vit"], "the other one goes on"
    (project.folder / "go").touch()
    printed, _ = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, printed
    assert "Warning" not in printed
    assert set(project.statuses().values()) == {"pass"}
    assert project.planned() == set()
    before = (project.folder / "results" / "cpu" / "cells.parquet").stat().st_mtime_ns
    make_tables(project)
    assert (project.folder / "results" / "cpu" / "cells.parquet").stat().st_mtime_ns == before
    assert project.planned() == set()


def test_tables_of_a_part_are_made_again_by_any_run(hanging):
    """Also by one to which nothing is missing: what they say was requested is not what that one requests."""
    project, run = hanging
    make_tables(project)
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=PATIENCE_S)
    assert project.planned(models="test_vit") == TABLES
    project.run(models="test_vit")
    assert [(row["model"], row["requested"]) for row in project.table()] == [("test_vit", True), ("test_resnet", False)]
    assert project.planned(models="test_vit") == set()


@pytest.mark.parametrize("is_killed", [False, True])
def test_tables_of_a_run_that_broke_off_are_made_again_by_one_that_has_all_it_asks_for(is_killed, two):
    two.run(models="test_vit")
    two.worker.behaviours = {"test_resnet": "hang@compile"}
    run = two.start(models="test_resnet")
    wait_for(lambda: stage_of(two) == "compile", run)
    if is_killed:
        make_tables(two)
    os.killpg(run.pid, signal.SIGKILL if is_killed else signal.SIGINT)
    run.communicate(timeout=PATIENCE_S)
    assert [(row["model"], row["requested"]) for row in two.table()] == [("test_resnet", True), ("test_vit", False)]
    if is_killed:
        two.run("--unlock")
    assert two.planned(models="test_vit") == TABLES
    two.run(models="test_vit")
    assert [row["model"] for row in two.table() if row["requested"]] == ["test_vit"]
    assert two.planned(models="test_vit") == set()


def test_tables_that_could_not_be_made_are_made_by_the_next_run(two):
    two.run()
    evidence = two.folder / "results" / "cpu" / "evidence.parquet"
    evidence.unlink()
    evidence.mkdir()
    two.file("inference/test_resnet").unlink()
    two.run(code=1, models="test_resnet")
    assert two.planned(models="test_resnet") == TABLES
    evidence.rmdir()
    two.run(models="test_resnet")
    assert set(two.statuses()) == {"inference/test_vit", "inference/test_resnet"}
    assert two.planned(models="test_resnet") == set()


def test_what_an_interrupted_run_measured_is_in_the_history(two):
    two.config["history_path"] = "kept"
    two.worker.behaviours = {"test_resnet": "hang@compile"}
    run = two.start()
    wait_for(lambda: two.file("inference/test_vit").exists() and stage_of(two) == "compile", run)
    os.killpg(run.pid, signal.SIGINT)
    run.communicate(timeout=PATIENCE_S)
    (file,) = (two.folder / "kept").rglob("*.parquet")
    assert pq.ParquetFile(file).read(["model"]).to_pylist() == [{"model": "test_vit"}]
    two.worker.behaviours = {}
    two.run()
    (more,) = {*(two.folder / "kept").rglob("*.parquet")} - {file}
    assert {"model": "test_resnet"} in pq.ParquetFile(more).read(["model"]).to_pylist()


def test_an_interrupted_run_leaves_tables_and_says_what_is_done(hanging):
    project, run = hanging
    os.killpg(run.pid, signal.SIGINT)  # Ctrl-C
    printed, _ = run.communicate(timeout=PATIENCE_S)
    assert (
        "results/cpu has tables of 1 of 2 requested cells; 0 of them failed\nthe same command measures the rest" in printed
    )
    assert project.statuses() == {"inference/test_vit": "pass", "inference/test_resnet": "not_run"}
    assert project.scratch() == []


def test_a_refused_run_makes_no_tables_and_shows_no_board(two):
    two.environment = {"FAKE_PREFLIGHT": "no such device"}
    printed = two.run(code=1)
    assert "no such device" in printed
    assert "has tables of" not in printed
    assert not (two.folder / "results" / "cpu" / "cells.parquet").exists()


def in_terminal(project, until=None):
    """Run in a terminal of 80 columns, with Ctrl-C once it shows what matches `until`; what was written to it."""
    controller, terminal = pty.openpty()
    run = subprocess.Popen(
        project.command(),
        cwd=project.folder,
        env={**os.environ, **project.worker.environment, "TERM": "xterm-256color", "COLUMNS": "80"},
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    written = b""
    while chunk := read(controller):
        written += chunk
        if until and re.search(until, written):
            os.killpg(run.pid, signal.SIGINT)
            until = None
    run.wait(PATIENCE_S)
    return written.decode()


def read(controller):
    try:
        return os.read(controller, 1 << 16)
    except OSError:  # Linux says so when nobody has the terminal any more
        return b""


def test_a_terminal_has_a_picture_that_is_gone_at_the_end_and_the_failures(two):
    written = in_terminal(two)
    assert "cpu: 0 of 2 cells" in written
    assert re.search(r"fail_accuracy\x1b\[0m inference/test_resnet accuracy", written)
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1
    after = written[written.index("\x1b[?25h") :]
    assert "accuracy on cpu" in after, "the tables come when the picture is gone"
    assert "cpu: " not in after


def test_ctrl_c_leaves_a_clean_terminal_and_says_what_is_done(two):
    two.worker.behaviours = {"test_resnet": "hang@compile"}
    written = in_terminal(two, until=rb"cpu: 1 of 2 cells")
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h") == 1
    after = written[written.index("\x1b[?25h") :]
    assert "results/cpu has tables of 1 of 2 requested cells" in after
    assert "attempt 1" not in written, "no log is poured out"
    two.wait_for_end()
