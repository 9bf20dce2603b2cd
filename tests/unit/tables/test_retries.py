"""What is asked for again: cells by their status, and what is damaged; each once for every time that it was done."""

from pathlib import Path

import pytest

from timmgate.core.errors import ConfigError
from timmgate.tables import parquet, retries
from timmgate.tables.retries import Retries

STATUSES = {"good": "pass", "skipped": "pass_due_to_skip", "wrong": "fail_accuracy", "slow": "timeout", "big": "OOM"}


@pytest.fixture
def asked(tmp_path):
    return Retries(tmp_path / "retries.json")


@pytest.fixture
def cells(tmp_path):
    """The rows of a cell for each status."""
    files = {}
    for model, status in STATUSES.items():
        file = tmp_path / model / "accuracy.parquet"
        row = {"device": "cpu", "mode": "inference", "model": model, "accuracy": status, "accuracy_stage": "run", "retry": 0}
        parquet.write(parquet.table("accuracy", [row]), file)
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
def test_cells_are_asked_for_by_their_status(wanted, models, asked, cells):
    assert set(retries.ask_for_failed(asked, cells, wanted)) == {f"inference/{model}" for model in models}
    assert {model for model in STATUSES if asked.number(f"inference/{model}")} == models


def test_asking_again_before_it_was_done_changes_nothing(asked, cells):
    for _ in range(3):
        retries.ask_for_failed(asked, cells, ["failed"])
    assert asked.number("inference/wrong") == 1


def test_a_cell_that_failed_again_is_asked_for_once_more(asked, cells):
    retries.ask_for_failed(asked, cells, ["timeout"])
    row = {"device": "cpu", "mode": "inference", "model": "slow", "accuracy": "timeout", "retry": 1}
    parquet.write(parquet.table("accuracy", [row]), Path(cells["inference/slow"]["accuracy"]))
    retries.ask_for_failed(asked, cells, ["timeout"])
    assert asked.number("inference/slow") == 2


def test_a_number_that_was_lost_goes_on_from_that_of_the_row(asked):
    asked.ask("inference/slow", 1)
    assert asked.number("inference/slow") == 2


def test_a_cell_without_a_row_is_not_asked_for_and_one_that_cannot_be_read_is(asked, cells):
    Path(cells["inference/wrong"]["accuracy"]).unlink()
    Path(cells["inference/good"]["accuracy"]).write_text("PAR1 nothing else PAR1")
    assert set(retries.ask_for_failed(asked, cells, ["failed"])) == {"inference/good", "inference/slow", "inference/big"}


def test_it_is_said_which_cells_wanted_weights(asked, tmp_path):
    row = {"device": "cpu", "mode": "m", "model": "a", "accuracy": "model_fail_to_load", "accuracy_stage": "weights"}
    parquet.write(parquet.table("accuracy", [row]), tmp_path / "row.parquet")
    assert retries.ask_for_failed(asked, {"m/a": {"accuracy": str(tmp_path / "row.parquet")}}, ["failed"]) == {"m/a": True}


def test_what_was_asked_for_is_remembered_only_when_it_is_saved(asked, tmp_path):
    asked.ask("inference/wrong")
    assert Retries(tmp_path / "retries.json").number("inference/wrong") == 0
    asked.save()
    assert Retries(tmp_path / "retries.json").number("inference/wrong") == 1


def test_nothing_is_written_if_nothing_was_asked_for(asked, tmp_path):
    asked.save()
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_memory_is_an_error_with_a_remedy(tmp_path):
    (tmp_path / "retries.json").write_bytes(bytes(20))
    with pytest.raises(ConfigError, match=r"retries\.json is damaged .* delete it"):
        Retries(tmp_path / "retries.json")


@pytest.mark.parametrize("content", [b"", b"PAR1", bytes(1000), b"PAR1 cut off in the middle"])
def test_a_damaged_file_is_named_and_its_job_asked_for(content, asked, cells):
    file = Path(cells["inference/good"]["accuracy"])
    file.write_bytes(content)
    jobs = {cell: [tuple(files.values())] for cell, files in cells.items()}
    assert retries.ask_for_damaged(asked, jobs) == [str(file)]
    assert [cell for cell in cells if asked.number(cell)] == ["inference/good"]


def test_a_file_without_those_that_were_made_before_it_is_no_result(asked, cells):
    row = cells["inference/good"]["accuracy"]
    absent = str(Path(row).with_name("evidence.parquet"))
    assert retries.ask_for_damaged(asked, {"inference/good": [(absent, row)]}) == [absent]


def test_where_nothing_was_made_nothing_is_damaged(asked, cells, tmp_path):
    cut_off = Path(cells["inference/good"]["accuracy"])
    cut_off.write_bytes(b"PAR1 cut off")
    absent = str(tmp_path / "absent.parquet")
    assert retries.ask_for_damaged(asked, {"job": [(absent,), (str(cut_off), absent)]}) == []
    assert asked.number("job") == 0
