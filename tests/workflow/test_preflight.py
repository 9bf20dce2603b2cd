"""Whether a request is possible is asked once in a run that measures anything, before any cell, and in no other run."""

import json
import signal

import pytest

PROBLEM = "device: there is no such device; this machine has cpu"


@pytest.fixture
def impossible(finished, monkeypatch):
    """A finished project in which nothing more is possible."""
    monkeypatch.setenv("FAKE_PREFLIGHT", PROBLEM)
    return finished


def outcome(project):
    return json.loads((project.folder / "results/cpu/outcome.json").read_text())


def test_it_is_asked_once_in_a_run_that_measures_and_with_what_is_requested(finished):
    finished.file("special/test_vit").unlink()
    finished.file("inference/test_resnet").unlink()
    finished.run()
    assert finished.worker.cells() == ["inference/test_resnet", "special/test_vit"], "and no others are measured again"
    (asked,) = finished.worker.preflights()
    assert (asked["preflight"], asked["modes"]) == ("cpu", ["inference", "special"])


def test_it_is_not_asked_where_there_is_nothing_to_measure(finished):
    (finished.folder / "results/cpu/cells.parquet").unlink()
    finished.run()
    finished.run()
    finished.run("--touch", batch_size=4)
    assert finished.planned("--forceall") > {"inference/test_vit"}
    assert finished.worker.entries() == []


def test_a_problem_ends_the_run_before_any_cell_and_the_next_run_works(impossible, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in impossible.folder.glob("results/cpu/**/*") if path.is_file()}
    printed = impossible.run(code=1, batch_size=4)
    assert printed.rstrip().endswith(PROBLEM)
    assert "Traceback" not in printed
    assert outcome(impossible) == {"outcome": 2, "meaning": "wrong_request", "reasons": [PROBLEM]}
    (impossible.folder / "results/cpu/outcome.json").unlink()
    after = {path: path.stat().st_mtime_ns for path in impossible.folder.glob("results/cpu/**/*") if path.is_file()}
    assert after == before
    assert impossible.worker.starts() == []
    monkeypatch.delenv("FAKE_PREFLIGHT")
    impossible.run(batch_size=4, models="test_vit", modes="inference")
    assert len(impossible.worker.starts()) == 1
    assert len(impossible.worker.preflights()) == 2
    assert not (impossible.folder / "results/cpu/outcome.json").exists()


def test_an_environment_that_does_not_answer_is_a_problem(project, monkeypatch):
    monkeypatch.setenv("FAKE_PREFLIGHT", "hang")
    printed = project.run(code=1, models="test_vit", timeout=3)
    ended = "limit of 3 s: it had not ended; the key timeout is the limit"
    assert f"cannot measure ({ended}); logs/cpu/default/preflight.log has what it printed" in printed
    assert project.worker.starts() == []
    assert project.worker.alive() == []


@pytest.mark.parametrize(
    ("config", "models"),
    [
        ({"models": "test_vit,test_res*"}, ["test_vit"]),
        ({"suite": "mine.tsv"}, ["test_vit", "test_resnet"]),
        ({"models": "test_*net", "exclude": "test_nfnet,test_byobnet,test_efficientnet,test_convnext"}, []),
    ],
    ids=["by name", "in a table of one's own", "by a pattern over a table that comes with the workflow"],
)
def test_the_names_that_somebody_typed_must_exist(config, models, project, monkeypatch):
    (project.folder / "mine.tsv").write_text("model\ntest_vit\ntest_resnet\n")
    monkeypatch.setenv("FAKE_PREFLIGHT", PROBLEM)  # what is asked is all that this is about
    project.run(code=1, **config)
    assert [asked["models"] for asked in project.worker.preflights()] == [models]


def test_a_run_that_was_interrupted_is_asked_about_again(finished):
    finished.file("special/test_vit").unlink()
    finished.worker.behaviours = {"*": "hang@load"}
    run = finished.start()
    finished.worker.wait_for_start(1)
    finished.signal(signal.SIGKILL)
    run.communicate()
    finished.wait_for_end()
    finished.run("--unlock")
    finished.worker.behaviours = {}
    finished.run()
    assert finished.worker.cells() == ["special/test_vit"] * 2
    assert len(finished.worker.preflights()) == 2
