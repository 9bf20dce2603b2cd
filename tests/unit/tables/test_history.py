"""What runs add to a history, who can read it, and what it says changed."""

from datetime import datetime, timedelta, timezone

import numpy as np
import pandas as pd
import pytest

import merged
from timmgate.config import history_path
from timmgate.core.errors import ConfigError
from timmgate.core.spec import PROTOCOL
from timmgate.tables.history import store, trends

FIRST = datetime(2026, 11, 29, 2, tzinfo=timezone.utc)
ABOUT = {"device": "cpu", "build": "default", "mode": "inference", "suite": "tiny", "device_name": "a fake"}


def night(number):
    return FIRST + timedelta(days=number)


def cell(model, number, **columns):
    """A cell that was measured in the night with this number."""
    started = {f"{check}_started_at": night(number) for check in ("accuracy", "performance")}
    identity = {f"{check}_identity": f"{check} {model} {number}" for check in ("accuracy", "performance")}
    figures = {"accuracy": "pass", "performance": "pass", "torch": f"2.{number}", "compiled_ms": 10.0, "eager_ms": 20.0}
    return {**ABOUT, "model": model, **started, **identity, **figures, **columns}


def table(*cells):
    return merged.cells(list(cells))


def entries(root):
    return store.read(root, store.SCHEMA.names).to_pylist()


@pytest.fixture
def nights(tmp_path):
    """Records nights, each a function of its number that gives its cells; and returns what changed in the last runs."""

    def tell(cells_of, number, runs=30):
        for each in range(number):
            store.record(table(*cells_of(each)), tmp_path, night(each) + timedelta(hours=3))
        return trends.changed(tmp_path, "cpu", runs)[0].to_pylist()

    return tell


def test_another_rule_is_no_change(tmp_path):
    for number in range(12):
        strict = cell("a", number, accuracy="fail_accuracy", strict="pass")
        store.record(merged.cells([strict], "both" if number > 5 else "strict"), tmp_path, night(number))
    assert {row["accuracy_by_rule"] for row in entries(tmp_path)} == {"pass", "fail_accuracy"}
    for rule in ("strict", "both", "dynamo"):
        assert trends.changed(tmp_path, "cpu", 30, rule)[0].to_pylist() == []


# What is added.


def test_what_was_measured_is_added_once_and_files_are_never_changed(tmp_path):
    cells = table(cell("a", 0), cell("b", 0), {**ABOUT, "model": "lost", "accuracy": "not_run"})
    assert store.record(cells, tmp_path, night(0)) == 2
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    assert store.record(cells, tmp_path, night(1)) == 0
    assert store.record(table(cell("a", 0), cell("b", 1)), tmp_path, night(1)) == 1
    after = {path: path.read_bytes() for path in tmp_path.rglob("*.parquet")}
    assert {path: after[path] for path in before} == before
    assert [(row["model"], row["torch"]) for row in entries(tmp_path)] == [("a", "2.0"), ("b", "2.0"), ("b", "2.1")]
    assert len({row["run"] for row in entries(tmp_path)}) == 2


def test_what_was_measured_by_another_protocol_is_not_recorded_as_todays(tmp_path):
    both, one = cell("a", 0, accuracy_protocol=1, performance_protocol=None), cell("b", 0, accuracy_protocol=1)
    assert store.record(table(both, one), tmp_path, night(0)) == 1
    (row,) = entries(tmp_path)
    assert (row["model"], row["accuracy"], row["performance"]) == ("b", None, "pass")


def test_of_a_check_that_was_recorded_before_a_later_entry_has_nothing(tmp_path):
    store.record(table(cell("a", 0)), tmp_path, night(0))
    again = cell("a", 0, performance_started_at=night(1), compiled_ms=11.0)
    assert store.record(table(again), tmp_path, night(1)) == 1
    first, second = entries(tmp_path)
    assert (first["accuracy"], first["compiled_ms"]) == ("pass", 10.0)
    assert (second["accuracy"], second["accuracy_started_at"], second["compiled_ms"]) == (None, None, 11.0)


def test_files_lie_by_protocol_and_month(tmp_path):
    store.record(table(cell("a", 0), cell("b", 5)), tmp_path, night(6))
    folders = {str(path.parent.relative_to(tmp_path)) for path in tmp_path.rglob("*.parquet")}
    assert folders == {f"protocol={PROTOCOL}/month=2026-{month}" for month in (11, 12)}


def test_pandas_and_duckdb_read_it_without_us(tmp_path):
    duckdb = pytest.importorskip("duckdb")
    for number in range(3):
        store.record(table(cell("a", number, compiled_ms=10.0 + number)), tmp_path, night(number))
    assert pd.read_parquet(tmp_path)["compiled_ms"].tolist() == [10.0, 11.0, 12.0]
    files = f"read_parquet('{tmp_path}/**/*.parquet', hive_partitioning = true, union_by_name = true)"
    rows = duckdb.sql(f"SELECT protocol, month, model, torch, compiled_ms FROM {files} ORDER BY compiled_ms DESC").fetchall()
    assert rows[0] == (PROTOCOL, "2026-12", "a", "2.2", 12.0)


