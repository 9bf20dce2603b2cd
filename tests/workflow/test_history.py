"""`history_path`, and the target `history`, in whole runs."""

import pyarrow.parquet as pq

from timmgate.core.spec import PROTOCOL

CONFIG = {"models": "test_vit", "modes": "inference", "history_path": "kept/history"}


def entries(project):
    files = sorted((project.folder / "kept/history").rglob("*.parquet"))
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def test_each_run_adds_what_it_measured_and_history_measures_nothing(new_project, tmp_path):
    project = new_project(tmp_path, config=CONFIG)
    project.run()
    assert [(row["model"], row["accuracy"]) for row in entries(project)] == [("test_vit", "pass")]
    project.run("--forcerun", "merge")
    assert len(entries(project)) == 1, "nothing was measured"
    for _ in range(2):
        project.worker.behaviours["test_vit"] = "fail_accuracy"
        project.file("inference/test_vit").unlink()
        project.run()
    assert len(entries(project)) == 3
    starts = len(project.worker.starts())
    printed = project.run("history")
    assert "new_failure default/inference/test_vit accuracy pass -> fail_accuracy since" in printed
    assert "0 changes of suites, 1 of cells." in printed
    assert len(project.worker.starts()) == starts
    assert "test_vit" in (project.folder / "results/cpu/history.tsv").read_text()


def test_a_history_that_cannot_be_used_is_named_before_anything_is_measured(new_project, tmp_path):
    project = new_project(tmp_path, config=CONFIG)
    (tmp_path / "kept/history" / f"protocol={PROTOCOL + 1}").mkdir(parents=True)
    assert f"has entries of protocol {PROTOCOL + 1}" in project.run(code=1)
    assert "history: there is none without the key history_path" in project.run("history", code=1, history_path="null")
    assert "'nowhere' has no entries yet" in project.run("history", code=1, history_path="nowhere")
    assert project.worker.entries() == []
