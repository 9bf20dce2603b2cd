"""Files that are whole or not there, and files that are not whole."""

import os

import pyarrow as pa
import pyarrow.parquet as pq
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


def test_the_file_is_not_there_before_it_is_whole(tmp_path):
    path = tmp_path / "row.parquet"
    seen = []

    def fill(scratch):
        scratch.write_text("all of it")
        seen.append(path.exists())

    files.write_atomically(path, fill)
    assert seen == [False]
    assert path.read_text() == "all of it"


def test_whoever_reads_the_old_file_reads_it_to_its_end(tmp_path):
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


@pytest.fixture
def parquet(tmp_path):
    path = tmp_path / "row.parquet"
    pq.write_table(pa.table({"column": list(range(100))}), path)
    return path


def test_a_whole_parquet_file_is_whole(parquet):
    assert files.is_whole_parquet(parquet)


@pytest.mark.parametrize("kept", [0, 1, 4, 7, 100, -1])
def test_a_parquet_file_that_was_cut_off_is_not_whole(kept, parquet):
    parquet.write_bytes(parquet.read_bytes()[:kept])
    assert not files.is_whole_parquet(parquet)


def test_a_parquet_file_of_zeros_is_not_whole(parquet):
    parquet.write_bytes(bytes(parquet.stat().st_size))
    assert not files.is_whole_parquet(parquet)


def test_a_folder_that_can_be_made_can_be_written(tmp_path):
    assert files.not_writable([tmp_path / "results" / "cpu", tmp_path]) is None


def test_the_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path / "results")  # root may write everywhere
    (tmp_path / "results").mkdir()
    assert files.not_writable([tmp_path, tmp_path / "results" / "cpu"]) == tmp_path / "results"
