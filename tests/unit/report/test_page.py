"""The report's page without a browser: what it says and holds, and that nothing in it comes from elsewhere."""

import base64
import gzip
import itertools
import json
import re
from datetime import datetime, timezone

import pyarrow.parquet as pq
import pytest

import synthetic_sweep
from timmgate.core.checks import CHECKS
from timmgate.core.schemas import FAILED
from timmgate.report import page, page_data, pictures
from timmgate.tables import parquet
from timmgate.tables.comparison import compare
from timmgate.tables.history import trends
from timmgate.tables.studies import power

HEALTHY = {
    "accuracy": "pass",
    "accuracy_by_rule": "pass",
    "counted": True,
    "speedup": 1.5,
    "speedup_ci_high": 1.6,
    "graph_breaks": 0,
}
SLOWER = {"severity": "warning", "kind": "slower"}
GATE = "build\tmode\tmodel\tcheck_name\tclass\texpected\tstatus\tflaky\tcause\treason\treason_class\tlog\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tables of a small sweep."""
    folder = tmp_path_factory.mktemp("run") / "results" / "cpu"
    synthetic_sweep.write(folder, 12, leaves=30, samples=9)
    with_comparison(folder)
    return folder


def with_comparison(folder, *others):
    """Write what a comparison found: every cell's build 3 % slower than another one, but for what the `others` say."""
    rows = [
        {
            **{name: cell[name] for name in ("device", "mode", "model")},
            **{
                "before": "release",
                "after": cell["build"],
                "figure": "relative_time",
                "verdict": "slower",
                "could_show": True,
            },
            **{
                "change": 0.03,
                "change_ci_low": 0.02,
                "change_ci_high": 0.04,
                "moved": "compiled",
                "p": 1e-5,
                "processes": 5,
            },
        }
        for cell in pq.read_table(folder / "cells.parquet").to_pylist()
    ]
    changed = [{**row, **other} for row, other in itertools.zip_longest(rows, others, fillvalue={})]
    pq.write_table(parquet.table(changed, compare.SCHEMA), folder / "comparison.parquet")


def written(tmp_path, *changes):
    """A folder with the tables of cells that differ from healthy ones as given."""
    rows = synthetic_sweep.cells(len(changes), modes=["inference"], seed=5)
    folder = tmp_path / "results" / "cpu"
    synthetic_sweep.write_tables(folder, [{**row, **HEALTHY, **change} for row, change in zip(rows, changes, strict=True)])
    return folder


def held(text):
    """The data that a page holds."""
    (packed,) = re.findall(r'<script type="application/octet-stream" id="data">(.*?)</script>', text)
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def said(text):
    """What a page says without its scripts and styles, in one line."""
    without = re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", without).split())


def failed(**columns):
    return {"accuracy": "fail_accuracy", "accuracy_by_rule": "fail_accuracy", "counted": False, **columns}


def test_the_first_sentence_says_how_many_cells_fail(tmp_path):
    text = said(page.render(written(tmp_path, {}, failed(accuracy_message="3 of 9 tensors differ"), {})))
    assert "1 of 3 cells fails." in text
    assert "3 of 9 tensors differ" in text


def test_cells_without_a_result_are_no_failures(tmp_path):
    nothing = {"accuracy": "not_run", "accuracy_by_rule": "not_run", "performance": "not_run", "speedup": None}
    assert "2 of 3 cells have no result." in said(page.render(written(tmp_path, {}, nothing, nothing)))


def test_what_was_not_requested_is_not_in_the_headline_but_on_the_board(tmp_path):
    text = page.render(written(tmp_path, {}, failed(requested=False)))
    assert "The only cell passes." in said(text)
    assert len(held(text)["cells"]["requested"]) == 2


@pytest.mark.parametrize("status", FAILED)
@pytest.mark.parametrize("check", CHECKS)
def test_a_cell_fails_if_either_check_does(check, status):
    cell = {"accuracy": "pass", "accuracy_by_rule": "pass", "performance": "pass", check: status}
    cell |= {"accuracy_by_rule": cell["accuracy"]}
    assert page_data.state(cell, [], CHECKS) == "failure"