def test_an_entry_of_an_older_schema_is_read_with_nulls(tmp_path):
    store.record(table(cell("a", 0)), tmp_path, night(0))
    (file,) = tmp_path.rglob("*.parquet")
    old = pd.read_parquet(file).drop(columns=["graph_breaks", "compiled_ms"])
    old.to_parquet(file)
    (entry,) = entries(tmp_path)
    assert (entry["model"], entry["graph_breaks"], entry["compiled_ms"]) == ("a", None, None)


# What cannot be a history, or cannot be asked.


def test_a_history_of_a_newer_protocol_is_refused(tmp_path):
    (tmp_path / f"protocol={PROTOCOL + 1}").mkdir()
    with pytest.raises(ConfigError, match=f"entries of protocol {PROTOCOL + 1}, but this workflow measures by protocol"):
        history_path.refuse(tmp_path)


def test_a_file_is_no_history(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file"):
        history_path.refuse(tmp_path / "file")


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"", lambda data: data[4:], lambda data: b"PAR"])
def test_a_history_with_a_file_that_is_cut_off_is_refused_before_anything_is_measured(damage, tmp_path):
    for number in range(2):
        store.record(table(cell("a", number)), tmp_path, night(number))
    history_path.refuse(tmp_path)
    file = max(tmp_path.rglob("*.parquet"))
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ConfigError, match=f"{file.name}' is no whole Parquet file"):
        history_path.refuse(tmp_path)


def test_there_must_be_something_to_ask(tmp_path):
    with pytest.raises(ConfigError, match="without the key history_path"):
        history_path.to_ask(None)
    with pytest.raises(ConfigError, match="has no entries yet"):
        history_path.to_ask(str(tmp_path))


# What it says.


def test_a_slower_cell_is_told_with_the_first_night_and_the_versions(nights):
    rng = np.random.default_rng(1337)

    def cells_of(number):
        slower = 1.1 if number >= 12 else 1.0
        return [cell(name, number, compiled_ms=10 * (slower if name == "a" else 1) * rng.normal(1, 0.005)) for name in "ab"]

    (told,) = nights(cells_of, 16)
    assert (told["finding"], told["class"], told["model"], told["figure"]) == ("step", "slower", "a", "relative_time")
    assert told["change"] == pytest.approx(0.1, abs=0.01)
    assert told["eager_change"] == 0
    assert told["since"] == night(12)
    assert told["versions"] == "torch 2.11 -> 2.12"
    assert told["measured_since"] == 4


def test_a_slower_machine_is_no_change_of_a_cell_and_one_of_eager_in_its_suite(nights):
    rng = np.random.default_rng(1337)

    def cells_of(number):
        slower = [(1.1 if number >= 12 else 1.0) * rng.normal(1, 0.005) for _ in range(10)]
        return [cell(f"m{each}", number, compiled_ms=10 * by, eager_ms=20 * by) for each, by in enumerate(slower)]

    (told,) = nights(cells_of, 16)
    assert (told["model"], told["figure"], told["class"], told["since"]) == (None, "eager_ms", "eager_slower", night(12))


def test_levels_are_those_between_two_changes(nights):
    def cells_of(number):
        return [cell("a", number, compiled_ms=10.0 if number < 12 else 12.0 if number < 15 else 11.0)]

    told = {row["class"]: (row["before"], row["after"]) for row in nights(cells_of, 26)}
    assert told == {"slower": ("0.5", "0.6"), "faster": ("0.6", "0.55")}


def test_models_that_come_or_go_are_no_change_of_the_suite(nights):
    rng = np.random.default_rng(1337)

    def cells_of(number):
        names = [f"m{each}" for each in range(20 if number >= 20 else 10)]
        slower = {name: 1.1 if int(name[1:]) < 5 and number >= 10 else 1.0 for name in names}
        gone = {"m0", "m1"} if number >= 15 else set()
        return [
            cell(name, number, compiled_ms=10 * slower[name] * rng.normal(1, 0.002)) for name in names if name not in gone
        ]

    suites = [row for row in nights(cells_of, 26) if row["model"] is None and row["finding"] == "step"]
    assert [(row["class"], row["since"]) for row in suites] == [("slower", night(10))]


