"""Whose rerun is requested: cells by their status, each once for every time that it was done."""

import base64
from pathlib import Path

import pytest

from timmgate.core.errors import ConfigError
from timmgate.tables import parquet, retries
from timmgate.tables.retries import Retries

SCHEMA = parquet.FILE_SCHEMAS["accuracy"]
STATUSES = {"good": "pass", "skipped": "pass_due_to_skip", "wrong": "fail_accuracy", "slow": "timeout", "big": "OOM"}


@pytest.fixture
def requests(tmp_path):
    return Retries(tmp_path / "retries.json")


def write(row, path):
    parquet.write_cell(parquet.table([row], SCHEMA), path)


@pytest.fixture
def cells(tmp_path):
    """The rows of a cell for each status."""
    files = {}
    for model, status in STATUSES.items():
        file = tmp_path / model / "accuracy.parquet"
        row = {"device": "cpu", "mode": "inference", "model": model, "accuracy": status, "accuracy_stage": "run", "retry": 0}
        write(row, file)
        files[f"inference/{model}"] = {"accuracy": str(file)}
    return files


@pytest.mark.parametrize(
    ("wanted", "models"),
    [
        (["failed"], {"wrong", "slow", "big"}),
        (["timeout", "OOM"], {"slow", "big"}),
        (["infra_error"], set()),
        (["timeout", "failed"], {"wrong", "slow", "big"}),
    ],
)
def test_cells_are_requested_by_their_status(wanted, models, requests, cells):
    assert set(retries.request_failed(requests, cells, wanted, "strict")) == {f"inference/{model}" for model in models}
    assert {model for model in STATUSES if requests.rerun_generation(f"inference/{model}")} == models


def test_a_second_request_before_it_was_done_changes_nothing(requests, cells):
    for _ in range(3):
        retries.request_failed(requests, cells, ["failed"], "strict")
    assert requests.rerun_generation("inference/wrong") == 1


def test_a_cell_that_failed_again_is_requested_once_more(requests, cells):
    retries.request_failed(requests, cells, ["timeout"], "strict")
    row = {"device": "cpu", "mode": "inference", "model": "slow", "accuracy": "timeout", "retry": 1}
    write(row, Path(cells["inference/slow"]["accuracy"]))
    retries.request_failed(requests, cells, ["timeout"], "strict")
    assert requests.rerun_generation("inference/slow") == 2


def test_a_number_that_was_lost_goes_on_from_that_of_the_row(requests):
    requests.request("inference/slow", 1)
    assert requests.rerun_generation("inference/slow") == 2


def test_a_cell_without_a_row_is_not_requested_and_one_that_cannot_be_read_is(requests, cells):
    Path(cells["inference/wrong"]["accuracy"]).unlink()
    Path(cells["inference/good"]["accuracy"]).write_text("PAR1 nothing else PAR1")
    found = set(retries.request_failed(requests, cells, ["failed"], "strict"))
    assert found == {"inference/good", "inference/slow", "inference/big"}


@pytest.mark.parametrize(("rule", "is_wanted"), [("strict", True), ("dynamo", False)])
def test_a_cell_that_the_rule_fails_has_failed(requests, tmp_path, rule, is_wanted):
    row = {"device": "cpu", "mode": "m", "model": "a", "accuracy": "pass", "strict": "fail"}
    write(row, tmp_path / "row.parquet")
    found = retries.request_failed(requests, {"m/a": {"accuracy": str(tmp_path / "row.parquet")}}, ["failed"], rule)
    assert list(found) == ["m/a"] * is_wanted


def test_it_is_said_which_cells_wanted_weights(requests, tmp_path):
    row = {"device": "cpu", "mode": "m", "model": "a", "accuracy": "model_fail_to_load", "accuracy_stage": "weights"}
    write(row, tmp_path / "row.parquet")
    assert retries.request_failed(requests, {"m/a": {"accuracy": str(tmp_path / "row.parquet")}}, ["failed"], "strict") == {
        "m/a": True
    }


def test_what_was_requested_is_remembered_only_when_it_is_saved(requests, tmp_path):
    requests.request("inference/wrong")
    assert Retries(tmp_path / "retries.json").rerun_generation("inference/wrong") == 0
    requests.save()
    assert Retries(tmp_path / "retries.json").rerun_generation("inference/wrong") == 1


def test_nothing_is_written_if_nothing_was_requested(requests, tmp_path):
    requests.save()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_memory_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "retries.json").write_bytes(bytes(20))
    with pytest.raises(ConfigError, match=r"retries\.json is damaged .* delete it"):
        Retries(tmp_path / "retries.json")


def test_a_record_is_found_by_the_path_of_its_file_however_long_that_is(tmp_path):
    short, long, other = "results/cpu/a.parquet", f"results/{'x' * 300}/b.parquet", "results/cpu/c.parquet"
    name = base64.urlsafe_b64encode(long.encode()).decode()
    (tmp_path / f"@{name[:254]}").mkdir()
    (tmp_path / f"@{name[:254]}" / name[254:]).touch()
    (tmp_path / base64.urlsafe_b64encode(short.encode()).decode()).touch()
    (tmp_path / ".nfs0001").touch()
    assert retries.without_record([short, long, other], tmp_path) == [other]
    assert retries.without_record([other], tmp_path / "nowhere") == [other]