@pytest.mark.parametrize(
    ("accuracy", "findings", "expected"),
    [
        ("pass", [], "pass"),
        ("pass", [SLOWER], "warning"),
        ("pass_due_to_skip", [], "skipped"),
        ("not_applicable", [], "skipped"),
        (None, [], "pass"),
        ("not_run", [{"severity": "failure", "kind": "not_measured"}], "not_run"),
    ],
)
def test_the_state_of_a_cell_is_the_gravest_of_it(accuracy, findings, expected):
    cell = {"accuracy": accuracy, "accuracy_by_rule": accuracy, "performance": "pass"}
    assert page_data.state(cell, findings, CHECKS) == expected


def test_a_cell_that_one_rule_fails_and_the_other_passes_is_what_the_deciding_rule_says():
    cell = {"accuracy": "fail_accuracy", "accuracy_by_rule": "pass", "performance": "pass"}
    assert page_data.state(cell, [], CHECKS) == "pass"


def test_all_cells_have_the_columns_of_the_board_and_the_gravest_their_details(folder, monkeypatch):
    monkeypatch.setattr(page_data, "GRAVEST", 7)
    data = page_data.page_data(folder)
    assert len(data["details"]) == 7
    assert {len(page.unpacked(values)) for values in data["cells"].values()} == {12 * len(synthetic_sweep.MODES)}
    assert None not in page.unpacked(data["cells"]["command"])
    states = page.unpacked(data["cells"]["state"])
    gravest = sorted(states, key=list(page_data.STATES).index)[:7]
    assert sorted(states[number] for number in data["details"]) == sorted(gravest)


def test_details_have_the_worst_tensors_first_and_no_more_than_are_of_use(folder):
    for detail in page_data.page_data(folder)["details"].values():
        margins = detail["leaves"]["margin"]
        assert len(margins) == page_data.TENSORS
        assert margins == sorted(margins, reverse=True)
        assert len(detail["samples"]["eager_s"]) == 9


def test_the_columns_that_nobody_filled_are_not_shown(tmp_path):
    data = page_data.page_data(written(tmp_path, {"strict": None, "strict_margin": None, "top1_agreement": None}))
    assert not {"strict", "strict_margin", "top1_agreement"} & {column["name"] for column in data["columns"]}


def test_every_column_says_what_it_means(folder):
    assert all(column["description"] for column in page_data.page_data(folder)["columns"])


def test_drift_is_of_each_side_from_the_first_third_to_the_last(tmp_path):
    (row,) = synthetic_sweep.cells(1, modes=["inference"])
    key = {name: row[name] for name in ("device", "build", "mode", "model")}
    samples = [{**key, "eager_s": 1.0 + (n >= 6), "compiled_s": 1.0} for n in range(9)]
    folder = tmp_path / "results" / "cpu"
    synthetic_sweep.write_tables(folder, [row], [([], samples)])
    cells = page_data.page_data(folder)["cells"]
    assert (cells["eager_drift"], cells["compiled_drift"]) == ([2.0], [1.0])


def test_the_end_of_the_log_of_a_failed_cell_is_there_without_codes_of_a_terminal_and_secrets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    (tmp_path / "a.log").write_text("first\n" * 1000 + "denied for hf_0123456789abcdef \x1b[31mlast\x1b[0m\u202e\n")
    data = page_data.page_data(written(tmp_path, failed(log="a.log"), {"log": "a.log"}, failed(log="gone.log")))
    logs = {number: detail.get("log") for number, detail in data["details"].items()}
    assert logs[0].splitlines()[-1] == "denied for <HF_TOKEN> last\\u202e"
    assert len(logs[0].splitlines()) == page_data.LOG_LINES
    assert (logs[1], logs[2]) == (None, None)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a\u202eb\u200bc\x00", "a\\u202eb\\u200bc\\u0000"),
        ("tab\tand\nline", "tab\tand\nline"),
        ("ünïcödé", "ünïcödé"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        (1.23456789, 1.2346),
        ([1, None, {"a": "\u2066"}], [1, None, {"a": "\\u2066"}]),
    ],
)
def test_values_are_plain(value, expected):
    assert page_data.plain(value) == expected


