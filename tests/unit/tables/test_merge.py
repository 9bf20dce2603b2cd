"""Merging the files of cells: what the tables of a folder hold, whatever became of a file, and what is renewed."""

import os
from datetime import datetime, timezone
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from timmgate.core import schemas
from timmgate.core.files import write_atomically
from timmgate.tables import index, merge, parquet, state

SCHEMAS = parquet.FILE_SCHEMAS
BOTH = ("accuracy", "performance")


class Folder:
    """results/cpu, with methods that write the files of cells and merge them."""

    def __init__(self, path: Path):
        self.path = path
        self.identities: dict[tuple[str, str], str] = {}

    def key(self, model, mode="inference"):
        return "cpu", "default", mode, model

    def file(self, model, mode="inference", check="accuracy"):
        return self.path / "default" / mode / model / f"{check}.parquet"

    def write(self, model, mode="inference", check="accuracy", leaves=0, rows=None, **columns):
        key = dict(zip(schemas.KEY, self.key(model, mode), strict=True))
        name = "leaf" if check == "accuracy" else "block"
        details = rows or [{name: f"output.{number}" if check == "accuracy" else number} for number in range(leaves)]
        row = {**key, check: "pass", f"{check}_identity": "today", **columns, "details": details}
        path = self.file(model, mode, check)
        parquet.write_cell(parquet.table([row], SCHEMAS[check]), path)
        return path

    def merge(self, *models, mode="inference", checks=("accuracy",), rule="strict"):
        """Merge as if these models were requested; the problems by model and check."""

        def identity(cell, check):
            return self.identities.get((cell[3], check), "today")

        problems = merge.merge(self.path, [self.key(model, mode) for model in models], checks, identity, rule)
        return {(cell[3], check): problem for (cell, check), problem in problems.items()}

    def table(self, name="cells"):
        return pq.read_table(self.path / f"{name}.parquet")

    def column(self, name):
        table = self.table()
        return dict(zip(table["model"].to_pylist(), table[name].to_pylist(), strict=True))

    def leaves(self):
        """The model of each row of the evidence, sorted."""
        return sorted(self.table("evidence")["model"].to_pylist())


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "cpu")


# What the tables hold.


def test_requested_cells_stand_in_their_order_before_the_others(folder):
    for model in "adcb":
        folder.write(model)
    folder.merge("c", "a")
    assert folder.table()["model"].to_pylist() == ["c", "a", "b", "d"]
    assert folder.column("requested") == {"c": True, "a": True, "b": False, "d": False}


def test_values_come_through_unchanged(folder):
    folder.write("a", margin=0.25, input_size=[3, 8, 8], freezing=False)
    folder.write("b", margin=float("inf"))
    folder.merge("a", "b")
    assert folder.table().select(["margin", "input_size", "freezing"]).to_pylist() == [
        {"margin": 0.25, "input_size": [3, 8, 8], "freezing": False},
        {"margin": float("inf"), "input_size": None, "freezing": None},
    ]


def test_the_tables_have_the_columns_types_and_meanings_of_their_schemas(folder):
    folder.write("a", leaves=2)
    folder.merge("a", "missing")
    for name, schema in parquet.SCHEMAS.items():
        written = pq.read_schema(folder.path / f"{name}.parquet")
        assert written.equals(schema)
        assert [field.metadata for field in written] == [field.metadata for field in schema]


def test_a_requested_check_without_a_file_is_not_run_and_another_has_no_status(folder):
    folder.write("a")
    folder.merge("a", "missing")
    assert folder.column("accuracy") == {"a": "pass", "missing": "not_run"}
    assert folder.column("performance") == {"a": None, "missing": None}


def test_a_folder_without_anything_gives_empty_tables(folder):
    folder.path.mkdir()
    folder.merge()
    assert {name: len(folder.table(name)) for name in parquet.SCHEMAS} == dict.fromkeys(parquet.SCHEMAS, 0)


def test_the_rows_of_both_checks_become_one_row_and_the_later_check_has_the_last_word(folder):
    folder.write("a", batch_size=8, torch="2.9", margin=0.5)
    folder.write("a", check="performance", batch_size=64, speedup=1.5)
    folder.write("b", batch_size=8)
    folder.write("c", check="performance", speedup=2.0)
    folder.merge("a", "b", "c", checks=BOTH)
    assert folder.column("accuracy") == {"a": "pass", "b": "pass", "c": "not_run"}
    assert folder.column("performance") == {"a": "pass", "b": "not_run", "c": "pass"}
    assert folder.column("batch_size") == {"a": 64, "b": 8, "c": None}
    assert folder.column("torch") == {"a": "2.9", "b": None, "c": None}
    assert folder.column("speedup") == {"a": 1.5, "b": None, "c": 2.0}


