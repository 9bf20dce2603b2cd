"""From the outcome of a check to its file: what is in it, and that there is one."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from timmgate.core.outcome import AttemptResult, Outcome, Verdict
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Cell, Mode
from timmgate.core.thresholds import Thresholds
from timmgate.supervisor.job import Job
from timmgate.tables import failures, merge, parquet, rows

ROOT = Path(__file__).parents[3]
CELL = Cell(device="cuda", mode="mine", model="vit", weights="random", torch="2.9", timm="1.0", options=Mode(freezing=True))
FACTS = {
    **{"python": "3.11.7", "torch_revision": "abc", "triton": "3.5", "cuda": "12.8", "cudnn": "9", "cxx": "g++ 13"},
    **{"backends": {"acme": "2.0"}, "sources": {"torch": "f00"}, "environment": {"CXX": "a compiler's name"}},
}
RUN = RunOptions(threads=4)


def outcome(check="accuracy", status="pass", details=(), **columns):
    result = AttemptResult(check, stage="compare", columns=columns, details=list(details), worker_s=1.5)
    return Outcome(result, Verdict(status, "cause", "what happened"), attempt=2, wall_s=3.0)


@pytest.fixture
def write(tmp_path):
    """Writes the file of a check and returns its row."""

    def write_row(check="accuracy", **known):
        job = Job(
            cell=CELL,
            files={check: tmp_path / "row" / f"{check}.parquet"},
            run=RUN,
            log=Path("logs/x.log"),
            attempts=2,
            retry=3,
        )
        rows.writer(job, "tiny", FACTS)(CELL.spec(check), outcome(check, **known), RUN)
        (row,) = pq.read_table(job.files[check]).to_pylist()
        return row

    return write_row


def test_a_row_says_what_was_measured_how_it_went_and_with_what(write):
    row = write(margin=0.5, device_name="a fake", batch_size=8)
    expected = {
        **{"device": "cuda", "build": "default", "mode": "mine", "model": "vit", "suite": "tiny", "freezing": True},
        **{"accuracy": "pass", "accuracy_stage": "compare", "accuracy_cause": "cause", "accuracy_attempt": 2},
        **{"accuracy_wall_s": 3.0, "accuracy_worker_s": 1.5, "accuracy_threads": 4, "margin": 0.5, "device_name": "a fake"},
        **{"batch_size": 8, "accuracy_batch_size": 8, "retry": 3, "log": "logs/x.log", "torch": "2.9", "timm": "1.0"},
        **{"python": "3.11.7", "torch_revision": "abc", "triton": "3.5", "cuda": "12.8", "cudnn": "9", "cxx": "g++ 13"},
        **{"backends": ["acme=2.0"], "sources": ["torch=f00"], "environment": ["CXX=a compiler's name"]},
        **{"accuracy_identity": CELL.spec("accuracy").identity()},
    }
    assert {name: row[name] for name in expected} == expected


def test_the_details_are_in_the_row(write):
    row = write("performance", details=[{"process": 0, "block": 0, "eager_first": True, "eager_s": 0.2, "compiled_s": 0.1}])
    assert row["details"] == [{"process": 0, "block": 0, "eager_first": True, "eager_s": 0.2, "compiled_s": 0.1}]


@pytest.mark.parametrize(
    "known",
    [
        {"margin": "large", "leaves": 2},
        {"margin": 1j, "leaves": 2},
        {"colour": "red", "leaves": 2},
        {"input_size": [3, "wide"], "leaves": 2},
        {"device_name": b"\xff", "leaves": 2},
        {"leaves": 2, "details": [{"leaf": "output", "margin": "large"}]},
        {"leaves": 2, "details": [{"leaf": "output", "colour": "red"}]},
    ],
)
def test_what_no_column_can_hold_costs_itself_alone_and_the_message_says_so(known, write):
    row = write(status="fail_accuracy", **known)
    assert (row["accuracy"], row["leaves"]) == ("fail_accuracy", 2)
    assert row["accuracy_message"].startswith("what happened; left out of the row; ")
    assert [leaf["leaf"] for leaf in row["details"]] == ["output"] * len(known.get("details", ()))


# The command.

WORKER = """\
import runpy
import users_own  # only on the user's own search path
runpy.run_path({fake!r}, run_name="__main__")
"""


@pytest.fixture
def odd_folder(tmp_path):
    folder = tmp_path / 'it\'s "my" folder & co'
    folder.mkdir()
    return folder


def test_the_command_of_a_failure_repeats_it_when_it_is_pasted_from_the_tsv(odd_folder, monkeypatch):
    (odd_folder / "users_own.py").write_text("")
    (odd_folder / "a worker.py").write_text(WORKER.format(fake=str(ROOT / "tests" / "fake_worker.py")))
    monkeypatch.setenv("PYTHONPATH", f"{odd_folder}{os.pathsep}/else where")
    monkeypatch.setenv("TIMMGATE_WORKER", shlex.join([sys.executable, str(odd_folder / "a worker.py")]))
    file = odd_folder / "cuda" / "default" / "mine" / "vit" / "accuracy.parquet"
    job = Job(cell=CELL, files={"accuracy": file}, run=RUN, log=Path("logs/x.log"), attempts=1)
    failed = outcome(status="fail_accuracy", device_uuid="GPU-12-34")
    rows.writer(job, "tiny", FACTS)(CELL.spec("accuracy"), failed, RUN)
    merge.merge(odd_folder / "cuda", [("cuda", "default", "mine", "vit")], ["accuracy"], lambda *_: None, "strict")
    cells = pq.read_table(odd_folder / "cuda" / "cells.parquet")
    parquet.write_tsv(failures.failures(cells, ["accuracy"], Thresholds()), odd_folder / "failures.tsv")
    header, line, *_ = (odd_folder / "failures.tsv").read_text().splitlines()
    command = dict(zip(header.split("\t"), line.split("\t"), strict=True))["command"]
    # A shell of its own, that knows nothing of this one.
    environment = {"PATH": os.environ["PATH"], "FAKE_WORKER_JOURNAL": str(odd_folder / "journal")}
    ran = subprocess.run(["sh", "-c", command], cwd="/", env=environment, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout.splitlines()[-1])["result"]["status"] == "pass"
    journal = json.loads((odd_folder / "journal").read_text())
    assert (journal["cell"], journal["gpu"]) == ("mine/vit", "GPU-12-34")
    assert "CXX='a compiler'\"'\"'s name' " in command