def test_hostile_text_is_escaped_where_the_page_says_it(tmp_path):
    text = "</script><script>alert(1)</script>\"'<img src=x>"
    found = page.render(written(tmp_path, failed(model=text, mode=text, accuracy_message=text, torch=text)))
    assert "<img src=x" not in found
    assert "alert(1)" not in re.sub(r"&lt;/script&gt;&lt;script&gt;alert\(1\)", "", found)


def test_only_the_page_s_own_scripts_may_run_and_nothing_may_be_fetched(folder):
    text = page.render(folder)
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]+)"', text)
    assert "default-src 'none'" in policy
    scripts = re.findall(r"<script(?: type=\"module\")?>(.*?)</script>", text, flags=re.DOTALL)
    assert len(scripts) == policy.count("sha256-") == 3
    for script in scripts:
        assert page.script(script, module=False)["sha256"] in policy
    assert not re.findall(
        r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?!data:)",
        re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL),
    )


def test_the_page_is_the_same_each_time(folder):
    assert page.render(folder) == page.render(folder)


def test_62_models_in_8_modes_take_less_than_5_megabytes(tmp_path):
    synthetic_sweep.write(tmp_path / "results" / "cpu", 62)
    assert len(page.render(tmp_path / "results" / "cpu").encode()) < 5e6


@pytest.mark.parametrize("figure", [*pictures.PICTURES, *pictures.OF_CELL], ids=lambda figure: figure.name)
def test_a_picture_has_a_mark_for_every_row_that_has_its_columns(figure, folder):
    data = page_data.page_data(folder)
    if figure.rows == "cells":
        columns = {name: page.unpacked(values) for name, values in data["cells"].items()}
    else:
        columns = next(iter(data["details"].values()))[figure.rows]
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    rows = [{**row, "counted": True} for row in rows]
    drawn = pictures.svg(figure, rows[:5], page.light_colours())
    incomplete = pictures.svg(figure, [{**row, figure.needs[0]: None} for row in rows[:5]], page.light_colours())
    marks = 'aria-roledescription="(?:point|circle|square|bar|line mark)"'
    assert len(re.findall(marks, drawn)) >= 5
    assert len(re.findall(marks, drawn)) > len(re.findall(marks, incomplete))
    assert "var(--" not in drawn


def test_parts_of_the_compile_time_add_up_to_it():
    for row in (
        {"compile_cold_s": 10, "dynamo_s": 9, "aot_autograd_s": 7, "inductor_s": 6, "codegen_s": 2},
        {"compile_cold_s": 10, "dynamo_s": 4, "aot_autograd_s": 3, "inductor_s": 8, "codegen_s": 7},
    ):
        parts = [
            eval(re.sub(r"datum\.(\w+)", r"row['\1']", text), {"row": row, "max": max}) for text in pictures.STAGES.values()
        ]
        assert sum(parts) == row["compile_cold_s"]
        assert min(parts) >= 0


def test_what_the_gate_found_is_there_until_the_cells_are_newer(folder, tmp_path):
    (folder / "gate.tsv").write_text(GATE + "default\tinference\tvit\taccuracy\tnew_failure\tpass\ttimeout\t\t\t\t\t\n")
    try:
        assert "expected pass, got timeout" in said(page.render(folder))
        (folder / "cells.parquet").touch()
        assert "expected pass, got timeout" not in said(page.render(folder))
    finally:
        (folder / "gate.tsv").unlink()


def test_a_gate_that_found_nothing_says_so(tmp_path):
    folder = written(tmp_path, {})
    (folder / "gate.tsv").write_text(GATE + "default\tinference\tvit\taccuracy\tpass\tpass\tpass\t\t\t\t\t\n")
    assert "The gate passed: everything is as expected." in said(page.render(folder))