def test_software_is_that_of_what_was_measured_last(folder):
    early, late = (datetime(2026, 11, day, tzinfo=timezone.utc) for day in (1, 2))
    for model, accuracy_at, performance_at in (("a", late, early), ("b", early, late)):
        folder.write(model, batch_size=8, torch="accuracy's", accuracy_started_at=accuracy_at)
        timed = {"torch": "performance's", "device_name": "one", "performance_started_at": performance_at}
        folder.write(model, check="performance", batch_size=64, **timed)
    folder.merge("a", "b", checks=BOTH)
    assert folder.column("torch") == {"a": "accuracy's", "b": "performance's"}
    assert folder.column("device_name") == {"a": "one", "b": "one"}, "what only one of them says"
    assert folder.column("batch_size") == {"a": 64, "b": 64}


@pytest.mark.parametrize(("timed_with", "breaks"), [("2.14", 0), ("2.15", 2)])
def test_what_the_compiler_counted_is_that_of_the_timing_unless_other_software_was_timed_before(timed_with, breaks, folder):
    early, late = (datetime(2026, 11, day, tzinfo=timezone.utc) for day in (1, 2))
    folder.write("a", torch="2.14", accuracy_started_at=late, graph_breaks=2)
    folder.write("a", check="performance", torch=timed_with, performance_started_at=early, graph_breaks=0)
    folder.merge("a", checks=BOTH)
    assert folder.column("graph_breaks") == {"a": breaks}


@pytest.mark.parametrize(
    ("stale", "counted"),
    [((), False), (("accuracy",), True), (("performance",), False), (("accuracy", "performance"), False)],
)
def test_a_wrong_cell_counts_only_if_it_was_timed_after_it_was_changed(stale, counted, folder):
    folder.write("a", accuracy="fail_accuracy")
    folder.write("a", check="performance")
    folder.identities = {("a", check): "another" for check in stale}
    folder.merge("a", checks=BOTH)
    assert folder.column("counted") == {"a": counted}


def test_a_timing_counts_although_its_accuracy_waits_to_be_measured(folder):
    folder.write("a", check="performance")
    folder.merge("a", checks=BOTH)
    assert (folder.column("accuracy_by_rule"), folder.column("counted")) == ({"a": "not_run"}, {"a": True})


def test_while_a_run_goes_on_what_an_earlier_one_measured_in_another_way_is_not_run(folder):
    for model in ("done", "old", "other"):
        folder.write(model, margin=0.5)
        folder.write(model, check="performance", speedup=2.0, graph_breaks=3)
    folder.identities = {("old", "performance"): "another", ("other", "accuracy"): "another"}
    folder.merge("done", "old", checks=BOTH)
    cells, count = state.without_stale(
        folder.table(), BOTH, lambda cell, check: folder.identities.get((cell[3], check), "today")
    )
    assert count == 1
    names = ("model", "accuracy_by_rule", "margin", "performance", "speedup", "graph_breaks", "counted")
    assert [tuple(row[name] for name in names) for row in cells.to_pylist()] == [
        ("done", "pass", 0.5, "pass", 2.0, 3, True),
        ("old", "pass", 0.5, "not_run", None, None, False),
        ("other", "pass", 0.5, "pass", 2.0, 3, True),
    ]


def test_the_details_of_both_checks_have_their_tables(folder):
    for model, leaves in (("a", 2), ("none", 0), ("b", 3)):
        folder.write(model, leaves=leaves)
    folder.write("a", check="performance", leaves=4)
    folder.merge("a", "b")
    assert folder.leaves() == ["a"] * 2 + ["b"] * 3
    evidence = folder.table("evidence").to_pylist()
    assert [row["leaf"] for row in evidence if row["model"] == "b"] == ["output.0", "output.1", "output.2"]
    assert [(row["model"], row["block"]) for row in folder.table("samples").to_pylist()] == [("a", n) for n in range(4)]


