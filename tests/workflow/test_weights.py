"""Weights in a real run: fetched or made once per model, handed to the worker, and a row where there are none."""

import json
import os
import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from fake_hub import FakeHub

VIT = "timm/test_vit.r160_in1k/model.safetensors"


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub with weights for test_vit only, and an empty cache: what every process of these runs knows of the network."""
    with FakeHub({VIT: b"weights"}) as hub, pytest.MonkeyPatch.context() as environment:
        environment.setenv("HF_ENDPOINT", hub.url)
        environment.setenv("HF_HOME", str(tmp_path_factory.mktemp("hub")))
        yield hub


@pytest.fixture(scope="module")
def packaged(new_project, tmp_path_factory, hub):
    """A finished run of the real worker on a model whose weights are in a package, and the requests that it made."""
    config = {"suite": "packaged", "modes": "inference-eager", "models": "tf_efficientnet_lite0", "batch_size": 2}
    project = new_project(tmp_path_factory.mktemp("packaged"), config=config)
    project.worker = SimpleNamespace(environment={"TIMMGATE_WORKER": ""}, journal=project.worker.journal)
    requests = len(hub.requests)
    project.run()
    return project, hub.requests[requests:]


def test_packaged_weights_are_measured_on_photos_without_network(packaged):
    project, requests = packaged
    (row,) = project.table()
    expected = {"accuracy": "pass", "suite": "packaged", "weights": "packaged", "images": "photos", "batch_size": 2}
    assert {name: row[name] for name in expected} == expected
    assert len(row["weights_hash"]) == 64
    assert "weights/packaged/tf_efficientnet_lite0.safetensors" in row["command"]
    assert requests == []


def test_a_run_with_packaged_weights_leaves_nothing_to_do(packaged):
    project, _ = packaged
    assert project.planned() == set()


@pytest.fixture(scope="module")
def pretrained(new_project, tmp_path_factory, hub):
    """A finished run of the fake worker with pretrained weights, of which half are missing; and what it printed."""
    config = {"weights": "pretrained", "modes": "inference,training", "models": "test_vit,test_resnet"}
    project = new_project(tmp_path_factory.mktemp("pretrained"), config=config)
    return project, project.run()


def test_a_model_without_weights_has_its_rows_and_the_other_cells_go_on(pretrained):
    project, _ = pretrained
    assert project.statuses() == {
        "inference/test_vit": "pass",
        "inference/test_resnet": "model_fail_to_load",
        "training/test_vit": "pass",
        "training/test_resnet": "model_fail_to_load",
    }
    row = next(row for row in project.table() if row["model"] == "test_resnet")
    assert (row["accuracy_stage"], row["accuracy_cause"], row["accuracy_attempt"]) == ("weights", "HTTP 404", 0)
    assert "timm/test_resnet.r160_in1k/resolve/main/model.safetensors" in row["accuracy_message"]
    assert row["accuracy_message"] in (project.folder / row["log"]).read_text()


def test_no_worker_is_started_without_weights(pretrained):
    project, _ = pretrained
    assert project.worker.cells() == ["inference/test_vit", "training/test_vit"]


def test_weights_are_fetched_once_for_all_modes_and_handed_to_the_worker(pretrained, hub):
    project, _ = pretrained
    file = json.loads((project.folder / "weights/pretrained/test_vit.json").read_text())["file"]
    assert Path(file).read_bytes() == b"weights"
    assert hub.requests.count(("GET", VIT, None)) == 1
    assert {request.run.weights for request in project.worker.requests()} == {Path(file)}


def test_a_second_run_fetches_nothing_and_measures_nothing(pretrained, hub):
    project, _ = pretrained
    requests, starts = len(hub.requests), len(project.worker.starts())
    assert "Nothing to be done" in project.run()
    assert (len(hub.requests), len(project.worker.starts())) == (requests, starts)


def downloads(project) -> int:
    """How many files Snakemake says, in its log, that it fetches at a time."""
    logs = sorted(project.folder.glob(".snakemake/log/*.log"))
    return int(re.search(r"^Provided resources: .*downloads\D+(\d+)", logs[0].read_text(), flags=re.MULTILINE)[1])


def test_four_files_are_fetched_at_a_time(pretrained):
    project, _ = pretrained
    assert downloads(project) == 4


@pytest.fixture(scope="module")
def spoiled(new_project, tmp_path_factory, hub):
    """A run with weights that were fetched once and have changed since, with one download at a time; what it printed."""
    folder = tmp_path_factory.mktemp("spoiled")
    file, record = folder / "file.pth", folder / "weights" / "pretrained" / "test_vit.json"
    file.write_bytes(b"other weights")
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"model": "test_vit", "source": "pretrained", "file": str(file), "sha256": "0" * 64}))
    config = {"weights": "pretrained", "modes": "inference", "models": "test_vit"}
    project = new_project(folder, config=config)
    return project, project.run("--resources", "downloads=1")


def test_weights_that_have_changed_since_they_were_fetched_fail_the_model(spoiled):
    project, _ = spoiled
    (row,) = project.table()
    assert (row["accuracy"], row["accuracy_stage"], row["accuracy_cause"]) == ("model_fail_to_load", "weights", "checksum")
    assert "retry=failed makes or fetches them again" in row["accuracy_message"]
    assert project.worker.starts() == []


def test_the_user_says_how_many_files_are_fetched_at_a_time(spoiled):
    project, _ = spoiled
    assert downloads(project) == 1


def test_random_weights_need_no_job_and_no_network(project, hub):
    requests = len(hub.requests)
    project.config = {"models": "test_vit", "modes": "inference"}
    assert "rule weights" not in project.run()
    assert len(hub.requests) == requests
    assert not (project.folder / "weights").exists()
    assert project.statuses() == {"inference/test_vit": "pass"}


def test_random_weights_need_no_network(project):
    """In a network namespace of its own, in which not even this machine itself can be reached."""
    alone = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True).returncode:
        pytest.skip("this kernel gives us no network namespace")
    command = project.command("--quiet", "all", modes="inference-eager", models="test_vit")
    environment = {name: value for name, value in os.environ.items() if name != "TIMMGATE_WORKER"}
    subprocess.run([*alone, *command], cwd=project.folder, env=environment, check=True, timeout=300)
    assert project.statuses() == {"inference-eager/test_vit": "pass"}