def test_what_of_a_gate_is_neither_better_nor_worse_has_a_sign_of_its_own_and_only_the_gravest_are_listed(tmp_path):
    folder = written(tmp_path, {})
    classes = [*["noisy"] * 40, "new_pass", "new_failure", "new_failure"]
    rows = [f"default\tinference\tvit\taccuracy\t{name}\tpass\tpass\t\t\t\t\t\n" for name in classes]
    (folder / "gate.tsv").write_text(GATE + "".join(rows))
    (shown,) = page.changes(folder)
    assert [row["state"] for row in shown["rows"]] == ["failure"] * 2 + ["note"] * (page.CHANGES - 2)
    assert (shown["more"], shown["table"]) == (43 - page.CHANGES, "gate.tsv")
    assert "and 28 more, in gate.tsv" in said(page.render(folder))


def test_what_changed_in_a_history_is_there(tmp_path):
    folder = written(tmp_path, {})
    about = {"device": "cpu", "build": "default", "mode": "inference", "suite": "tiny", "finding": "count"}
    since = {"since": datetime(2026, 11, 29, 2, tzinfo=timezone.utc), "measured_since": 3, "torch": "2.15"}
    count = {"class": "more_graph_breaks", "figure": "graph_breaks", "before": "0", "after": "3"}
    suite = {"class": "slower", "figure": "relative_time", "change": 0.05, "models": 40}
    rows = [{**about, **since, **suite}, {**about, **since, **count, "model": "vit"}]
    parquet.write_tsv(parquet.table(rows, trends.SCHEMA), folder / "history.tsv")
    text = said(page.render(folder))
    assert "inference/vit graph_breaks 0 -&gt; 3 since 2026-11-29 02:00 UTC (3 measurements from then on)" in text
    assert "40 models of tiny relative_time (+5.0%)" in text


def test_where_nothing_was_compared_there_is_a_page_all_the_same(tmp_path):
    nothing = {"worst_leaf": None, "margin": None}
    crashed = {"accuracy": "fail_to_run", "accuracy_by_rule": "fail_to_run", **nothing}
    assert "1 of 2 cells fails." in said(page.render(written(tmp_path, crashed, {"accuracy": None, **nothing})))


def test_a_check_that_was_not_requested_is_no_failure():
    cell = {"accuracy": "pass", "accuracy_by_rule": "pass", "performance": "fail_to_run"}
    assert page_data.state(cell, [], CHECKS) == "failure"
    assert page_data.state(cell, [], ["accuracy"]) == "pass"


def test_a_cell_that_waits_to_be_measured_anew_has_not_failed_because_it_did_before():
    cell = {"accuracy": "fail_accuracy", "accuracy_by_rule": "fail_accuracy", "performance": "pass"}
    waiting = {"severity": "failure", "kind": "not_measured"}
    assert page_data.state(cell, [waiting], CHECKS) == "not_run"
    assert page_data.state(cell, [waiting, {"severity": "failure", "kind": "crashed"}], CHECKS) == "failure"


def test_figures_that_only_the_page_has_are_sorted_as_numbers(folder):
    types = {column.name: column.type for column in page_data.board_columns(pq.read_schema(folder / "cells.parquet"))}
    assert {types["change"], types["eager_drift"], types["worst_eager_rmse"]} == {types["speedup"]}


def test_pictures_of_speedup_are_of_cells_that_count(tmp_path):
    folder = written(tmp_path, {"speedup": 1.5}, {"speedup": 6.0, "counted": False}, {"speedup": 2.0, "stale": True})
    page.write_pictures(folder, tmp_path)
    drawn = (tmp_path / "speedups.svg").read_text()
    models = pq.read_table(folder / "cells.parquet", columns=["model"])["model"].to_pylist()
    assert [model in drawn for model in models] == [True, False, False]


def test_of_cells_that_do_not_count_there_is_no_picture_of_speedup(tmp_path):
    page.write_pictures(written(tmp_path, {"counted": False}, {"counted": None}), tmp_path)
    assert not (tmp_path / "speedups.svg").exists()