def test_many_cells_are_merged_without_loss_or_repetition(folder, monkeypatch):
    monkeypatch.setattr(merge, "CELLS_AT_ONCE", 7)
    models = [f"model_{number:02}" for number in range(30)]
    for model in models:
        folder.write(model, leaves=3)
    folder.merge(*models)
    assert folder.table()["model"].to_pylist() == models
    assert folder.leaves() == sorted(models * 3)


# What is derived of a cell.


@pytest.mark.parametrize(
    ("accuracy", "timed", "counted"),
    [
        ({}, {}, True),
        ({}, {"timed_output_ok": True}, True),
        ({"accuracy": "pass_due_to_skip"}, {}, True),
        (None, {}, True),
        ({"accuracy": "fail_accuracy", "accuracy_identity": "of another torch"}, {}, True),
        ({"accuracy": "fail_accuracy"}, {}, False),
        ({"accuracy": "timeout"}, {}, False),
        ({}, {"timed_output_ok": False}, False),
        ({}, {"performance": "fail_accuracy"}, False),
        ({}, {"performance": "pass_due_to_skip"}, False),
        ({}, None, False),
    ],
)
def test_a_cell_counts_if_it_was_timed_and_nothing_says_that_it_is_wrong(accuracy, timed, counted, folder):
    if accuracy is not None:
        folder.write("a", **accuracy)
    if timed is not None:
        folder.write("a", check="performance", **timed)
    folder.merge("a", checks=["performance"])
    assert folder.column("counted") == {"a": counted}


def test_the_status_that_counts_is_that_of_the_rule(folder):
    folder.write("right", strict="pass")
    folder.write("wrong", strict="fail")
    folder.write("chaotic", strict="undecided")
    folder.write("crashed", accuracy="fail_to_run")
    folder.write("fault", accuracy="not_applicable")
    for model in ("right", "wrong", "chaotic"):
        folder.write(model, check="performance")
    models = ["right", "wrong", "chaotic", "crashed", "fault", "missing"]
    folder.merge(*models, checks=BOTH)
    assert folder.column("accuracy")["wrong"] == "pass"  # by the dynamo rule, as for exports
    assert folder.column("accuracy_by_rule")["wrong"] == "fail_accuracy"
    assert [folder.column("passed")[model] for model in models] == [True, False, True, False, None, None]
    assert [folder.column("passed_by")[model] for model in models] == ["strict", "strict", "dynamo", None, None, None]
    assert [folder.column("counted")[model] for model in models] == [True, False, True, False, False, False]
    folder.merge(*models, checks=BOTH, rule="dynamo")
    assert folder.column("passed")["wrong"] is True and folder.column("counted")["wrong"] is True


def test_a_reason_has_the_figures_of_the_worst_tensor_and_goes_with_the_failure(folder):
    errors = {"compiled_relative_error": 0.5, "eager_relative_error": 1e-3, "null_rms": 2e-3, "strict": False}
    leaves = [{"leaf": "output.0", "kind": "output", "strict": True}, {"leaf": "output.1", "kind": "output", **errors}]
    verdict = {"strict": "fail", "strict_worst_leaf": "output.1", "strict_worst_statistic": "rms", "strict_margin": 80.0}
    folder.write("wrong", rows=leaves, **verdict)
    folder.write("right", leaves=1)
    folder.merge("wrong", "right", "missing", checks=BOTH)
    reason = folder.column("accuracy_reason")
    assert all(figure in reason["wrong"] for figure in ("output.1", "0.5", "500 times", "80 times", "0.002", "1 of 2"))
    assert (reason["right"], reason["missing"]) == (None, None)
    assert folder.column("accuracy_reason_class")["wrong"] == "compiler"
    assert folder.column("performance_reason")["wrong"] is None
    folder.write("wrong", leaves=2)
    folder.merge("wrong", "right", checks=BOTH)
    assert folder.column("accuracy_reason")["wrong"] is None


def test_a_retry_of_one_check_alone_counts_by_the_new_row_and_the_other_checks_old_one(folder):
    folder.write("a", accuracy="fail_accuracy")
    folder.write("a", check="performance")
    folder.merge("a", checks=BOTH)
    assert folder.column("counted") == {"a": False}
    folder.write("a")
    folder.merge("a", checks=["accuracy"])
    assert folder.column("counted") == {"a": True}


