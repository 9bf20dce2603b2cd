"""Tables of what there is so far, made without Snakemake: python -m timmgate.tables results/cpu."""

import json
import os
import subprocess
import sys
import threading

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import timmgate
from timmgate.core import schemas
from timmgate.core.thresholds import Thresholds
from timmgate.supervisor import journal, stages
from timmgate.tables import __main__ as tables
from timmgate.tables import index, parquet, renewal, request
from timmgate.tables.request import Request

FOLDER = tables.Path("results", "cpu")
TABLES = ("cells.parquet", "evidence.parquet", "attempts.parquet", "failures.parquet", "failures.tsv", "summary.tsv")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def key(model):
    return "cpu", "default", "inference", model


def write(model, check="accuracy", status="pass"):
    row = {**dict(zip(schemas.KEY, key(model), strict=True)), check: status, "details": []}
    parquet.write_cell(
        parquet.table([row], parquet.FILE_SCHEMAS[check]), FOLDER.joinpath(*key(model)[1:], f"{check}.parquet")
    )


def ask(*models, checks=("accuracy",), **fields):
    Request([key(model) for model in models], checks, **fields).save(FOLDER)


def rows(name="cells"):
    """Read at once: by its path a file is opened more than once, and may be another in between."""
    return pq.read_table(pa.BufferReader((FOLDER / f"{name}.parquet").read_bytes())).to_pylist()


def times():
    return {name: (FOLDER / name).stat().st_mtime_ns for name in TABLES}


def test_cells_without_a_row_are_not_run_yet(folder):
    write("done")
    write("wrong", status="fail_accuracy")
    ask("done", "wrong", "queued")
    assert tables.main(FOLDER) == "results/cpu has tables of 2 of 3 requested cells; 1 of them failed"
    assert {row["model"]: row["accuracy"] for row in rows()} == {
        "done": "pass",
        "wrong": "fail_accuracy",
        "queued": "not_run",
    }
    assert [row["kind"] for row in rows("failures")][:2] == ["wrong", "not_measured"]
    assert all((FOLDER / name).is_file() for name in TABLES)


def test_without_a_request_everything_counts_as_requested(folder):
    write("done")
    write("other", check="performance")
    tables.main(FOLDER)
    assert {row["model"]: row["requested"] for row in rows()} == {"done": True, "other": True}


def test_snakemake_finds_them_older_than_what_they_are_made_of(folder):
    write("done")
    ask("done")
    tables.main(FOLDER)
    oldest_ns = min(path.stat().st_mtime_ns for path in FOLDER.glob("*/*/*/*"))
    assert max(times().values()) < oldest_ns


def test_snakemake_finds_that_they_are_not_what_it_has_made(folder):
    write("done")
    ask("done")
    tables.main(FOLDER)
    word = request.partial(FOLDER)
    tables.main(FOLDER)
    assert word and request.partial(FOLDER) == word, "they are as they must be"
    write("done", status="fail_accuracy")
    tables.main(FOLDER)
    assert request.partial(FOLDER) != word


def test_tables_that_are_as_they_must_be_are_left_alone(folder):
    write("done")
    ask("done")
    tables.main(FOLDER)
    now_ns = 2 * 10**18
    for name in TABLES:
        os.utime(FOLDER / name, ns=(now_ns, now_ns))
    tables.main(FOLDER)
    assert set(times().values()) == {now_ns}
    write("done", status="fail_accuracy")
    tables.main(FOLDER)
    assert max(times().values()) < now_ns
    assert [row["accuracy"] for row in rows()] == ["fail_accuracy"]


def test_another_request_is_heeded(folder):
    write("done")
    ask("done")
    tables.main(FOLDER)
    ask("done", "more", thresholds=Thresholds(min_speedup=0.5))
    tables.main(FOLDER)
    assert {row["model"] for row in rows()} == {"done", "more"}


