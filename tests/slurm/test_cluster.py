"""The workflow on a real Slurm: a run that loses jobs and nodes on its way, failed cells again, and GPUs."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from slurm.cluster import CPUS, GPUS, NODES, Cluster, wait_until
from workflow.conftest import Project

pytestmark = pytest.mark.slurm

WRONG = "inference/test_byobnet"
"""A cell that fails of itself."""

MODES = ("inference", "inference-amp", "inference-freezing", "training")
MODELS = ("test_vit", "test_resnet", "test_convnext", "test_efficientnet", "test_byobnet", "test_nfnet")
CELLS = [f"{mode}/{model}" for mode in MODES for model in MODELS]

DRAINED = NODES[0]

DEVICE = "cuda"
ON_CUDA = {"device": DEVICE, "suite": "tiny", "weights": "random", "threads": 1}


class Gates:
    """Lets the workers of some cells go on only when they are told to."""

    def __init__(self, project: Project, cells: list[str]):
        self._project, self._cells = project, cells
        project.worker.behaviours = {cell: f"wait:{self._gate(cell)}@compile" for cell in cells}

    def _gate(self, cell: str) -> Path:
        return self._project.folder / f"{cell.replace('/', '.')}.gate"

    def open(self, *cells: str) -> None:
        """Let these go on, now and in later starts."""
        for cell in cells:
            self._gate(cell).touch()

    def run_while(self, strike: Callable[[], None], **config: object) -> None:
        """Run the workflow while `strike` does its work; then all gates are open, whatever became of it."""

        def strike_and_open() -> None:
            try:
                strike()
            finally:
                self.open(*self._cells)

        with ThreadPoolExecutor(1) as thread:
            striking = thread.submit(strike_and_open)
            self._project.run("--rerun-incomplete", "all", **config)  # a target is not for the run that asks a node
            striking.result()


class Campaign:
    """A run of the tiny suite in all its modes. The cells that start first are struck, and `struck` says how.

    `rows` and `starts` are as of its end.
    """

    def __init__(self, project: Project, cluster: Cluster):
        self.project, self.cluster = project, cluster
        # On CUDA, without asking Slurm for GPUs: on CPU more cells than this machine has cores would wait for each other.
        project.config = ON_CUDA | {"jobs_per_gpu": len(NODES) * CPUS}
        project.executor += ("--set-resources", "measure:gpu=0")
        self.struck: dict[str, str] = {}
        self.gates = Gates(project, CELLS)
        project.worker.behaviours[WRONG] += " fail_accuracy"
        self.gates.run_while(self.strike)
        self.events = {cell: self.events_of(cell) for cell in CELLS}
        self.asked = project.worker.preflights()
        self.rows = {f"{row['mode']}/{row['model']}": row for row in project.table("cells", DEVICE)}
        self.starts = project.worker.starts()

    def strike(self) -> None:
        """When all processors are busy, lose every job in one way or another, and let the cell pass when it starts again."""
        cluster = self.cluster
        self.wait_for_starts(len(NODES) * CPUS)
        jobs = {cell: self.job(cell) for cell in self.project.worker.cells()}
        by_node = [[cell for cell in jobs if cell != WRONG and jobs[cell]["node"] == node] for node in NODES]
        (killed, *powerless), (out_of_time, cancelled, *downed) = sorted(by_node, key=len)
        node_off, node_down = jobs[killed]["node"], jobs[out_of_time]["node"]

        cluster.run("scontrol", "update", f"jobid={jobs[out_of_time]['id']}", "timelimit=1")
        cluster.run("scancel", jobs[cancelled]["id"])
        self.note("cancelled", cancelled)
        cluster.kill_job(jobs[killed]["id"])
        cluster.kill_node(node_off)
        wait_until(lambda: cluster.states()[node_off].startswith("down"), f"that {node_off} is down")
        cluster.start_node(node_off)
        self.note("power failure", *powerless)
        self.gates.open(WRONG, *(cell for cell in CELLS if cell not in jobs))
        wait_until(lambda: self.project.worker.cells().count(killed) == 2, "the second start")
        cluster.kill_job(self.job(killed)["id"])
        self.note("killed twice", killed)
        wait_until(lambda: jobs[out_of_time]["id"] not in [job["id"] for job in cluster.jobs()], "the time limit")
        self.note("out of time", out_of_time)
        # They may be started again on the node that is the next to go.
        lost_before = killed, out_of_time, cancelled, *powerless
        wait_until(lambda: all(map(self.is_done, lost_before)), "the end of what was lost before")
        cluster.set_node(node_down, "down")
        self.note("node down", *downed)
        cluster.resume(node_down)

    def wait_for_starts(self, number: int) -> None:
        wait_until(lambda: len(self.project.worker.starts()) == number, f"the start of {number} cells")

    def jobs(self, cell: str, *options: str) -> list[dict[str, str]]:
        """The jobs of a cell that have not ended, or what `options` of squeue select."""
        ending = f"_{DEVICE}_default_{cell.replace('/', '_')}"
        return [job for job in self.cluster.jobs(*options) if job["comment"].endswith(ending)]

    def job(self, cell: str) -> dict[str, str]:
        """The running job of a cell."""
        (job,) = self.jobs(cell, "--states=running")
        return job

    def is_done(self, cell: str) -> bool:
        """Whether a cell has its row, and no job any more."""
        return self.project.file(cell, device=DEVICE).exists() and not self.jobs(cell)

    def events_of(self, cell: str) -> list[str]:
        """What became of its attempts, in the words of their file."""
        file = self.project.file(cell, device=DEVICE).with_name("attempts.jsonl")
        return [json.loads(line)["event"] for line in file.read_text().splitlines()]

    def note(self, what: str, *cells: str) -> None:
        """What happened to some cells, which pass from now on."""
        self.struck |= dict.fromkeys(cells, what)
        self.gates.open(*cells)

    def killed(self) -> str:
        """The cell whose job was killed in every start."""
        return next(cell for cell, what in self.struck.items() if what == "killed twice")


@pytest.fixture(scope="module")
def campaign(cluster, new_cluster_project):
    return Campaign(new_cluster_project("campaign"), cluster)


def test_every_cell_has_its_row_whatever_happened_to_its_job(campaign):
    statuses = {cell: row["accuracy"] for cell, row in campaign.rows.items()}
    assert sorted(statuses) == sorted(CELLS)
    assert (statuses.pop(campaign.killed()), statuses.pop(WRONG)) == ("infra_error", "fail_accuracy")
    assert set(statuses.values()) == {"pass"}


def test_every_way_to_lose_a_job_was_tried(campaign):
    assert set(campaign.struck.values()) == {"cancelled", "killed twice", "power failure", "out of time", "node down"}


def test_a_cell_whose_job_was_lost_is_started_once_more(campaign):
    started = [start["cell"] for start in campaign.starts]
    assert {cell: started.count(cell) for cell in campaign.struck} == dict.fromkeys(campaign.struck, 2)


def test_an_attempt_that_was_lost_counts_unless_the_supervisor_could_still_say_that_it_was_asked_to_end(campaign):
    for cell in campaign.struck:
        events = campaign.events[cell]
        counted = events.count("began") - events.count("interrupted")
        assert campaign.rows[cell]["accuracy_attempt"] == counted, (cell, events)
    assert any("interrupted" in events for events in campaign.events.values()), campaign.events
    assert any(events.count("began") == 2 and "interrupted" not in events for events in campaign.events.values())


def test_a_cell_that_was_lost_in_every_start_has_a_row_that_says_so(campaign):
    row = campaign.rows[campaign.killed()]
    assert (row["accuracy"], row["accuracy_cause"]) == ("infra_error", "lost")


def test_both_nodes_measured(campaign):
    assert {start["node"] for start in campaign.starts} == set(NODES)


def test_only_measurements_went_to_the_cluster(campaign):
    assert campaign.cluster.rules(campaign.project.folder) == {"measure", "preflight"}


def test_a_node_was_asked_once_whether_the_request_is_possible(campaign):
    (asked,) = campaign.asked
    assert asked["node"] in NODES


def test_no_process_of_a_lost_job_lives_on(campaign):
    assert campaign.project.worker.alive() == []
    assert campaign.project.processes() == []


def test_what_is_done_is_not_done_again(campaign):
    assert campaign.project.planned() == set()


class Gpus:
    """A run of more cells than the cluster has GPUs, in which a node is drained while it is busy; `first` had all GPUs."""

    def __init__(self, project: Project, cluster: Cluster):
        self.project, self.cluster = project, cluster
        self.gates = Gates(project, [cell for cell in CELLS if cell.startswith("inference/")])
        # Both nodes are this machine, and a CUDA without a driver is one GPU to its measurements.
        self.gates.run_while(self.drain, jobs_per_gpu=len(NODES) * GPUS, modes="inference", **ON_CUDA)
        self.starts = project.worker.starts()

    def drain(self) -> None:
        """Drain a node when all GPUs are busy."""
        starts, number = self.project.worker.starts, len(NODES) * GPUS
        wait_until(lambda: len(starts()) == number, f"the start of {number} cells")
        self.first = starts()
        self.cluster.set_node(DRAINED, "drain")
        self.gates.open(*CELLS)


def measure_failed_again(project: Project) -> list[dict]:
    """Ask for the failed cells again, now that every worker passes; the starts that came of it."""
    before = len(project.worker.starts())
    project.worker.behaviours = {}
    project.run(retry="failed")
    return project.worker.starts()[before:]


@pytest.fixture(scope="module")
def again_and_gpus(campaign, cluster, new_cluster_project):
    """Both at once, for they wait most of the time: the starts of cells that had failed, and a run on GPUs."""
    with ThreadPoolExecutor() as threads:
        again = threads.submit(measure_failed_again, campaign.project)
        gpus = threads.submit(Gpus, new_cluster_project("gpus"), cluster)
    cluster.resume(DRAINED)
    return again.result(), gpus.result()


@pytest.fixture
def again(again_and_gpus):
    return again_and_gpus[0]


@pytest.fixture
def gpus(again_and_gpus):
    return again_and_gpus[1]


def test_exactly_the_failed_cells_are_measured_again_when_asked_for(campaign, again):
    assert sorted(start["cell"] for start in again) == sorted([campaign.killed(), WRONG])
    assert {start["node"] for start in again} <= set(NODES)
    assert set(campaign.project.statuses(DEVICE).values()) == {"pass"}
    assert campaign.project.planned(retry="failed") == set()


def test_every_cell_that_runs_has_a_gpu_of_its_own(gpus):
    places = [(start["node"], start["gpu"]) for start in gpus.first]
    assert sorted(places) == [(node, str(gpu)) for node in NODES for gpu in range(GPUS)]


def test_a_node_that_is_drained_ends_what_it_has_and_gets_no_more(gpus):
    later = gpus.starts[len(gpus.first) :]
    assert len(later) == 2
    assert DRAINED not in {start["node"] for start in later}
    assert [row["accuracy_attempt"] for row in gpus.project.table("cells", DEVICE)] == [1] * 6


def test_what_no_node_can_do_ends_the_run_before_any_cell(new_cluster_project, monkeypatch):
    monkeypatch.setenv("FAKE_PREFLIGHT", "device: this node has none")
    project = new_cluster_project("impossible")
    printed = project.run(code=1, modes="inference", models="test_vit")
    assert printed.rstrip().endswith("device: this node has none")
    assert project.worker.starts() == []


def test_a_job_goes_by_what_the_main_process_found_and_not_by_its_own_environment(campaign):
    found = json.loads((campaign.project.folder / ".cache" / "builds" / DEVICE / "default.json").read_text())
    environments = {tuple(row["environment"]) for row in campaign.rows.values()}
    assert environments == {tuple(f"{name}={value}" for name, value in found["facts"]["environment"].items())}
