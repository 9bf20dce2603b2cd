"""The workflow on a real Slurm: a matrix that loses jobs and nodes on its way, failed cells again, and GPUs."""

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from slurm.cluster import NODES, Cluster, wait_until
from workflow.conftest import Project

pytestmark = pytest.mark.slurm

LOST = "inference/test_resnet"
"""A cell whose job is cancelled in every start."""

HELD = [
    LOST,
    *(f"{mode}/{model}" for mode in ("inference-amp", "training") for model in ("test_vit", "test_resnet", "test_nfnet")),
]
"""Cells whose workers wait for a file, so that something can happen to them meanwhile."""

STARTED_S = 90


@contextlib.contextmanager
def running(project: Project, *options: str | Path, **config: object) -> Iterator[subprocess.Popen]:
    """A run of the workflow in the background, which has ended well when the context has ended well."""
    run = project.start(*options, **config)
    try:
        yield run
        printed, _ = run.communicate(timeout=project.patience_s)
        assert run.returncode == 0, printed
        run.printed = printed
    finally:
        run.kill()
        run.wait()


def gate(project: Project, cell: str) -> Path:
    """The file that the worker of a held cell waits for."""
    return project.folder / "gates" / cell.replace("/", "_")


def hold(project: Project, cells: list[str]) -> None:
    """Let the workers of some cells wait for their gates."""
    (project.folder / "gates").mkdir()
    project.worker.behaviours = {cell: f"wait:{gate(project, cell)}@compile" for cell in cells}


def started(project: Project, cells: list[str]) -> bool:
    return set(cells) <= set(project.worker.cells())


def job_of(cluster: Cluster, cell: str) -> dict[str, str]:
    """The job of a cell that is running."""
    (job,) = (job for job in cluster.jobs("--states=running") if job["comment"].endswith(cell.replace("/", "_")))
    return job


class Campaign:
    """A run of the tiny suite in all its modes; `struck` says what happened to which cell in its first start."""

    def __init__(self, project: Project, cluster: Cluster):
        self.project, self.cluster = project, cluster
        self.struck: dict[str, str] = {}

    def strike(self) -> None:
        """Wait until all held cells have started; then lose each of them in another way, and open its gate."""
        cluster = self.cluster
        wait_until(lambda: started(self.project, HELD), "the start of the held cells", STARTED_S)
        jobs = {cell: job_of(cluster, cell) for cell in HELD}
        first, second = ([cell for cell in HELD if cell != LOST and jobs[cell]["node"] == node] for node in NODES)
        out_of_time, cancelled, *downed = first

        cluster.run("scontrol", "update", f"jobid={jobs[out_of_time]['id']}", "timelimit=1")
        cluster.run("scancel", jobs[cancelled]["id"], jobs[LOST]["id"])
        cluster.kill_node(NODES[1])
        wait_until(lambda: cluster.states()[NODES[1]].startswith("down"), "that the node is down")
        cluster.start_node(NODES[1])
        self.lost_by("cancelled", cancelled)
        self.lost_by("node killed", *second)
        self.cancel_again()
        wait_until(lambda: jobs[out_of_time]["id"] not in {job["id"] for job in cluster.jobs()}, "the limit", 90)
        self.lost_by("out of time", out_of_time)
        cluster.set_node(NODES[0], "down")
        self.lost_by("node down", *downed)

    def lost_by(self, what: str, *cells: str) -> None:
        """Note what happened to some cells, and let their next starts pass."""
        for cell in cells:
            self.struck[cell] = what
            gate(self.project, cell).touch()

    def cancel_again(self) -> None:
        """Cancel the cell that is lost for good in its second start too."""
        wait_until(lambda: self.project.worker.cells().count(LOST) == 2, "its second start", STARTED_S)
        self.cluster.run("scancel", job_of(self.cluster, LOST)["id"])
        self.struck[LOST] = "cancelled twice"


@pytest.fixture(scope="module")
def campaign(cluster, new_cluster_project):
    project = new_cluster_project("campaign")
    hold(project, HELD)
    campaign = Campaign(project, cluster)
    first = [f"results/cpu/{cell}/accuracy.parquet" for cell in HELD]
    with running(project, "--prioritize", *first) as run:
        campaign.strike()
    campaign.printed = run.printed
    return campaign


def test_every_cell_has_its_row_whatever_happened_to_its_job(campaign):
    statuses = campaign.project.statuses()
    assert len(statuses) == 24
    assert statuses.pop(LOST) == "infra_error"
    assert set(statuses.values()) == {"pass"}


def test_a_row_tells_the_start_that_it_is_of(campaign):
    attempts = {f"{row['mode']}/{row['model']}": row["accuracy_attempt"] for row in campaign.project.table()}
    assert {cell: attempts[cell] for cell in HELD} == dict.fromkeys(HELD, 2)
    print(attempts, campaign.struck)


def test_every_way_to_lose_a_job_was_tried(campaign):
    assert set(campaign.struck.values()) == {"cancelled", "cancelled twice", "node killed", "out of time", "node down"}


def test_both_nodes_measured(campaign):
    assert {start["SLURMD_NODENAME"] for start in campaign.project.worker.starts()} == set(NODES)


def test_only_measurements_went_to_the_cluster(campaign):
    assert [log.name for log in (campaign.project.folder / ".snakemake" / "slurm_logs").iterdir()] == ["rule_measure"]


def test_no_process_of_a_lost_job_lives_on(campaign):
    assert campaign.project.worker.alive() == []
    assert campaign.project.processes() == []


def test_what_is_done_is_not_done_again(campaign):
    assert campaign.project.planned() == set()
