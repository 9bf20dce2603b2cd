"""The workflow on a real Slurm: the real compiler, and job arrays."""

from types import SimpleNamespace

import pytest

from slurm.cluster import NODES
from workflow.conftest import ROOT

pytestmark = [pytest.mark.slurm, pytest.mark.slow]


def test_the_real_worker_measures_on_the_nodes(cluster, new_cluster_project):
    project = new_cluster_project("real")
    project.worker = SimpleNamespace(environment={})
    project.patience_s = 900
    project.run(
        checks="accuracy,performance",
        models="test_vit,test_resnet",
        modes="inference,training",
        batch_size=2,
        timing_limit=2,
    )
    cells = project.table()
    assert [(cell["accuracy"], cell["performance"], cell["accuracy_attempt"]) for cell in cells] == [("pass", "pass", 1)] * 4
    assert cluster.rules(project.folder) == {"measure", "preflight"}


def test_cells_can_be_submitted_as_an_array(cluster, new_cluster_project, tmp_path):
    lines = (ROOT / "profiles" / "slurm" / "profile.yaml").read_text().splitlines()
    kept = [line for line in lines if not line.startswith("slurm-pass-command-as-script:")]
    (tmp_path / "profile.yaml").write_text("\n".join([*kept, "slurm-array-jobs: measure"]))
    project = new_cluster_project("array")
    project.executor = ("--profile", tmp_path, *project.executor[2:])
    assert "Submitted array job" in project.run("--verbose", modes="inference")
    assert list(project.statuses().values()) == ["pass"] * 6
    assert {start["node"] for start in project.worker.starts()} == set(NODES)
