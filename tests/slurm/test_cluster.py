"""The workflow on a real Slurm: a run that loses jobs and nodes on its way, failed cells again, and GPUs."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slurm.cluster import GPUS, NODES, Cluster, wait_until
from workflow.conftest import Project

pytestmark = pytest.mark.slurm

KILLED = "inference/test_vit"
"""A cell whose job is killed in every start."""

WRONG = "inference/test_byobnet"
"""A cell that fails of itself."""

OTHERS = [f"{mode}/test_{model}" for mode in ("inference-amp", "training") for model in ("vit", "resnet", "nfnet")]
"""Cells whose first start something happens to."""

START_S = 90
"""Longest time until some cells have started: two processors may do all the work of the cluster."""


class Held:
    """Cells whose workers go on only when they are told to."""

    def __init__(self, project: Project, *cells: str):
        self.project, self.cells = project, cells
        project.worker.behaviours |= {cell: f"wait:{self._gate(cell)}@compile" for cell in cells}

    def _gate(self, cell: str) -> Path:
        return self.project.folder / f"{cell.replace('/', '.')}.gate"

    def wait_for_start(self, number: int, *cells: str) -> None:
        """Return when each of these cells has started so many times."""

        def have_started() -> bool:
            started = self.project.worker.cells()
            return all(started.count(cell) >= number for cell in cells)

        wait_until(have_started, f"start {number} of {', '.join(cells)}", START_S)

    def release(self, *cells: str) -> None:
        """Let these go on, now and in later starts."""
        for cell in cells:
            self._gate(cell).touch()


def run_and(project: Project, held: Held, strike, *options: str | Path, **config: object) -> str:
    """Run the workflow while `strike` does its work in another thread; what the run printed."""

    def strike_and_release() -> None:
        try:
            strike()
        finally:
            held.release(*held.cells)  # else the run would not end

    with ThreadPoolExecutor(1) as thread:
        strikes = thread.submit(strike_and_release)
        printed = project.run(*options, **config)
        strikes.result()
    return printed


def job_of(cluster: Cluster, cell: str) -> dict[str, str]:
    """The running job of a cell."""
    (job,) = (job for job in cluster.jobs("--states=running") if job["comment"].endswith(cell.replace("/", "_")))
    return job


class Campaign:
    """A run of the tiny suite in all its modes; `struck` says what happened to which cell.

    `rows` and `starts` are as of its end.
    """

    def __init__(self, project: Project, cluster: Cluster):
        self.project, self.cluster = project, cluster
        project.worker.behaviours = {WRONG: "fail_accuracy"}
        self.held = Held(project, KILLED, *OTHERS)
        self.struck: dict[str, str] = {}
        first = [f"results/cpu/{cell}/accuracy.parquet" for cell in self.held.cells]
        run_and(project, self.held, self._strike, "--prioritize", *first)
        self.rows = {f"{row['mode']}/{row['model']}": row for row in project.table()}
        self.starts = project.worker.starts()

    def _strike(self) -> None:
        cluster = self.cluster
        self.held.wait_for_start(1, *self.held.cells)
        jobs = {cell: job_of(cluster, cell) for cell in self.held.cells}
        by_node = [[cell for cell in OTHERS if jobs[cell]["node"] == node] for node in NODES]
        powerless, (out_of_time, cancelled, *downed) = sorted(by_node, key=len)
        node_off, node_down = jobs[powerless[0]]["node"], jobs[out_of_time]["node"]

        cluster.run("scontrol", "update", f"jobid={jobs[out_of_time]['id']}", "timelimit=1")
        cluster.run("scancel", jobs[cancelled]["id"])
        self._note("cancelled", cancelled)
        cluster.run("scancel", "--full", "--signal=KILL", jobs[KILLED]["id"])
        cluster.kill_node(node_off)
        wait_until(lambda: cluster.states()[node_off].startswith("down"), f"that {node_off} is down")
        cluster.start_node(node_off)
        self._note("power failure", *powerless)
        self.held.wait_for_start(2, KILLED)
        cluster.run("scancel", "--full", "--signal=KILL", job_of(cluster, KILLED)["id"])
        self._note("killed twice", KILLED)
        wait_until(lambda: jobs[out_of_time]["id"] not in [job["id"] for job in cluster.jobs()], "the time limit", 90)
        self._note("out of time", out_of_time)
        cluster.set_node(node_down, "down")
        self._note("node down", *downed)
        cluster.resume(node_down)

    def _note(self, what: str, *cells: str) -> None:
        """What happened to some cells, which pass from now on."""
        self.struck |= dict.fromkeys(cells, what)
        self.held.release(*cells)


@pytest.fixture(scope="module")
def campaign(cluster, new_cluster_project):
    return Campaign(new_cluster_project("campaign"), cluster)


def test_every_cell_has_its_row_whatever_happened_to_its_job(campaign):
    statuses = {cell: row["accuracy"] for cell, row in campaign.rows.items()}
    assert len(statuses) == 24
    assert (statuses.pop(KILLED), statuses.pop(WRONG)) == ("infra_error", "fail_accuracy")
    assert set(statuses.values()) == {"pass"}


def test_every_way_to_lose_a_job_was_tried(campaign):
    assert set(campaign.struck.values()) == {"cancelled", "killed twice", "power failure", "out of time", "node down"}


def test_a_cell_is_measured_again_once_for_every_time_that_it_was_lost(campaign):
    started = [start["cell"] for start in campaign.starts]
    assert {cell: started.count(cell) for cell in campaign.struck} == dict.fromkeys(campaign.struck, 2)
    print({cell: (what, campaign.rows[cell]["accuracy_attempt"]) for cell, what in campaign.struck.items()})


def test_a_cell_that_is_lost_in_every_start_has_a_row_that_says_so(campaign):
    row = campaign.rows[KILLED]
    assert (row["accuracy"], row["accuracy_cause"], row["accuracy_attempt"]) == ("infra_error", "lost", 2)


def test_both_nodes_measured(campaign):
    assert {start["SLURMD_NODENAME"] for start in campaign.starts} == set(NODES)


def test_only_measurements_went_to_the_cluster(campaign):
    assert [log.name for log in (campaign.project.folder / ".snakemake" / "slurm_logs").iterdir()] == ["rule_measure"]


def test_no_process_of_a_lost_job_lives_on(campaign):
    assert campaign.project.worker.alive() == []
    assert campaign.project.processes() == []


def test_what_is_done_is_not_done_again(campaign):
    assert campaign.project.planned() == set()


def test_exactly_the_failed_cells_are_measured_again_when_asked_for(campaign):
    project, before = campaign.project, len(campaign.starts)
    project.worker.behaviours = {}
    project.run(retry="failed")
    again = project.worker.starts()[before:]
    assert sorted(start["cell"] for start in again) == sorted([KILLED, WRONG])
    assert {start["SLURMD_NODENAME"] for start in again} <= set(NODES)
    assert set(project.statuses().values()) == {"pass"}
    assert project.planned(retry="failed") == set()


class Gpus:
    """A run of more cells than the cluster has GPUs, in which a node is drained while it is busy. `first` had them all."""

    def __init__(self, project: Project, cluster: Cluster):
        self.project, self.cluster = project, cluster
        self.held = Held(
            project, *(f"inference/test_{model}" for model in ("vit", "resnet", "nfnet", "byobnet", "convnext"))
        )
        self.drained = NODES[0]
        config = {"device": "cuda", "suite": "tiny", "weights": "random", "modes": "inference"}
        run_and(project, self.held, self._drain, "--set-resources", "measure:gpu=1", **config)

    def _drain(self) -> None:
        journal = self.project.worker
        wait_until(
            lambda: len(journal.starts()) == len(NODES) * GPUS, "the start of as many cells as there are GPUs", START_S
        )
        self.first = journal.starts()
        self.cluster.set_node(self.drained, "drain")
        self.held.release(*self.held.cells)


@pytest.fixture(scope="module")
def gpus(cluster, new_cluster_project):
    gpus = Gpus(new_cluster_project("gpus"), cluster)
    cluster.resume(gpus.drained)
    return gpus


def test_every_cell_that_runs_has_a_gpu_of_its_own(gpus):
    places = [(start["SLURMD_NODENAME"], start["CUDA_VISIBLE_DEVICES"]) for start in gpus.first]
    assert sorted(places) == [(node, str(gpu)) for node in NODES for gpu in range(GPUS)]


def test_a_node_that_is_drained_ends_what_it_has_and_gets_no_more(gpus):
    later = gpus.project.worker.starts()[len(gpus.first) :]
    assert len(later) == 2
    assert gpus.drained not in {start["SLURMD_NODENAME"] for start in later}
    assert [row["accuracy_attempt"] for row in gpus.project.table(device="cuda")] == [1] * 6