def test_what_was_measured_with_another_identity_than_todays_is_stale(folder):
    for model in ("same", "other", "unknown"):
        folder.write(model)
        folder.write(model, check="performance")
    folder.identities = {
        ("other", "performance"): "of today",
        ("unknown", "accuracy"): None,
        ("unknown", "performance"): None,
    }
    folder.merge("same")
    assert folder.column("stale") == {"same": False, "other": True, "unknown": None}


# What a look at one of many cells leaves of the others.


def test_a_look_at_one_cell_keeps_all_rows_of_all_tables(folder):
    for model in "abc":
        folder.write(model, leaves=2, margin=0.5)
        folder.write(model, check="performance", leaves=2)
    folder.merge("a", "b", "c", checks=BOTH)
    folder.merge("b", checks=["accuracy"])
    assert folder.column("requested") == {"b": True, "a": False, "c": False}
    assert folder.column("margin") == dict.fromkeys("abc", 0.5)
    assert folder.column("performance") == dict.fromkeys("abc", "pass"), "a check that was not requested keeps its row"
    assert folder.leaves() == ["a", "a", "b", "b", "c", "c"]
    assert len(folder.table("samples")) == 6


def test_a_request_before_does_not_matter(folder):
    folder.write("a")
    folder.merge("a", "gone", checks=BOTH)
    folder.merge("a")
    assert folder.table()["model"].to_pylist() == ["a"]
    assert folder.column("performance") == {"a": None}


def test_a_cell_that_was_measured_again_is_renewed_and_the_others_are_not_read(folder):
    for model in "abc":
        folder.write(model, leaves=2)
    folder.merge("a", "b", "c")
    folder.write("b", leaves=3, margin=0.75)
    before = folder.file("a").stat()
    with folder.file("a").open("r+b") as unreadable:
        unreadable.write(bytes(before.st_size))
    os.utime(folder.file("a"), ns=(before.st_atime_ns, before.st_mtime_ns))
    assert folder.merge("a", "b", "c") == {}
    assert folder.column("margin") == {"a": None, "b": 0.75, "c": None}
    assert folder.leaves() == ["a", "a", "b", "b", "b", "c", "c"]


def test_a_file_that_is_no_newer_is_noticed(folder):
    path = folder.write("a", margin=0.25)
    folder.merge("a")
    before = path.stat()
    folder.write("a", margin=0.75)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    folder.merge("a")
    assert folder.column("margin") == {"a": 0.75}


def test_a_cell_whose_folder_was_deleted_is_gone(folder):
    for model in "ab":
        folder.write(model, leaves=2)
    folder.merge("a", "b")
    folder.file("a").unlink()
    folder.file("a").parent.rmdir()
    folder.merge("b")
    assert folder.table()["model"].to_pylist() == ["b"]
    assert folder.leaves() == ["b", "b"]


def test_one_check_of_a_cell_that_was_deleted_is_gone_and_the_other_stays(folder):
    folder.write("a", leaves=2)
    folder.write("a", check="performance", leaves=2)
    folder.merge("a", checks=BOTH)
    folder.file("a").unlink()
    folder.merge("a", checks=["performance"])
    assert (folder.column("accuracy"), folder.column("performance")) == ({"a": None}, {"a": "pass"})
    assert (len(folder.table("evidence")), len(folder.table("samples"))) == (0, 2)


@pytest.mark.parametrize("name", parquet.SCHEMAS)
def test_a_merge_that_ended_between_two_tables_is_made_anew(name, folder, monkeypatch):
    for model in "ab":
        folder.write(model, leaves=2)
    folder.merge("a", "b")
    folder.write("b", leaves=3, margin=0.5)

    def break_at(path, fill):
        if path.name == f"{name}.parquet":
            raise KeyboardInterrupt
        write_atomically(path, fill)

    monkeypatch.setattr(parquet, "write_atomically", break_at)
    with pytest.raises(KeyboardInterrupt):
        folder.merge("a", "b")
    monkeypatch.undo()
    folder.merge("a", "b")
    assert folder.column("margin") == {"a": None, "b": 0.5}
    assert folder.leaves() == ["a", "a", "b", "b", "b"]


def test_tables_that_were_put_back_from_before_are_made_anew(folder):
    folder.write("a", leaves=2)
    folder.merge("a")
    before = {path: path.read_bytes() for path in folder.path.glob("*.parquet") if path.name != index.INDEX}
    folder.write("a", leaves=3, margin=0.5)
    folder.merge("a")
    for path, content in before.items():
        write_atomically(path, lambda scratch, content=content: scratch.write_bytes(content))
    folder.merge("a")
    assert folder.column("margin") == {"a": 0.5}
    assert len(folder.leaves()) == 3


