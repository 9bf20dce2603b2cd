"""Merging: one row per requested cell, whatever became of its file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timmgate.tables import merge, parquet


@pytest.fixture
def results(tmp_path):
    """Writes the row of a cell and returns its path."""

    def write(model, mode="inference", **columns):
        path = path_of(tmp_path, model, mode)
        row = {"device": "cpu", "mode": mode, "model": model, "accuracy": "pass", **columns}
        parquet.write(parquet.table("accuracy", [row]), path)
        return path

    return write


def path_of(folder, model, mode="inference"):
    return folder / "cpu" / mode / model / "accuracy.parquet"


def merged(*paths):
    """The completed table of cells."""
    files = merge.cells_of([str(path) for path in paths])
    return merge.join(list(files), {"accuracy": merge.merge("accuracy", files)})


def column(table, name):
    return dict(zip(table["model"].to_pylist(), table[name].to_pylist(), strict=True))


def test_a_cell_is_known_by_the_end_of_its_path():
    files = merge.cells_of(["some/where/results/cuda/training-amp/vit.tag/accuracy.parquet"])
    assert list(files) == [("cuda", "training-amp", "vit.tag")]


def test_rows_are_in_the_order_asked_for(results):
    table = merged(results("b", "training"), results("a", "training"), results("c"))
    assert table["model"].to_pylist() == ["b", "a", "c"]
    assert table["mode"].to_pylist() == ["training", "training", "inference"]


def test_values_come_through_unchanged(results):
    table = merged(results("a", margin=0.25, input_size=[3, 8, 8], freezing=False), results("b", margin=float("inf")))
    assert table.select(["margin", "input_size", "freezing"]).to_pylist() == [
        {"margin": 0.25, "input_size": [3, 8, 8], "freezing": False},
        {"margin": float("inf"), "input_size": None, "freezing": None},
    ]


def test_the_table_has_the_columns_types_and_meanings_of_the_schema(results, tmp_path):
    table = merged(results("a"), path_of(tmp_path, "missing"))
    assert table.schema.equals(parquet.SCHEMAS["cells"], check_metadata=True)


def test_a_cell_without_a_file_is_not_run(results, tmp_path):
    table = merged(path_of(tmp_path, "missing"), results("a"))
    assert column(table, "accuracy") == {"a": "pass", "missing": "not_run"}
    assert column(table, "accuracy_cause") == {"a": None, "missing": "no result file"}


def empty(path):
    path.write_bytes(b"")


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def cut_the_start(path):
    path.write_bytes(path.read_bytes()[100:])


def flip_a_value(path):
    content = bytearray(path.read_bytes())
    content[content.index(b"test of time")] ^= 1
    path.write_bytes(content)


def fill_with_text(path):
    path.write_text("device\tmode\tmodel\n")


def make_a_folder(path):
    path.unlink()
    path.mkdir()


def drop_the_row(path):
    parquet.write(parquet.table("accuracy", []), path)


def double_the_row(path):
    table = pq.read_table(path)
    parquet.write(pa.concat_tables([table, table]), path)


def rename_the_model(path):
    parquet.write(
        parquet.table("accuracy", [{"device": "cpu", "mode": "inference", "model": "other", "accuracy": "pass"}]), path
    )


def drop_the_key(path):
    parquet.write(pq.read_table(path).drop_columns(["model"]), path)


def change_a_type(path):
    table = pq.read_table(path)
    index = table.column_names.index("margin")
    parquet.write(table.set_column(index, "margin", pa.array(["large"])), path)


DAMAGES = [
    empty,
    truncate,
    cut_the_start,
    flip_a_value,
    fill_with_text,
    make_a_folder,
    drop_the_row,
    double_the_row,
    rename_the_model,
    drop_the_key,
    change_a_type,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_file_costs_its_own_cell_alone_and_the_row_says_why(results, damage):
    paths = [results("a"), results("damaged", accuracy_message="the test of time"), results("z")]
    damage(paths[1])
    table = merged(*paths)
    assert column(table, "accuracy") == {"a": "pass", "z": "pass", "damaged": "not_run"}
    assert column(table, "accuracy_cause")["damaged"].startswith("unreadable result file: ")


def test_a_row_of_an_older_version_is_kept_with_its_missing_columns_null(results):
    path = results("old", margin=0.5)
    old = pq.read_table(path).drop_columns(["top1_agreement"]).append_column("gone", pa.array([1]))
    parquet.write(old, path)
    table = merged(results("new", top1_agreement=1.0), path)
    assert column(table, "top1_agreement") == {"new": 1.0, "old": None}
    assert column(table, "margin") == {"new": None, "old": 0.5}
    assert "gone" not in table.column_names


def test_cells_that_are_not_run_stand_where_they_were_asked_for(results, tmp_path):
    table = merged(path_of(tmp_path, "y"), results("b"), path_of(tmp_path, "x"), results("a"))
    assert table["model"].to_pylist() == ["y", "b", "x", "a"]


def test_nothing_but_missing_files_gives_a_row_each(tmp_path):
    table = merged(path_of(tmp_path, "x"), path_of(tmp_path, "y"))
    assert column(table, "accuracy") == {"x": "not_run", "y": "not_run"}


def test_nothing_asked_for_gives_an_empty_table():
    assert merged().equals(parquet.SCHEMAS["cells"].empty_table())


def test_a_merged_table_can_be_written_and_read_again(results, tmp_path):
    table = merged(results("a"), path_of(tmp_path, "missing"))
    parquet.write(table, tmp_path / "cells.parquet")
    assert pq.read_table(tmp_path / "cells.parquet").equals(table)


def test_two_hundred_cells_are_merged_without_loss_or_repetition(results, tmp_path):
    models = [f"model_{number}" for number in range(200)]
    table = merged(*(path_of(tmp_path, model) if model.endswith("7") else results(model) for model in models))
    assert sorted(table["model"].to_pylist()) == sorted(models)
    assert [model for model, status in column(table, "accuracy").items() if status == "not_run"] == models[7::10]


def test_evidence_has_as_many_rows_as_each_cell_has_leaves(tmp_path):
    files = {}
    for model, leaves in (("a", 2), ("none", 0), ("b", 3)):
        cell = {"device": "cpu", "mode": "inference", "model": model}
        files[tuple(cell.values())] = path = Path(tmp_path, model)
        parquet.write(parquet.table("evidence", [{**cell, "leaf": f"output.{number}"} for number in range(leaves)]), path)
    table, problems = merge.merge("evidence", files)
    assert table["model"].to_pylist() == ["a"] * 2 + ["b"] * 3
    assert table["leaf"].to_pylist()[:2] == ["output.0", "output.1"]
    assert not problems


@pytest.fixture
def evidence(tmp_path):
    """By cell, seven files with two rows of evidence each."""
    files = {}
    for number in range(7):
        cell = {"device": "cpu", "mode": "inference", "model": f"model_{number}"}
        files[tuple(cell.values())] = path = tmp_path / f"{number}.parquet"
        parquet.write(
            parquet.table("evidence", [{**cell, "leaf": f"output.{leaf}", "margin": 0.5} for leaf in range(2)]), path
        )
    return files


def test_evidence_that_is_merged_into_a_file_is_what_it_is_in_memory(evidence, tmp_path):
    assert merge.merge_into(tmp_path / "merged.parquet", "evidence", evidence) == {}
    table, _ = merge.merge("evidence", evidence)
    written = pq.read_table(tmp_path / "merged.parquet")
    assert written.equals(table)
    assert len(written) == 14
    schema = pq.read_schema(tmp_path / "merged.parquet")
    assert [each.metadata for each in schema] == [each.metadata for each in parquet.SCHEMAS["evidence"]]


def test_no_more_than_so_many_cells_are_in_memory_at_once(evidence, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "CELLS_AT_ONCE", 3)
    merge.merge_into(tmp_path / "merged.parquet", "evidence", evidence)
    file = pq.ParquetFile(tmp_path / "merged.parquet").metadata
    assert [file.row_group(number).num_rows for number in range(file.num_row_groups)] == [6, 6, 2]


def test_files_are_read_one_by_one_only_beside_a_damaged_one(evidence, tmp_path, monkeypatch):
    monkeypatch.setattr(merge, "CELLS_AT_ONCE", 3)
    read, alone = merge._read, []
    monkeypatch.setattr(merge, "_read", lambda kind, cell, path: alone.append(cell[2]) or read(kind, cell, path))
    truncate(evidence["cpu", "inference", "model_4"])
    problems = merge.merge_into(tmp_path / "merged.parquet", "evidence", evidence)
    assert alone == ["model_3", "model_4", "model_5"]
    assert list(problems) == [("cpu", "inference", "model_4")]
    models = pq.read_table(tmp_path / "merged.parquet")["model"].to_pylist()
    assert models == [f"model_{number}" for number in (0, 0, 1, 1, 2, 2, 3, 3, 5, 5, 6, 6)]


def test_evidence_of_another_cell_is_not_taken_for_this_ones(evidence, tmp_path):
    first, second = list(evidence)[:2]
    evidence[second].write_bytes(evidence[first].read_bytes())
    problems = merge.merge_into(tmp_path / "merged.parquet", "evidence", evidence)
    assert list(problems) == [second]
    assert pq.read_table(tmp_path / "merged.parquet")["model"].to_pylist().count("model_0") == 2


def test_files_of_a_cell_each_with_the_row_of_its_neighbour_are_not_taken(results):
    paths = [results("a"), results("b")]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)
    assert column(merged(*paths), "accuracy") == {"a": "not_run", "b": "not_run"}


def performance_row(folder, model, **columns):
    path = folder / "cpu" / "inference" / model / "performance.parquet"
    row = {"device": "cpu", "mode": "inference", "model": model, "performance": "pass", **columns}
    parquet.write(parquet.table("performance", [row]), path)
    return path


def test_the_rows_of_both_checks_become_one_row_and_the_later_check_has_the_last_word(results, tmp_path):
    accuracy = [results("a", batch_size=8, torch="2.9", margin=0.5), results("b", batch_size=8), path_of(tmp_path, "c")]
    timed = [
        performance_row(tmp_path, "a", batch_size=64, speedup=1.5),
        tmp_path / "cpu" / "inference" / "b" / "performance.parquet",
        performance_row(tmp_path, "c", speedup=2.0),
    ]
    files = {
        check: merge.cells_of(list(map(str, paths))) for check, paths in (("accuracy", accuracy), ("performance", timed))
    }
    table = merge.join(list(files["accuracy"]), {check: merge.merge(check, files[check]) for check in files})
    assert column(table, "accuracy") == {"a": "pass", "b": "pass", "c": "not_run"}
    assert column(table, "performance") == {"a": "pass", "b": "not_run", "c": "pass"}
    assert column(table, "batch_size") == {"a": 64, "b": 8, "c": None}
    assert column(table, "speedup") == {"a": 1.5, "b": None, "c": 2.0}
    assert column(table, "torch") == {"a": "2.9", "b": None, "c": None}
    assert column(table, "margin")["a"] == 0.5
    assert column(table, "performance_cause")["b"] == "no result file"


def test_a_check_that_was_not_asked_for_has_no_status(results):
    assert column(merged(results("a")), "performance") == {"a": None}
