"""What is expected, read from files of several forms; how results are judged by it; and expectations made of results."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from rich.console import Console

import merged
from timmgate.config import settings, suites
from timmgate.core import schemas
from timmgate.core.errors import ConfigError
from timmgate.core.spec import Mode, Traits
from timmgate.report import gate as terminal
from timmgate.tables import parquet
from timmgate.tables.gate import baseline, judgement
from timmgate.tables.gate.baseline import Expectation

CONFIG = Path(__file__).parents[3] / "config"
SHIPPED = CONFIG / "expected"
PASS, FAILURE = Expectation("pass"), Expectation("fail_accuracy")


@pytest.fixture
def write(tmp_path):
    """Writes a file from its lines and returns its path."""

    def write_lines(*lines, name="expected.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write_lines


@pytest.fixture(scope="module")
def configured():
    """Settings that differ from the defaults in the arguments."""
    defaults = yaml.safe_load((CONFIG / "config.yaml").read_text())
    return lambda **changes: settings.load({**defaults, **changes})


@pytest.fixture
def suite():
    """It has the models a and b, and the weights a.tag."""
    return suites.Suite("mine", dict.fromkeys(["a", "b"], Traits()), tagged={"a.tag": Traits()})


def table(*rows):
    """A table of requested cells."""
    return merged.cells([{"requested": True, **row} for row in rows])


def cells(mode="inference", **statuses):
    """A table with a requested cell for each model, with its status of accuracy."""
    return table(*({"mode": mode, "model": name, "accuracy": each} for name, each in statuses.items()))


def judge(results, expectations, checks=("accuracy",)):
    return judgement.judge(results, expectations, checks).to_pylist()


def refusal(path, column="float32"):
    with pytest.raises(ConfigError) as refused:
        baseline.read(path, column)
    return str(refused.value)


# Files of expectations.


def test_a_file_is_read_by_its_header_and_other_columns_do_not_matter(write):
    path = write("graph_breaks,accuracy,name,recompiles", "5,pass,a,0", "0,fail_accuracy,b,1")
    assert baseline.read(path, "float32") == {"a": PASS, "b": FAILURE}


def test_blank_lines_and_comments_are_skipped(write):
    path = write("", "# ours", "name,accuracy", "", "", "", "a,pass", "  ", ",", "#b,pass", "c,fail_accuracy", "")
    assert baseline.read(path, "float32") == {"a": PASS, "c": FAILURE}


@pytest.mark.parametrize(
    ("mode", "expectations"),
    [
        (Mode(), {"a": PASS, "b": PASS}),
        (Mode(precision="bfloat16"), {"a": FAILURE}),
        (Mode(precision="float16"), {"a": PASS}),
        (Mode(precision="amp", amp_dtype="bfloat16"), {"a": Expectation("timeout"), "b": PASS}),
        (Mode(precision="amp", amp_dtype="float16"), {"a": Expectation("OOM")}),
    ],
    ids=lambda value: f"{value.precision} {value.amp_dtype or ''}" if isinstance(value, Mode) else "",
)
def test_of_intels_form_the_column_of_the_precision_counts_and_an_empty_cell_is_no_expectation(write, mode, expectations):
    path = write(
        "name,float32,bfloat16,float16,amp_bf16,amp_fp16",
        "a,pass,fail_accuracy,pass,timeout # issue 7,OOM# since June",
        "b,pass,,,pass,",
    )
    assert baseline.read(path, baseline.precision_column("xpu", mode)) == expectations


@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu", "mps"])
def test_amp_without_a_dtype_has_the_column_of_the_dtype_that_torch_uses(device):
    column = {torch.bfloat16: "amp_bf16", torch.float16: "amp_fp16"}[torch.get_autocast_dtype(device)]
    assert baseline.precision_column(device, Mode(precision="amp")) == column


def test_a_model_is_flaky_for_the_reason_in_its_column(write):
    path = write("name,accuracy,flaky", 'a,pass,"fails one time in ten, see #5"', "b,pass,", "c,pass")
    assert baseline.read(path, "float32") == {
        "a": Expectation("pass", "fails one time in ten, see #5"),
        "b": PASS,
        "c": PASS,
    }


def test_a_file_of_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "expected.csv").write_bytes(b"\xef\xbb\xbfname, accuracy\r\na, pass\r\n,\r\n")
    assert baseline.read(tmp_path / "expected.csv", "float32") == {"a": PASS}


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "the column 'name' is missing"),
        (["model,accuracy", "a,pass"], "line 1: the column 'name' is missing"),
        (["", "name,speedup", "a,1.2"], "line 2: there is no column 'accuracy', nor 'amp_bf16' as in Intel's files"),
        (["name,accuracy", "", "a,pass", "a,fail_accuracy"], "line 4: the model 'a' is listed twice"),
        (["name,accuracy", ",pass"], "line 2: the name of the model is missing"),
        (["name,accuracy", "a,PASS"], "line 2: accuracy is 'PASS'; did you mean pass?"),
        (["name,accuracy", "a pass"], "line 2: the row ends before the column 'accuracy'; is a comma missing?"),
        (["name,accuracy,accuracy", "a,pass,pass"], "line 1: the column 'accuracy' is there twice"),
    ],
    ids=["empty", "no name", "no status", "twice", "no model", "misspelt", "no comma", "column twice"],
)
def test_a_mistake_in_a_file_is_named_with_its_line(write, lines, sentence):
    path = write(*lines)
    assert refusal(path, "amp_bf16") == f"{path}{', ' if sentence.startswith('line') else ': '}{sentence}"


def test_a_file_that_is_not_text_is_refused(tmp_path):
    (tmp_path / "cells.parquet").write_bytes(b"PAR1\xff\xfe")
    assert "the file is not text" in refusal(tmp_path / "cells.parquet")


# The baseline.


@pytest.mark.parametrize("content", [b"no parquet", None])
def test_a_file_that_is_no_table_of_cells_is_no_measured_baseline(tmp_path, configured, content):
    path = tmp_path / "cpu" / "cells.parquet"
    path.parent.mkdir()
    if content:
        path.write_bytes(content)
    else:
        pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(ConfigError, match=r"cells.parquet (cannot be read|is no table of cells: it has no column )"):
        baseline.measured(configured(baseline=str(tmp_path)))


def test_one_file_is_for_every_mode(write, configured, suite):
    path = write("name,float32,amp_bf16", "a,pass,fail_accuracy")
    chosen = configured(baseline=str(path), modes="inference,training-amp,training")
    assert baseline.load(chosen, suite, SHIPPED) == {
        "inference": {"a": PASS},
        "training-amp": {"a": FAILURE},
        "training": {"a": PASS},
    }


def test_a_folder_has_a_file_per_device_and_mode_and_a_mode_without_a_file_has_no_expectations(write, configured, suite):
    folder = write("name,accuracy", "a,pass", name="cpu/training.csv").parents[1]
    write("name,accuracy", "a,fail_accuracy", name="cuda/inference.csv")
    chosen = configured(baseline=str(folder), modes="inference,training")
    assert baseline.load(chosen, suite, SHIPPED) == {"training": {"a": PASS}}


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_baseline_in_which_there_is_nothing_is_refused(tmp_path, configured, suite, name):
    chosen = configured(baseline=str(tmp_path / name), modes="inference,training")
    with pytest.raises(ConfigError, match=r"neither a file nor a folder with cpu/inference.csv or cpu/training.csv"):
        baseline.load(chosen, suite, SHIPPED)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*/*.csv")), ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_a_shipped_file_is_of_a_mode_in_the_catalogue_and_lists_models_of_a_dashboard(path, configured):
    chosen = configured(device=path.parent.name, modes=path.stem, suite="dashboard-2024")
    every = {
        **suites.read("dashboard-2026", CONFIG / "suites").models,
        **suites.read(chosen.suite, CONFIG / "suites").models,
    }
    expectations = baseline.load(chosen, suites.Suite("dashboards", every), SHIPPED)[path.stem]
    assert list(expectations) == list(baseline.read(path, "float32")), "nothing in it is of no suite"
    assert sum(each.accuracy == "pass" for each in expectations.values()) >= len(expectations) - 1


def test_shipped_expectations_of_other_suites_models_are_not_used(configured, suite):
    assert baseline.load(configured(modes="inference"), suite, SHIPPED) == {"inference": {}}


# Which of them a run is judged by.

EVERYTHING = {"inference": dict.fromkeys(["a", "b", "a.tag", "gone", "vit_gone"], PASS)}


@pytest.mark.parametrize(
    ("config", "requested", "kept"),
    [
        ({}, "ab", {"a", "b", "gone", "vit_gone"}),
        ({"models": "a"}, "a", {"a"}),
        ({"models": "a,vit_*"}, "a", {"a", "vit_gone"}),
        ({"exclude": "b,vit*"}, "a", {"a", "gone"}),
        ({"shard": "2/2"}, "b", {"b", "gone", "vit_gone"}),
    ],
    ids=["everything", "models", "models by pattern", "exclude", "shard"],
)
def test_a_model_that_was_left_out_is_not_asked_for_and_one_that_the_suite_lacks_is(
    configured, suite, config, requested, kept
):
    assert set(baseline.asked_for(EVERYTHING, configured(**config), suite, requested)["inference"]) == kept


# How results are judged.

FLAKY = "now and then"
TABLE = [
    # expected, flaky, found, class
    (None, None, "pass", "pass"),
    (None, None, "pass_due_to_skip", "pass"),
    (None, None, "timeout", "new_failure"),
    (None, None, "not_run", "missing"),
    ("pass", None, "pass", "pass"),
    ("pass", None, "pass_due_to_skip", "pass"),
    ("pass_due_to_skip", None, "pass", "pass"),
    ("eager_variation", None, "pass", "pass"),
    ("pass", None, "fail_accuracy", "new_failure"),
    ("pass_due_to_skip", None, "infra_error", "new_failure"),
    ("eager_variation", None, "eager_two_runs_differ", "new_failure"),
    ("pass", None, "not_run", "missing"),
    ("pass", None, None, "missing"),
    ("fail_accuracy", None, "fail_accuracy", "expected_failure"),
    ("fail_accuracy", None, "fail_to_run", "changed_failure"),
    ("fail_accuracy", None, "timeout", "changed_failure"),
    ("fail_accuracy", None, "pass", "new_pass"),
    ("fail_to_run", None, "pass_due_to_skip", "new_pass"),
    ("fail_accuracy", None, "not_run", "missing"),
    ("fail_accuracy", None, None, "missing"),
    ("not_run", None, "not_run", "missing"),
    ("pass", FLAKY, "pass", "pass"),
    ("pass", FLAKY, "fail_accuracy", "flaky"),
    ("fail_accuracy", FLAKY, "fail_accuracy", "expected_failure"),
    ("fail_accuracy", FLAKY, "fail_to_run", "flaky"),
    ("fail_accuracy", FLAKY, "pass", "flaky"),
    ("pass", FLAKY, "not_run", "missing"),
    ("pass", FLAKY, None, "missing"),
]


@pytest.mark.parametrize(("wanted", "flaky", "found", "name"), TABLE, ids=["-".join(map(str, line)) for line in TABLE])
def test_every_cell_that_was_found_or_expected_is_in_one_class(wanted, flaky, found, name):
    results = cells(**{"a": found} if found else {})
    expectations = {"inference": {"a": Expectation(wanted, flaky)} if wanted else {}}
    (judged,) = judge(results, expectations)
    assert (judged["model"], judged["class"]) == ("a", name)
    assert (judged["expected"], judged["flaky"], judged["status"]) == (wanted, flaky, found)


def test_the_table_above_has_every_class():
    assert {name for *_, name in TABLE} == {*judgement.CLASSES} - {"one_off"}, (
        "which is one that fresh processes do not confirm"
    )


def test_every_status_that_counts_as_passed_elsewhere_passes_here():
    assert set(schemas.PASSED) < set(baseline.PASSING)


def test_what_is_expected_of_one_mode_says_nothing_of_another():
    judged = judge(cells("training", a="fail_accuracy"), {"inference": {"a": FAILURE}})
    assert [(row["mode"], row["class"]) for row in judged] == [("training", "new_failure"), ("inference", "missing")]


def test_results_come_in_their_order_and_what_is_missing_after_them():
    judged = judge(cells(c="pass", a="pass"), {"inference": {"b": PASS, "a": PASS}})
    assert [row["model"] for row in judged] == ["c", "a", "b"]


@pytest.mark.parametrize("name", judgement.CLASSES)
def test_new_and_changed_failures_and_missing_results_fail_the_gate_and_nothing_else_does(name):
    assert judgement.failed([{"class": "pass"}, {"class": name}]) == (name in ("new_failure", "changed_failure", "missing"))


def test_no_cells_and_no_expectations_pass_the_gate():
    assert not judgement.failed(judge(cells(), {}))


def test_what_was_not_requested_is_not_judged():
    results = table({"mode": "m", "model": "a", "accuracy": "fail_accuracy", "requested": False})
    assert judge(results, {}) == []


# The performance check beside it.

BOTH = ("accuracy", "performance")


def timed(accuracy, performance, **columns):
    return table({"mode": "inference", "model": "a", "accuracy": accuracy, "performance": performance, **columns})


@pytest.mark.parametrize(
    ("expectation", "found", "classes"),
    [
        (None, ("pass", "pass"), ["pass", "pass"]),
        (None, ("pass", "fail_to_run"), ["pass", "new_failure"]),
        (None, ("pass", "not_run"), ["pass", "missing"]),
        (PASS, ("pass", "fail_accuracy"), ["pass", "new_failure"]),
        (FAILURE, ("fail_accuracy", "pass"), ["expected_failure", "pass"]),
        (FAILURE, ("fail_accuracy", "timeout"), ["expected_failure", "expected_failure"]),
        (FAILURE, ("pass", "pass"), ["new_pass", "pass"]),
        (FAILURE, ("fail_accuracy", "not_run"), ["expected_failure", "missing"]),
        (Expectation("pass", None, "OOM"), ("pass", "OOM"), ["pass", "expected_failure"]),
        (Expectation("pass", None, "OOM"), ("pass", "pass"), ["pass", "new_pass"]),
        (Expectation("pass", None, "OOM"), ("pass", "timeout"), ["pass", "changed_failure"]),
        (Expectation("fail_accuracy", None, "pass"), ("fail_accuracy", "OOM"), ["expected_failure", "new_failure"]),
        (Expectation("pass", FLAKY), ("pass", "OOM"), ["pass", "flaky"]),
    ],
)
def test_performance_is_expected_to_pass_unless_accuracy_is_not_or_the_file_says_so(expectation, found, classes):
    judged = judge(timed(*found), {"inference": {"a": expectation} if expectation else {}}, BOTH)
    assert [row["check_name"] for row in judged] == list(BOTH)
    assert [row["class"] for row in judged] == classes


def test_a_failure_of_performance_fails_the_gate_and_says_why():
    why = {"performance_cause": "RuntimeError", "performance_message": "no kernel"}
    judged = judge(timed("pass", "fail_to_run", **why), {}, BOTH)
    assert judgement.failed(judged)
    assert (judged[1]["cause"], judged[1]["reason_class"]) == ("RuntimeError", "environment")
    assert judged[1]["reason"] == "RuntimeError: no kernel"
    assert judgement.reasons(judged) == ["The gate failed: 1 new_failure.", "new_failure inference/a performance"]


def test_only_the_requested_checks_are_judged():
    assert not judgement.failed(judge(timed("fail_accuracy", "pass"), {}, ["performance"]))
    assert not judgement.failed(judge(timed("pass", "timeout"), {}, ["accuracy"]))


def test_a_file_may_say_what_is_expected_of_performance(write):
    path = write("name,accuracy,performance,flaky", "a,pass,OOM # too large,", "b,fail_accuracy,,", "c,,timeout,")
    assert baseline.read(path, "float32") == {
        "a": Expectation("pass", None, "OOM"),
        "b": FAILURE,
        "c": Expectation("pass", None, "timeout"),
    }


@pytest.mark.parametrize(
    ("found", "row"),
    [
        (("pass", "pass"), ("pass",)),
        (("pass", "OOM"), ("pass", "OOM")),
        (("fail_accuracy", "OOM"), ("fail_accuracy",)),
        (("fail_accuracy", "pass"), ("fail_accuracy",)),
        (("pass_due_to_skip", "pass_due_to_skip"), ("pass_due_to_skip",)),
        (("pass", "not_applicable"), ("pass",)),
    ],
)
def test_of_performance_is_written_only_what_is_not_expected_anyway(found, row, tmp_path):
    results = timed(*found)
    renewed = judgement.updated(results, {"inference": {}}, {"inference": {}}, BOTH)["inference"]
    assert [tuple(each.values()) for each in renewed.to_pylist()] == [("a", *row)]
    parquet.write_csv(renewed, tmp_path / "renewed.csv")
    judged = judge(results, {"inference": baseline.read(tmp_path / "renewed.csv", "float32")}, BOTH)
    assert {row["class"] for row in judged} <= set(judgement.AS_EXPECTED)


def test_what_was_expected_of_performance_stays_where_it_was_not_measured():
    old = {"inference": {"a": Expectation("pass", None, "OOM")}}
    renewed = judgement.updated(cells(a="pass"), old, old, ["accuracy"])["inference"]
    assert renewed.to_pylist() == [{"name": "a", "accuracy": "pass", "performance": "OOM"}]


# What is shown.


@pytest.fixture
def printed(tmp_path):
    """Judges, prints, and returns the words of the table and the lines after it."""

    def print_judged(results, expectations):
        with (tmp_path / "terminal").open("w") as file:
            console = Console(record=True, width=80, file=file)
            terminal.show(judge(results, {"inference": expectations}), console)
        text = console.export_text()
        table = [line.replace("┃", "│") for line in text.splitlines() if line.startswith(("┃", "│"))]
        words = [[word.strip() for word in line.strip("│").split("│")] for line in table]
        return words, text.splitlines()[len(table) + 4 :]

    return print_judged


def test_a_gate_as_expected_shows_the_counts_and_says_so(printed):
    words, lines = printed(cells(a="pass", b="fail_accuracy", c="pass"), {"b": FAILURE})
    assert words == [["mode", "check", "cells", "pass", "expected_failure"], ["inference", "accuracy", "3", "2", "1"]]
    assert lines == ["The gate passed: everything is as expected."]


def test_whatever_is_not_as_expected_has_a_line(printed):
    expectations = {"b": FAILURE, "c": Expectation("pass", FLAKY), "d": Expectation("timeout"), "gone": PASS}
    _, lines = printed(cells(a="timeout", b="pass", c="OOM", d="OOM"), expectations)
    assert lines == [
        "new_failure inference/a accuracy expected pass, got timeout",
        "new_pass inference/b accuracy expected fail_accuracy, got pass",
        "flaky inference/c accuracy expected pass, got OOM; flaky: now and then",
        "changed_failure inference/d accuracy expected timeout, got OOM",
        "missing inference/gone accuracy expected pass, got no result",
        "The gate failed: 1 new_pass, 1 flaky, 1 new_failure, 1 changed_failure, 1 missing.",
    ]


def test_an_improvement_is_said_and_passes(printed):
    _, lines = printed(cells(a="pass"), {"a": FAILURE})
    assert lines[-1] == "The gate passed: 1 new_pass."


def test_a_line_has_the_first_line_of_the_reason_as_it_is_and_the_log_and_does_not_wrap(printed):
    row = {"mode": "inference", "model": "a", "accuracy": "fail_to_run", "log": f"logs/{'long/' * 20}a.log"}
    why = {"accuracy_cause": "RuntimeError", "accuracy_message": "no [bold]kernel[/bold] :smile:\nTraceback"}
    _, (line, _) = printed(table({**row, **why}), {})
    said = "expected pass, got fail_to_run; RuntimeError: no [bold]kernel[/bold] :smile:"
    assert line == f"new_failure inference/a accuracy {said}; log: {row['log']}"


# Expectations made of results.


def updated(results, expectations, asked_for=None):
    """The renewed expectations of the mode `inference`."""
    before = {"inference": expectations}
    after = judgement.updated(results, before, before if asked_for is None else {"inference": asked_for}, ["accuracy"])
    return {row.pop("name"): tuple(row.values()) for row in after["inference"].to_pylist()}


def test_what_was_found_is_expected_from_now_on():
    renewed = updated(cells(b="pass", a="timeout"), {"b": FAILURE, "a": PASS})
    assert list(renewed.items()) == [("a", ("timeout",)), ("b", ("pass",))]


def test_what_was_asked_for_and_has_no_result_is_not_expected_any_more():
    assert updated(cells(a="pass"), {"gone": PASS}) == {"a": ("pass",)}


def test_what_was_not_asked_for_stays_expected():
    assert updated(cells(a="pass"), {"a": FAILURE, "left_out": FAILURE}, asked_for={"a": FAILURE}) == {
        "a": ("pass",),
        "left_out": ("fail_accuracy",),
    }


def test_what_was_not_run_stays_as_it_was():
    assert updated(cells(a="not_run", b="not_run"), {"a": FAILURE}) == {"a": ("fail_accuracy",)}


def test_the_reason_of_a_flaky_model_stays():
    flaky = Expectation("pass", FLAKY)
    assert updated(cells(a="pass", b="OOM"), {"b": flaky}) == {"a": ("pass", None), "b": ("OOM", FLAKY)}


def test_a_gate_by_the_renewed_expectations_is_as_expected(tmp_path):
    results = cells(a="pass", b="fail_accuracy", c="pass_due_to_skip", d="timeout")
    before = {"inference": {"c": Expectation("OOM", "a, or b"), "gone": PASS}}
    parquet.write_csv(judgement.updated(results, before, before, ["accuracy"])["inference"], tmp_path / "renewed.csv")
    renewed = baseline.read(tmp_path / "renewed.csv", "float32")
    classes = [row["class"] for row in judge(results, {"inference": renewed})]
    assert classes == [
        "pass",
        "expected_failure",
        "pass",
        "expected_failure",
    ]
