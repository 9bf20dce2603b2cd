"""A run on a cluster as it is watched where it was started: what jobs on its nodes do is seen there."""

import pytest

from slurm.cluster import wait_until
from timmgate.supervisor import stages
from workflow.conftest import PATIENCE_S

pytestmark = pytest.mark.slurm

CELL = ("cpu", "default", "inference", "test_vit")


def is_compiling(file):
    said = stages.read(file)
    return said is not None and said.stage == "compile"


def test_what_a_job_does_is_seen_and_its_end_is_a_line(new_cluster_project):
    project = new_cluster_project("watched")
    project.worker.behaviours = {"test_vit": f"wait:{project.folder / 'go'}@compile fail_accuracy"}
    run = project.start(models="test_vit", modes="inference")
    file = project.folder / stages.path_of(CELL)
    wait_until(lambda: run.poll() is not None or is_compiling(file), "that the cell compiles")
    (project.folder / "go").touch()
    printed, _ = run.communicate(timeout=PATIENCE_S)
    assert run.returncode == 0, printed
    assert "1 of 1 inference/test_vit  accuracy fail_accuracy output.1 is wrong: 1 of 2 tensors differ" in printed
    assert not file.exists()