@pytest.mark.parametrize("name", parquet.SCHEMAS)
def test_tables_of_another_version_are_made_anew(name, folder):
    folder.write("a", leaves=2)
    folder.merge("a")
    older = folder.table(name).drop_columns([parquet.SCHEMAS[name].names[-1]])
    (folder.path / f"{name}.parquet").unlink()
    parquet.write(older, folder.path / f"{name}.parquet")
    folder.merge("a")
    assert folder.table(name).schema.equals(parquet.SCHEMAS[name])
    assert len(folder.leaves()) == 2


def test_row_groups_stay_large_however_often_one_cell_changes(folder, monkeypatch):
    monkeypatch.setattr(merge, "ROWS_AT_ONCE", 10)
    for model in "abcdef":
        folder.write(model, leaves=4)
    for model in "abcdef" * 2:
        folder.write(model, leaves=4)
        folder.merge(*"abcdef")
    file = pq.read_metadata(folder.path / "evidence.parquet")
    groups = [file.row_group(number).num_rows for number in range(file.num_row_groups)]
    assert sum(groups) == 24
    assert all(rows >= 10 for rows in groups[:-1])


def test_folders_that_are_no_builds_are_passed_over(folder):
    folder.write("a")
    (folder.path / "export" / "x" / "y").mkdir(parents=True)
    (folder.path / "export" / "x" / "y" / "accuracy.parquet").write_bytes(b"")
    assert folder.merge("a") == {}
    assert folder.table()["model"].to_pylist() == ["a"]


# Files that cannot be read.


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
    parquet.write(SCHEMAS["accuracy"].empty_table(), path)


def double_the_row(path):
    table = pq.read_table(path)
    parquet.write(pa.concat_tables([table, table]), path)


def rename_the_model(path):
    table = pq.read_table(path)
    parquet.write(table.set_column(table.column_names.index("model"), "model", pa.array(["other"])), path)


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
def test_a_damaged_file_costs_its_own_row_alone_and_the_row_says_why(folder, damage):
    folder.write("a", leaves=1)
    path = folder.write("damaged", leaves=1, accuracy_message="the test of time")
    folder.write("damaged", check="performance")
    folder.write("z", leaves=1)
    damage(path)
    problems = folder.merge("a", "damaged", "z", checks=BOTH)
    assert list(problems) == [("damaged", "accuracy")]
    assert folder.column("accuracy") == {"a": "pass", "z": "pass", "damaged": "not_run"}
    assert folder.column("accuracy_cause")["damaged"] == problems["damaged", "accuracy"]
    assert problems["damaged", "accuracy"].startswith("unreadable result file: ")
    assert (folder.column("performance")["damaged"], folder.column("performance_cause")["damaged"]) == ("pass", None)
    assert folder.leaves() == ["a", "z"]


def test_a_file_that_cannot_be_read_keeps_its_reason_until_it_changes(folder):
    path = folder.write("a")
    truncate(path)
    folder.merge("a")
    folder.merge("a")
    assert folder.column("accuracy_cause")["a"].startswith("unreadable result file: ")
    folder.write("a")
    folder.merge("a")
    assert (folder.column("accuracy"), folder.column("accuracy_cause")) == ({"a": "pass"}, {"a": None})


def test_a_row_of_an_older_version_is_kept_with_its_missing_columns_null(folder):
    path = folder.write("old", margin=0.5, leaves=1)
    old = pq.read_table(path).drop_columns(["top1_agreement"]).append_column("gone", pa.array([1]))
    parquet.write(old, path)
    folder.write("new", top1_agreement=1.0)
    assert folder.merge("new", "old") == {}
    assert folder.column("top1_agreement") == {"new": 1.0, "old": None}
    assert folder.column("margin") == {"new": None, "old": 0.5}
    assert folder.leaves() == ["old"]


def test_files_of_two_cells_each_with_the_row_of_the_other_are_not_taken(folder):
    paths = [folder.write("a"), folder.write("b")]
    contents = [path.read_bytes() for path in paths]
    for path, content in zip(paths, reversed(contents), strict=True):
        path.write_bytes(content)
    folder.merge("a", "b")
    assert folder.column("accuracy") == {"a": "not_run", "b": "not_run"}
