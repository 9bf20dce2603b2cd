"""`timing_processes`: each cell timed in several fresh processes, whose scatter is in its interval."""

import pytest

CONFIG = {"models": "test_vit,test_resnet", "modes": "inference", "checks": "accuracy,performance", "timing_processes": 3}


@pytest.fixture(scope="module")
def timed(new_project, tmp_path_factory):
    """A run of two cells, of which one fails in its third process. Change nothing."""
    project = new_project(tmp_path_factory.mktemp("timed"), config=CONFIG)
    project.worker.behaviours = {"test_resnet": "raise_later:2@performance.timing"}
    project.printed = project.run()
    project.rows = {row["model"]: row for row in project.table()}
    return project


def test_a_cell_is_timed_in_so_many_processes_which_find_its_compile_cache_filled(timed):
    requests = [request for request in timed.worker.requests() if request.specs[0].model == "test_vit"]
    checks = [[spec.check for spec in request.specs] for request in requests]
    assert checks == [["accuracy", "performance"], ["performance"], ["performance"]]
    assert len({request.run.cache for request in requests}) == 1
    assert len({start["pid"] for start in timed.worker.starts()}) == 6


def test_its_row_is_of_all_their_samples(timed):
    row = timed.rows["test_vit"]
    assert (row["performance"], row["timing_processes"], row["samples"]) == ("pass", 3, 30)
    samples = [each for each in timed.table("samples") if each["model"] == "test_vit"]
    assert [each["process"] for each in samples] == [0] * 10 + [1] * 10 + [2] * 10
    assert (row["eager_ms"], row["compiled_ms"]) == (pytest.approx(200.0), pytest.approx(100.0))


def test_a_cell_that_fails_in_one_of_them_has_failed_and_keeps_the_samples(timed):
    row = timed.rows["test_resnet"]
    assert (row["performance"], row["performance_cause"]) == ("fail_to_run", "RuntimeError")
    assert row["performance_message"].startswith("in process 3 of 3: ")
    assert row["counted"] is False
    assert len([each for each in timed.table("samples") if each["model"] == "test_resnet"]) == 20
    assert row["log"] == "logs/cpu/default/inference/test_resnet.log"


def test_another_number_measures_nothing_again(timed):
    assert timed.planned(timing_processes=5) == set()
    assert timed.planned(timing_processes=1) == set()