def test_a_build_that_is_not_the_default_one_is_named_though_it_is_alone(tmp_path):
    folder = written(tmp_path, {"build": "nightly", **failed()}, {"build": "older", "requested": False})
    assert re.search(r"<td><bdi>nightly</bdi></td>", page.render(folder))
    folder = written(tmp_path, {"build": "default"}, {"build": "older", "requested": False})
    assert '<th scope="col">build</th>' not in page.render(folder)


def test_of_a_commit_what_follows_the_hash_is_kept(tmp_path):
    clean = "0123456789" * 4
    text = said(page.render(written(tmp_path, {"commit": clean}, {"commit": f"{clean}-dirty"}, {"commit": clean})))
    assert "0123456789 (2) , 0123456789-dirty (1)" in text


def test_what_was_measured_apart_is_no_pair_that_took_turns(tmp_path):
    folder = written(tmp_path, {}, {})
    with_comparison(folder, {"processes": None})
    assert page.unpacked(held(page.render(folder))["cells"]["change"]) == [None, 0.03]


@pytest.mark.parametrize(
    ("skipped", "sentence"), [(1, "2 of 3 cells pass, 1 was not judged."), (3, "Of 3 cells none was judged.")]
)
def test_what_was_not_judged_did_not_pass(skipped, sentence, tmp_path):
    nothing = dict.fromkeys(("accuracy", "accuracy_by_rule", "performance"), "not_applicable") | {"counted": False}
    assert sentence in said(page.render(written(tmp_path, *([{}] * (3 - skipped)), *([nothing] * skipped))))


def test_what_differs_between_two_builds_is_there_with_what_it_is_worth(tmp_path):
    folder = written(tmp_path, {}, {}, {}, {})
    unknown = {"verdict": None, "change": 0.001, "could_show": False}
    crash = {"figure": "accuracy", "verdict": "new_failure", "message": "pass became fail_to_run", "change": None}
    with_comparison(folder, {"verdict": "faster", "change": -0.05}, unknown, {}, crash)
    text = said(page.render(folder))
    assert text.index("pass became fail_to_run") < text.index("-5.0%"), "what got worse comes first"
    assert "slower" in text and "+3.0%" in text and "+0.1%" not in text
    assert "A change of 3 % over eager would be found in 2 of 3 cells" in text
    cells = held(page.render(folder))["cells"]
    assert page.unpacked(cells["change"]) == [-0.05, 0.001, 0.03, None]
    assert page.unpacked(cells["change_verdict"]) == ["faster", "same_or_unknown", "slower", None]
    (folder / "cells.parquet").touch()
    assert "pass became fail_to_run" not in said(page.render(folder)), "cells that are newer were not compared"


def test_what_speedups_depend_on_is_in_the_headline(tmp_path):
    timed = {"performance": "pass", "performance_threads": 2, "allocator": "system", "relocate": True}
    assert "timed with 2 threads, memory left to the system" in said(page.render(written(tmp_path, timed, timed)))


def test_a_study_of_faults_has_a_picture_for_each_precision_and_pass(tmp_path):
    folder, trials = written(tmp_path, {}), []
    for number, (precision, training) in enumerate([("float32", True), ("amp", False)] * 20):
        about = {"precision": precision, "training": training, "weights": "random", "family": "values"}
        trials.append({**about, "effect": 2.0 * number + 0.5, "strict": "fail", "dynamo": number % 3 == 0, "cosine": False})
    assert 'id="power"' not in page.render(folder)
    parquet.write_tsv(power.summary(power.table(trials)), folder / "power.tsv")
    text = page.render(folder)
    assert "training in float32" in said(text) and "inference in amp" in said(text)
    drawn = list(pictures.detections(page.power(folder), page.light_colours()))
    assert len(drawn) == 2
    assert all(svg in text for svg in drawn)
    assert all("over 1000" not in svg and "10 to 100" in svg for svg in drawn)
