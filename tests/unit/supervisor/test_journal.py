"""The journal of a cell: every attempt is in it, also one that left nothing but its beginning."""

import json
import os
import signal

import pytest

from timmgate.core.outcome import AttemptResult, Verdict
from timmgate.core.redact import MESSAGE_CHARACTERS
from timmgate.supervisor import journal
from timmgate.supervisor.journal import Journal
from timmgate.tables import parquet

KEY = {"device": "cpu", "build": "default", "mode": "inference", "model": "test_vit"}
PASS, KILLED = Verdict("pass"), Verdict("infra_error", "SIGKILL", "the process was killed from outside")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results" / "attempts.jsonl"


def ended(journal, check="accuracy", verdict=PASS):
    journal.began(check)
    journal.ended(check, AttemptResult(stage="compare", wall_s=1.5), verdict)


def table(path):
    return parquet.table(journal.rows_of(path, KEY), parquet.SCHEMAS["attempts"]).to_pylist()


def test_a_cell_that_never_began_has_no_attempts(path):
    assert table(path) == []
    assert Journal(path).attempts["accuracy"] == 0


def test_an_attempt_says_what_became_of_it_where_and_when(path):
    ended(Journal(path, retry=2), verdict=KILLED)
    (row,) = table(path)
    expected = {
        **KEY,
        "check_name": "accuracy",
        "retry": 2,
        "attempt": 1,
        "status": "infra_error",
        "cause": "SIGKILL",
        "wall_s": 1.5,
    }
    assert {name: row[name] for name in expected} == expected
    assert row["host"]
    assert row["began_at"] <= row["ended_at"]


def test_attempts_at_what_the_cell_was_before_do_not_count(path):
    Journal(path, identities={"accuracy": "old"}).began("accuracy")
    assert Journal(path, identities={"accuracy": "old"}).failed_attempts["accuracy"] == 1
    assert Journal(path, identities={"accuracy": "new"}).failed_attempts["accuracy"] == 0
    assert len(table(path)) == 1


def test_a_beginning_without_an_end_is_a_lost_attempt(path):
    Journal(path).began("accuracy")
    (row,) = table(path)
    assert (row["attempt"], row["status"], row["cause"], row["stage"]) == (1, "infra_error", "lost", None)
    journal = Journal(path)
    assert (journal.attempts["accuracy"], journal.failed_attempts["accuracy"], journal.has_loss) == (1, 1, True)
    ended(journal)
    assert [row["attempt"] for row in table(path)] == [1, 2]


def test_every_check_counts_its_own_attempts(path):
    journal = Journal(path)
    ended(journal, "accuracy")
    journal.began("performance")
    again = Journal(path)
    assert (again.attempts["accuracy"], again.failed_attempts["accuracy"]) == (1, 0)
    assert (again.attempts["performance"], again.failed_attempts["performance"]) == (1, 1)


def test_only_what_another_attempt_can_cure_counts_as_failed(path):
    journal = Journal(path)
    for verdict in (KILLED, Verdict("OOM", "MemoryError"), Verdict("timeout", "limit of 2 s")):
        ended(journal, verdict=verdict)
    assert (journal.attempts["accuracy"], journal.failed_attempts["accuracy"]) == (3, 1)


def test_counting_begins_anew_once_the_rows_are_written_and_nothing_is_forgotten(path):
    journal = Journal(path)
    with journal.kept():
        ended(journal, verdict=KILLED)
    again = Journal(path, retry=1)
    assert again.attempts["accuracy"] == 0
    with again.kept():
        ended(again)
    assert [(row["retry"], row["attempt"], row["status"]) for row in table(path)] == [(0, 1, "infra_error"), (1, 1, "pass")]


def be_asked_to_end():
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_measurement_that_was_ended_on_request_is_none_of_the_attempts(path):
    journal = Journal(path)
    with pytest.raises(SystemExit), journal.kept():
        journal.began("accuracy")
        be_asked_to_end()
    assert table(path) == []
    assert Journal(path).failed_attempts["accuracy"] == 0


def test_that_a_measurement_was_asked_to_end_is_kept_before_anything_is_cleaned_up(path):
    found = []
    with pytest.raises(SystemExit), Journal(path).kept():
        try:
            be_asked_to_end()
        finally:
            found = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert found == ["interrupted"]


@pytest.mark.parametrize("kept", [1, 20, -2])
def test_a_line_that_was_cut_off_costs_no_other_line(kept, path):
    journal = Journal(path)
    ended(journal, verdict=KILLED)
    whole = path.read_bytes()
    ended(journal)
    path.write_bytes(whole + path.read_bytes()[len(whole) :][:kept])
    ended(Journal(path))
    assert [row["status"] for row in table(path)][:1] + [row["status"] for row in table(path)][-1:] == [
        "infra_error",
        "pass",
    ]
    assert all(json.loads(line) for line in path.read_text().splitlines()[-2:])


def test_a_message_is_cut_and_has_no_secrets(path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_a_secret_token")
    ended(Journal(path), verdict=Verdict("fail_to_run", "HTTPError", "no entry with hf_a_secret_token " + "x" * 10_000))
    (row,) = table(path)
    assert row["message"].startswith("no entry with <HF_TOKEN> xxx")
    assert len(row["message"]) == MESSAGE_CHARACTERS
    assert "hf_a_secret_token" not in path.read_text()


def test_an_error_of_once_does_not_explain_what_happens_later(path):
    with pytest.raises(OSError, match="disk"), Journal(path).kept():
        raise OSError("disk full")
    assert Journal(path).error == "disk full"
    ended(Journal(path), verdict=KILLED)
    assert Journal(path).error is None


def test_what_never_began_is_told_too(path):
    journal = Journal(path, retry=1)
    journal.never_began("accuracy", AttemptResult(stage="weights"), Verdict("model_fail_to_load", "HTTP 404"))
    (row,) = table(path)
    assert (row["attempt"], row["retry"], row["stage"], row["began_at"]) == (0, 1, "weights", None)
    assert row["host"]


def test_an_error_of_our_own_is_remembered_until_the_rows_are_written(path):
    with pytest.raises(OSError, match="no room"), Journal(path).kept():
        raise OSError("no room")
    assert Journal(path).error == "no room"
    with pytest.raises(SystemExit), Journal(path).kept():
        be_asked_to_end()
    assert Journal(path).error is None


def test_the_last_failed_attempt_and_the_time_of_all_are_known(path):
    journal = Journal(path)
    ended(journal, verdict=KILLED)
    ended(journal, verdict=KILLED)
    again = Journal(path)
    assert again.wall_s["accuracy"] == 3.0
    assert again.last_failed["accuracy"]["cause"] == "SIGKILL"