def leave_journal(model, *events):
    path = FOLDER.joinpath(*key(model)[1:], journal.NAME)
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"check_name": "accuracy", "attempt": 1, "host": "here", "retry": 0}
    path.write_text("".join(json.dumps({"event": event, **about, **more}) + "\n" for event, more in events))


def test_an_attempt_that_is_going_on_is_not_lost_but_one_of_a_killed_supervisor_is(folder):
    began = ("began", {"began_at": "2026-01-01T00:00:00+00:00"})
    leave_journal("running", began)
    leave_journal("killed", began)
    stages.StageFile(stages.path_of(key("running"))).tell("accuracy", "compile")
    ask("running", "killed")
    tables.main(FOLDER)
    assert [(row["model"], row["cause"]) for row in rows("attempts")] == [("killed", "lost")]
    stages.forget("cpu")
    tables.main(FOLDER)
    assert {row["model"] for row in rows("attempts")} == {"running", "killed"}, "it was killed too, as it turns out"


def test_what_cannot_be_read_is_said_and_the_rest_is_there(folder, capsys):
    write("done")
    FOLDER.joinpath(*key("broken")[1:]).mkdir()
    FOLDER.joinpath(*key("broken")[1:], "accuracy.parquet").write_bytes(b"PAR1")
    ask("done", "broken")
    tables.main(FOLDER)
    assert "cpu/default/inference/broken accuracy: unreadable result file" in capsys.readouterr().err
    assert {row["model"]: row["accuracy"] for row in rows()} == {"done": "pass", "broken": "not_run"}


def test_a_request_without_any_result_is_no_error(folder):
    ask("queued")
    assert tables.main(FOLDER) == "results/cpu has none of 1 requested cells yet"


def test_the_request_may_speak_of_files_that_are_gone(folder):
    write("done")
    ask("done", config={"suite": "gone.tsv"}, facts=".cache/gone")
    tables.main(FOLDER)
    assert [row["stale"] for row in rows()] == [None]


@pytest.mark.parametrize("arguments", [[], ["nothing/here"], ["results/cpu", "results/cuda"]])
def test_what_is_no_folder_of_results_is_refused_in_a_sentence(folder, arguments):
    environment = {**os.environ, "PYTHONPATH": str(tables.Path(timmgate.__file__).parents[1])}
    command = [sys.executable, "-m", "timmgate.tables", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1 and "results/cpu" in done.stderr


def test_they_are_renewed_again_and_again_until_that_is_stopped(folder):
    write("first")
    ask("first", "second")
    stages.StageFile(stages.path_of(key("second"))).tell("accuracy", "compile")
    renewing = renewal.Renewal(FOLDER, period_s=0.1)
    try:
        wait_for(lambda: (FOLDER / "summary.tsv").is_file())
        write("second")
        wait_for(lambda: [row["accuracy"] for row in rows()] == ["pass", "pass"])
    finally:
        renewing.stop()


def test_they_are_left_alone_when_nothing_is_measured_any_more(folder, monkeypatch):
    write("first")
    ask("first")
    looked = threading.Semaphore(0)
    monkeypatch.setattr(stages, "under_way", lambda device: looked.release() or set())
    renewing = renewal.Renewal(FOLDER, period_s=0.0)
    for _ in range(3):
        looked.acquire()
    renewing.stop()
    assert not (FOLDER / "cells.parquet").exists()


def wait_for(condition):
    forever = threading.Event()
    while not condition():
        forever.wait(0.05)


def test_nobody_makes_them_at_the_same_time(folder):
    write("done")
    ask("done")
    with index.alone(FOLDER):
        other = threading.Thread(target=tables.main, args=[FOLDER], daemon=True)
        other.start()
        other.join(0.5)
        assert not (FOLDER / "cells.parquet").exists()
    other.join()
    assert (FOLDER / "cells.parquet").exists()


def test_a_request_is_read_as_it_was_saved(folder):
    asked = Request([key("a")], ["accuracy"], Thresholds(max_compile_s=7), {"modes": ["inference"]}, ".cache/builds/cpu")
    asked.save(FOLDER)
    assert request.load(FOLDER) == asked
