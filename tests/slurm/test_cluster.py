"""The workflow on a real Slurm: the whole matrix."""

import pytest

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def campaign(new_cluster_project):
    project = new_cluster_project("campaign")
    project.run()
    return project


def test_every_cell_has_its_row(campaign):
    assert len(campaign.statuses()) == 24
    assert set(campaign.statuses().values()) == {"pass"}
    print(campaign.worker.starts()[0])
