"""Files that are complete or absent."""

import os

import pytest

from timmgate.core import files


@pytest.fixture
def half_way():
    """Fills a scratch file half and fails."""

    def fill(scratch):
        scratch.write_text("half of")
        raise OSError("disk full")

    return fill


def test_a_write_that_fails_leaves_nothing(tmp_path, half_way):
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(tmp_path / "row.parquet", half_way)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_keeps_the_file_that_was_there(tmp_path, half_way):
    path = tmp_path / "row.parquet"
    path.write_text("the old row")
    with pytest.raises(OSError, match="disk full"):
        files.write_atomically(path, half_way)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == "the old row"


def test_the_file_is_absent_until_it_is_complete(tmp_path):
    path = tmp_path / "row.parquet"
    seen = []

    def fill(scratch):
        scratch.write_text("all of it")
        seen.append(path.exists())

    files.write_atomically(path, fill)
    assert seen == [False]
    assert path.read_text() == "all of it"


def test_a_reader_of_the_old_file_reads_it_to_its_end(tmp_path):
    path = tmp_path / "row.parquet"
    path.write_text("the old row")
    with path.open() as old:
        files.write_atomically(path, lambda scratch: scratch.write_text("new"))
        assert old.read() == "the old row"
    assert path.read_text() == "new"


def test_what_was_written_is_on_the_disk_before_it_is_in_place(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(os, "fsync", lambda number: calls.append((tmp_path / "row").exists()))
    files.write_atomically(tmp_path / "row", lambda scratch: scratch.write_text("all of it"))
    assert calls == [False]


def test_a_folder_that_can_be_made_can_be_written(tmp_path):
    assert files.not_writable([tmp_path / "results" / "cpu", tmp_path]) is None


def test_the_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "results")  # root may write everywhere
    (tmp_path / "results").mkdir()
    assert files.not_writable([tmp_path, tmp_path / "results" / "cpu"]) == tmp_path / "results"


def test_what_killed_writers_left_is_removed_and_nothing_else(tmp_path):
    for name in (".row.parquet.123", ".row.parquet.x", "row.parquet.123", ".hidden"):
        (tmp_path / name).touch()
    files.remove_scratch(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", ".row.parquet.x", "row.parquet.123"]


def test_there_is_no_scratch_where_there_is_no_folder(tmp_path):
    files.remove_scratch(tmp_path / "absent")