def test_a_cell_that_fails_in_another_way_each_night_has_failed_since_the_first(nights):
    def cells_of(number):
        failure = "timeout" if number % 2 else "fail_to_run"
        return [cell("a", number, accuracy="pass" if number < 10 else failure)]

    (told,) = [row for row in nights(cells_of, 20) if row["figure"] == "accuracy"]
    assert (told["class"], told["before"], told["after"], told["since"]) == ("new_failure", "pass", "fail_to_run", night(10))


def test_of_backends_variables_and_files_the_items_that_differ_are_told(nights):
    def cells_of(number):
        step = int(number >= 12)
        about = {"backends": ["other=1", f"acme={step}"], "environment": [f"ACME={step}"] * step, "torch": "2.9"}
        return [cell("a", number, compiled_ms=10.0 + 3 * step, sources=[f"torch={step}", "timm=1"], **about)]

    (told,) = nights(cells_of, 16)
    assert told["versions"] == "backends acme=0 -> acme=1; environment without -> ACME=1; files of torch differ"


def test_one_night_is_no_change_and_two_are(nights):
    def cells_of(number):
        return [cell("a", number, compiled_ms=12.0 if number >= 10 else 10.0, accuracy="OOM" if number >= 10 else "pass")]

    assert nights(cells_of, 11) == []
    assert {(row["finding"], row["class"]) for row in nights(cells_of, 12)} == {
        ("step", "slower"),
        ("status", "new_failure"),
    }


def test_a_series_that_ended_long_ago_is_no_news(nights):
    def cells_of(number):
        ended = [cell("old", number, graph_breaks=min(number, 2) // 2)] if number < 8 else []
        return [*ended, cell("a", number)]

    assert [row["model"] for row in nights(cells_of, 8)] == ["old"]
    assert nights(cells_of, 60) == []


def test_many_runs_of_another_suite_make_no_series_end(nights):
    def cells_of(number):
        nightly = [cell("a", number, suite="all", graph_breaks=number // 40)] if number % 20 == 0 else []
        return [*nightly, cell("b", number, suite="few")]

    assert [row["model"] for row in nights(cells_of, 100)] == ["a"]


def test_more_graph_breaks_are_a_change_of_a_count(nights):
    told = nights(lambda number: [cell("a", number, graph_breaks=0 if number < 4 else 3)], 8)
    assert [(row["class"], row["before"], row["after"], row["since"]) for row in told] == [
        ("more_graph_breaks", "0", "3", night(4))
    ]


def test_another_batch_or_device_is_another_series(nights):
    def cells_of(number):
        late = number >= 6
        batch = cell("a", number, performance_batch_size=64 if late else 32, compiled_ms=20.0 if late else 10.0)
        device = cell("b", number, device_name="another" if late else "one", compiled_ms=20.0 if late else 10.0)
        return [batch, device]

    assert nights(cells_of, 12) == []


def test_a_model_that_does_not_load_any_more_or_does_not_fit_changed_its_status(nights):
    lost = {"device_name": None, "performance_batch_size": None, "compiled_ms": None}

    def cells_of(number):
        late = number >= 6
        unknown = cell("a", number, **(lost | {"performance": "model_fail_to_load"} if late else {}))
        small = {"performance": "OOM", "performance_batch_size": 1, "compiled_ms": None} if late else {}
        usual = {"device_name": "one", "performance_batch_size": 32}
        return [usual | unknown, {**cell("b", number), **usual, **small}]

    told = nights(cells_of, 9)
    assert {(row["model"], row["class"], row["before"], row["after"], row["since"]) for row in told} == {
        ("a", "new_failure", "pass", "model_fail_to_load", night(6)),
        ("b", "new_failure", "pass", "OOM", night(6)),
    }


def test_a_suite_moves_where_no_model_does_enough_to_be_told(nights):
    rng = np.random.default_rng(1337)

    def cells_of(number):
        slower = 1.015 if number >= 20 else 1.0
        return [cell(f"m{each}", number, compiled_ms=10 * slower * rng.normal(1, 0.01)) for each in range(40)]

    (told,) = [row for row in nights(cells_of, 26) if row["model"] is None]
    assert (told["class"], told["suite"], told["models"], told["since"]) == ("slower", "tiny", 40, night(20))


def test_a_look_at_one_model_says_nothing_of_its_suite(nights):
    rng = np.random.default_rng(1337)

    def cells_of(number):
        models = 1 if number >= 20 else 40
        return [cell(f"m{each}", number, compiled_ms=10 * rng.normal(1.0, 0.01)) for each in range(models)]

    assert nights(cells_of, 26) == []


def test_runs_may_be_added_later_than_they_were_measured(tmp_path):
    for number in (2, 3, 4, 5, 6, 7, 0, 1):
        store.record(table(cell("a", number, compiled_ms=10.0 if number < 4 else 12.0)), tmp_path, night(10 + number))
    (told,) = trends.changed(tmp_path, "cpu", 30)[0].to_pylist()
    assert told["since"] == night(4)
