"""Tables speak of everything that a folder has results of: a look at a part of it takes nothing away from them."""

import pyarrow.parquet as pq
import pytest

from workflow.conftest import TABLES

CELLS = {"inference/test_resnet", "inference/test_vit", "special/test_resnet", "special/test_vit"}


@pytest.fixture(scope="module")
def measured(finished_small, copy_of, tmp_path_factory):
    """A finished run of both checks. Change nothing."""
    project = copy_of(finished_small, tmp_path_factory.mktemp("both"))
    project.config["checks"] = "accuracy,performance"
    project.run()
    return project


@pytest.fixture
def both(measured, copy_of, tmp_path):
    """A copy of `measured` to change."""
    return copy_of(measured, tmp_path)


def cells(project):
    """The cells that the tables speak of, all of them of the same."""
    tables = ("cells", "evidence", "samples", "attempts")
    found = [{f"{row['mode']}/{row['model']}" for row in project.table(name)} for name in tables]
    assert [each ^ found[0] for each in found] == [set()] * len(tables)
    return found[0]


def requested(project):
    return {f"{row['mode']}/{row['model']}" for row in project.table() if row["requested"]}


def test_a_look_at_one_model_measures_nothing_and_leaves_all_rows(both):
    both.run(models="test_vit")
    assert both.worker.entries() == []
    assert cells(both) == CELLS
    assert requested(both) == {"inference/test_vit", "special/test_vit"}
    both.run()
    assert requested(both) == CELLS
    assert both.planned() == set()


def test_one_check_alone_measures_nothing_and_leaves_the_rows_of_the_other(both):
    both.run(checks="accuracy")
    assert both.worker.entries() == []
    rows = both.table()
    assert {(row["accuracy"], row["performance"]) for row in rows} == {("pass", "pass")}
    assert cells(both) == CELLS
    assert both.planned() == TABLES, "and going back to both does not either"


def test_a_cell_that_is_measured_again_alone_is_renewed_in_all_tables(both):
    before = {table: both.table(table) for table in ("evidence", "samples")}
    both.file("special/test_vit").unlink()
    both.run(models="test_vit", modes="special")
    assert both.worker.cells() == ["special/test_vit"]
    assert {table: both.table(table) for table in ("evidence", "samples")} == before
    assert cells(both) == CELLS


def test_a_folder_of_a_cell_that_was_removed_is_in_no_table_any_more(both):
    for file in both.file("special/test_vit").parent.iterdir():
        file.unlink()
    both.run("--forcerun", "merge", models="test_resnet")
    assert cells(both) == CELLS - {"special/test_vit"}


def test_what_was_measured_with_other_options_stays_and_is_marked(finished):
    finished.run(batch_size=4, models="test_vit", modes="inference")
    stale = {f"{row['mode']}/{row['model']}" for row in finished.table() if row["stale"]}
    assert stale == CELLS - {"inference/test_vit"}
    assert finished.planned() == {"inference/test_vit", *TABLES}


def test_all_tables_say_the_protocol_and_the_commit_that_they_were_made_with(measured):
    for name in ("cells", "evidence", "samples", "attempts", "failures"):
        metadata = pq.read_metadata(measured.folder / "results" / "cpu" / f"{name}.parquet").metadata
        assert {b"protocol", b"units", b"workflow_commit"} <= metadata.keys(), name
