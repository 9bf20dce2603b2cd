"""A whole run of the default configuration: what is planned, what is written, and that it is done then."""

from dataclasses import replace

import pyarrow.parquet as pq
import pytest

from timmgate.tables import parquet

MODES = ("inference", "inference-amp", "inference-freezing", "training")
MODELS = ("test_vit", "test_resnet", "test_convnext", "test_efficientnet", "test_byobnet", "test_nfnet")
CELLS = [f"{mode}/{model}" for mode in MODES for model in MODELS]
MEASURED = [f"{mode}/{model}" for mode in MODES for model in MODELS[:2]]
CHECKS = ("accuracy", "performance")
TABLES = {
    "cells.parquet",
    "attempts.parquet",
    "evidence.parquet",
    "repeats.parquet",
    "samples.parquet",
    "failures.parquet",
    "failures.tsv",
    "summary.tsv",
    ".index.parquet",
    ".request.json",
}


def parts(cell):
    """Mode and model, by which tables of many rows a cell are sorted."""
    return cell.split("/")


@pytest.fixture(scope="module")
def default(new_project, tmp_path_factory):
    """The project, what a dry run planned before, and what a run of two of its models printed."""
    project = new_project(tmp_path_factory.mktemp("default"), config={"checks": "accuracy,performance"})
    planned = project.planned()
    project.config["models"] = "test_vit,test_resnet"
    return project, planned, project.run()


def test_a_dry_run_plans_every_cell_and_the_tables(default):
    _, planned, _ = default
    assert planned == {*CELLS, "merge", "flag", "all"}


def test_both_checks_of_every_cell_are_measured_once_by_one_process(default):
    project, _, _ = default
    assert project.worker.cells() == sorted(MEASURED)


def test_a_run_writes_the_files_of_every_cell_and_the_tables_and_nothing_else(default):
    project, _, _ = default
    files = {f"results/cpu/default/{cell}/{check}.parquet" for cell in MEASURED for check in CHECKS}
    journals = {f"results/cpu/default/{cell}/attempts.jsonl" for cell in MEASURED}
    logs = {f"logs/cpu/default/{cell}.log" for cell in MEASURED} | {"logs/cpu/default/preflight.log"}
    steps = {"logs/cpu/merge.log", "logs/cpu/flag.log"}
    assert project.files() - steps == files | journals | logs | {f"results/cpu/{name}" for name in TABLES}


def test_the_table_of_cells_has_one_row_per_cell_in_the_order_of_the_request(default):
    project, _, _ = default
    for check in ("accuracy", "performance"):
        assert list(project.statuses(check=check).items()) == [(cell, "pass") for cell in MEASURED]


def test_the_columns_of_the_tables_say_unit_and_meaning(default):
    project, _, _ = default
    for name in ("cells", "evidence", "samples"):
        written = pq.read_schema(project.folder / "results" / "cpu" / f"{name}.parquet")
        assert [(each.name, each.metadata) for each in written] == [
            (each.name, each.metadata) for each in parquet.SCHEMAS[name]
        ]
        assert all(each.metadata[b"description"] for each in written)
    cells = pq.read_schema(project.folder / "results" / "cpu" / "cells.parquet")
    assert cells.field("accuracy_wall_s").metadata[b"unit"] == b"s"


def test_a_row_says_what_was_measured_where_and_how_to_repeat_it(default):
    project, _, _ = default
    row = next(row for row in project.table() if (row["mode"], row["model"]) == ("inference-amp", "test_resnet"))
    expected = {
        "device": "cpu",
        "suite": "tiny",
        "backend": "inductor",
        "precision": "amp",
        "training": False,
        "weights": "random",
        "batch_size_requested": 8,
        "accuracy_attempt": 1,
        "performance_attempt": 1,
        "speedup": pytest.approx(2),
        "accuracy_threads": 1,
        "log": "logs/cpu/default/inference-amp/test_resnet.log",
    }
    assert {name: row[name] for name in expected} == expected
    assert (project.folder / row["log"]).is_file()
    assert "fake_worker.py" in row["command"]


def test_the_table_of_evidence_has_the_tensors_of_every_cell(default):
    project, _, _ = default
    leaves = [(f"{row['mode']}/{row['model']}", row["leaf"]) for row in project.table("evidence")]
    assert leaves == [(cell, leaf) for cell in sorted(MEASURED, key=parts) for leaf in ("output.0", "output.1")]


def test_the_table_of_samples_has_the_pairs_of_every_cell(default):
    project, _, _ = default
    pairs = [(f"{row['mode']}/{row['model']}", row["block"], row["eager_s"]) for row in project.table("samples")]
    assert pairs == [(cell, block, 0.2) for cell in sorted(MEASURED, key=parts) for block in range(5) for _ in range(2)]


def test_the_terminal_shows_a_line_per_mode_for_each_check(default):
    _, _, printed = default
    assert printed.rindex("accuracy on cpu") < printed.rindex("performance on cpu")
    for mode in MODES:
        lines = [line.split("│") for line in printed.splitlines() if line.startswith(f"│ {mode} ")]
        accuracy, performance, speedups, costs = ([word.strip() for word in line[2:-1]] for line in lines)
        assert accuracy == performance == ["2", "2"]
        assert speedups == ["2.00, 2 of 2", "2.00, 2 of 2", "2/0/0/0"]
        assert costs == ["20.0", "1.0", "1.50", "0"]


def test_there_is_nothing_to_do_after_a_run_and_it_is_said_quickly(default, monkeypatch):
    monkeypatch.setenv("EXACT_FACTS", "1")
    project, _, _ = default
    assert project.planned() == set()
    assert 0 < project.last.cpu_s < 4, "in seconds of the processor, which hardly depend on neighbours"
    assert "Nothing to be done" in project.run()
    assert len(project.worker.starts()) == len(MEASURED)


def test_the_scheduler_looks_at_what_is_ready_once_for_every_job_that_ends_and_not_ever_more_often(project):
    printed = project.run("--verbose", modes="inference,training")
    assert "Finished jobid" in printed
    assert printed.count("Ready jobs: ") <= 12 + 3


def test_one_cell_can_be_asked_for_alone(project):
    project.run("results/cpu/default/training/test_vit/accuracy.parquet")
    assert project.worker.cells() == ["training/test_vit"]
    assert "results/cpu/cells.parquet" not in project.files()


def test_results_of_two_devices_live_side_by_side(finished):
    before = {path: path.stat().st_mtime_ns for path in finished.folder.glob("results/cpu/**/*")}
    finished.run(device="cuda")
    assert finished.statuses("cuda") == finished.statuses("cpu")
    assert {row["device"] for row in finished.table(device="cuda")} == {"cuda"}
    assert {path: path.stat().st_mtime_ns for path in finished.folder.glob("results/cpu/**/*")} == before
    assert len(finished.worker.starts()) == 4
    assert finished.planned() == set(), "going back to the first device redoes nothing"


def test_the_longest_cells_come_first(project):
    costs = {"test_vit": 1.0, "test_resnet": 4.0, "test_convnext": 1.5}
    lines = ["model\tbatch_size\tcost", *(f"{model}\t8\t{cost}" for model, cost in costs.items())]
    (project.folder / "mine.tsv").write_text("\n".join(lines) + "\n")
    alone = replace(project, executor=("--cores", "1"))
    alone.run("--omit-from", "merge", suite="mine.tsv", modes="inference,training")
    assert [entry["cell"] for entry in project.worker.starts()] == [
        "training/test_resnet",
        "inference/test_resnet",
        "training/test_convnext",
        "training/test_vit",
        "inference/test_convnext",
        "inference/test_vit",
    ]
