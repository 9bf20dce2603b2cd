"""Runs that are cut short: nothing lives on, nothing half is left, and the next run completes the work."""

import os
import signal
import subprocess
import sys
import time

import pytest

from workflow.conftest import PATIENCE_S

CELLS = {"inference/test_vit", "inference/test_resnet"}


@pytest.fixture
def interrupted(project):
    """A run with one cell done and one that hangs, with children that are hard to kill."""
    project.config = {"modes": "inference", "models": "test_vit,test_resnet"}
    project.worker.behaviours = {"test_resnet": "stubborn@load family@load hang@compile"}
    run = project.start()
    project.worker.wait_for_start(4)
    while not project.file("inference/test_vit").exists():
        assert run.poll() is None  # the row may be about to be written: that must not be left half done either
        time.sleep(0.01)
    yield project, run
    run.kill()
    run.communicate()


def end(run: subprocess.Popen) -> str:
    printed, _ = run.communicate(timeout=PATIENCE_S)
    assert run.returncode != 0
    return printed


def complete(project) -> None:
    """The hanging cell does not hang any more: a plain run measures it, and makes the tables."""
    assert project.processes() == []
    assert project.worker.alive() == []
    assert not any("test_resnet" in file and file.endswith(".parquet") for file in project.files()), "no half a row"
    assert project.scratch() == []
    project.worker.behaviours = {}
    project.run()
    assert project.statuses() == dict.fromkeys(CELLS, "pass")
    assert project.worker.cells().count("inference/test_resnet") == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel must tell the supervisors")
def test_nothing_outlives_a_killed_snakemake_and_a_plain_run_completes_the_work(interrupted):
    project, run = interrupted
    run.kill()
    end(run)
    project.wait_for_end()
    project.run("--unlock")
    complete(project)


def test_nothing_outlives_an_interrupted_process_group_and_a_plain_run_completes_the_work(interrupted):
    project, run = interrupted
    os.killpg(run.pid, signal.SIGINT)  # Ctrl-C
    end(run)
    complete(project)
