"""What a run prints in the terminal at its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import merged
import timmgate
from timmgate.core.schemas import PASSED, STATUSES
from timmgate.core.thresholds import Thresholds
from timmgate.report.terminal import show
from timmgate.tables import failures, parquet, summary

NARROW, WIDE = 44, 200


@pytest.fixture
def printed(tmp_path):
    """Writes the tables of some cells, prints them, and returns the text."""

    def print_cells(*cells, width=WIDE, color=False, checks=("accuracy",)):
        known = {"device": "cpu", "build": "default", "model": "test_vit", "requested": True, "counted": True}
        table = merged.cells([{**known, **cell} for cell in cells])
        parquet.write(failures.failures(table, checks, Thresholds()), tmp_path / "failures.parquet")
        parquet.write_tsv(summary.summary(table, checks), tmp_path / "summary.tsv")
        with (tmp_path / "terminal").open("w") as terminal:
            console = Console(record=True, width=width, file=terminal, force_terminal=color)
            show(tmp_path, console)
        return console.export_text(styles=color)

    return print_cells


def cell(mode, status, **columns):
    return {"mode": mode, "accuracy": status, **columns}


def table_of(text):
    """The words of the header and of each row of the table."""
    lines = [line.replace("┃", "│").strip("│ ") for line in text.splitlines() if line.startswith(("┃", "│"))]
    return [[word.strip() for word in line.split("│")] for line in lines]


def test_the_table_has_a_row_per_mode_and_names_the_statuses_that_are_no_pass(printed):
    text = printed(
        *[cell("training", "pass")] * 3,
        *[cell("training", "timeout")] * 2,
        *[cell("inference", "pass"), cell("inference", "fail_accuracy"), cell("inference", "pass_due_to_skip")],
    )
    assert "accuracy on cpu" in text
    assert table_of(text) == [
        ["mode", "cells", "passed", "not passed"],
        ["training", "5", "3", "2 timeout"],
        ["inference", "3", "2", "1 fail_accuracy"],
    ]


def test_tables_fit_80_columns_whatever_there_is_in_them(printed):
    statuses = [status for status in STATUSES if status not in PASSED]
    modes = ["inference-channels-last", "training"]
    cells = [cell(mode, status, performance=status) for mode in modes for status in statuses]
    timed = {"speedup": 1.1, "verdict": "faster", "compile_cold_s": 100.0, "compile_warm_s": 10.0, "graph_breaks": 100}
    cells += [cell("inference-channels-last", "pass", performance="pass", **timed)] * 100
    lines = [line for line in printed(*cells, width=80, checks=("accuracy", "performance")).splitlines() if "│" in line]
    assert max(map(len, lines)) <= 80
    words = {word for line in lines for word in line.replace("│", " ").split()}
    assert {*modes, *statuses} <= words, "no word is broken"


def test_a_run_that_passed_shows_nothing_but_the_table(printed):
    text = printed(cell("inference", "pass"))
    assert table_of(text) == [["mode", "cells", "passed"], ["inference", "1", "1"]]
    assert text.strip().splitlines()[-1].startswith("└")


def test_a_failure_has_a_line_with_cell_class_reason_and_log(printed):
    ending = {"stage": "compile", "cause": "RuntimeError", "message": "no such kernel"}
    columns = {f"accuracy_{name}": value for name, value in ending.items()}
    text = printed(cell("inference", "fail_to_run", log="logs/x.log", **columns))
    assert "fail_to_run inference/test_vit accuracy  compiler: RuntimeError in the stage compile: no such kernel" in text
    assert text.endswith("  log: logs/x.log\n")


def test_a_cell_that_was_not_run_has_a_line_with_what_is_known(printed):
    text = printed(cell("inference", "not_run", accuracy_cause="no result file"))
    assert text.endswith("not_run inference/test_vit accuracy  environment: no result file\n")


def test_cells_that_are_merely_not_run_yet_share_a_line(printed):
    queued = [{**cell("inference", "not_run", performance="not_run"), "model": f"model_{number}"} for number in range(5)]
    last = printed(*queued, checks=("accuracy", "performance")).splitlines()[-1]
    names = "inference/model_0, inference/model_1, inference/model_2, and 2 more"
    assert last == f"failure not_measured 5 cells: there is no row: {names}"


def test_a_failure_without_any_reason_has_a_line(printed):
    assert printed(cell("inference", "timeout")).endswith("timeout inference/test_vit accuracy\n")


def test_only_the_first_line_of_a_message_is_shown(printed):
    text = printed(cell("inference", "fail_to_run", accuracy_message="first\nsecond\r\nthird"))
    assert "first" in text
    assert "second" not in text


def test_a_message_is_shown_as_it_is(printed):
    message = 'expected [bold]"3"[/bold] not [/] :smile:'
    assert message in printed(cell("inference", "fail_to_run", accuracy_message=message))


@pytest.mark.parametrize("mode", ["null", "NA", "007", "1e3", "True"])
def test_a_mode_that_looks_like_something_else_keeps_its_name(printed, mode):
    text = printed(cell(mode, "timeout"))
    assert table_of(text)[1] == [mode, "1", "0", "1 timeout"]
    assert f"timeout {mode}/test_vit" in text


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_a_failure_stays_on_one_line_at_any_width_so_that_its_path_can_be_copied(printed, width):
    log = f"logs/cpu/inference/{'long_name_' * 8}/accuracy.log"
    text = printed(cell("inference", "timeout", accuracy_message="word " * 20, log=log), width=width)
    (line,) = [line for line in text.splitlines() if line.startswith("timeout")]
    assert line.endswith(f"log: {log}")


def test_a_narrow_terminal_shows_every_count_and_every_letter_of_the_names(printed):
    statuses = ["pass", "fail_accuracy", "eager_two_runs_differ", "timeout"]
    text = printed(*[cell("inference-amp", status) for status in statuses], width=NARROW)
    table = [line for line in text.splitlines() if line.startswith(("┃", "│"))]
    assert all(len(line) <= NARROW for line in table)
    header_lines = [line.strip("┃").split("┃") for line in table if line.startswith("┃")]
    row_lines = [line.strip("│").split("│") for line in table if line.startswith("│")]
    header = ["".join(part.strip() for part in column) for column in zip(*header_lines, strict=True)]
    row = ["".join(part.strip() for part in column) for column in zip(*row_lines, strict=True)]
    assert header == ["mode", "cells", "passed", "not passed"]
    assert "".join(row).replace(" ", "") == "inference-amp411fail_accuracy1eager_two_runs_differ1timeout"


def test_the_status_of_a_failure_is_red(printed):
    text = printed(cell("inference", "timeout"), color=True)
    assert "\x1b[1;31mtimeout\x1b[0m inference/test_vit" in text


def test_an_empty_run_is_shown(printed):
    assert printed() == ""


def test_a_performance_table_has_speedups_with_intervals_verdicts_compile_times_and_memory(printed):
    figures = {"compile_cold_s": 31.24, "compile_warm_s": 1.55, "compression_ratio": 1.3, "graph_breaks": 2}
    passed = {"mode": "inference", "accuracy": "pass", "performance": "pass", **figures}
    cells = [{**passed, "speedup": each} for each in (0.5, 2.0)]
    cells += [{**passed, "speedup": 9.0, "accuracy": "fail_accuracy", "counted": False}]
    cells += [{"mode": "training", "accuracy": "pass", "performance": "timeout", "counted": False}]
    text = printed(*cells, checks=("accuracy", "performance"))
    assert "performance on cpu" in text
    lines = table_of(text)
    inference = [line for line in lines if line[0] == "inference" and "1.00, 2 of 3" in line]
    assert [line[1:3] for line in inference] == [["1.00, 2 of 3", "1.41, 2 of 3"]]
    interval = lines[lines.index(inference[0]) + 1]
    assert interval[-1].startswith("[1.00, 2.00") and interval[-2].startswith("[0.50, 2.00")
    assert ["training", "1", "0", "1 timeout"] in lines
    assert ["training", "0 of 1", "0 of 1", "0/0/0/0"] in lines
    costs = lines[lines.index(["mode", "cold, s", "warm, s", "memory", "graph breaks"]) :]
    assert costs[1:] == [["inference", "31.2", "1.6", "1.30", "4"], ["training"]]


def test_the_tables_of_a_folder_are_shown_by_a_command(printed, tmp_path):
    text = printed(cell("inference", "timeout", log="logs/x.log"))
    environment = {**os.environ, "PYTHONPATH": str(Path(timmgate.__file__).parents[1])}
    command = [sys.executable, "-m", "timmgate.report.terminal", str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert shown.splitlines()[-1] == text.splitlines()[-1]


def test_a_mode_in_which_every_cell_is_wrong_has_no_mean(printed):
    wrong = {"mode": "inference", "accuracy": "fail_accuracy", "performance": "pass", "speedup": 1.283, "counted": False}
    text = printed(wrong, wrong, checks=("accuracy", "performance"))
    assert "1.28" not in text
    assert ["inference", "0 of 2", "0 of 2", "0/0/0/0"] in table_of(text)


def test_warnings_have_a_line_a_kind_with_the_worst_of_it_after_the_failures(printed):
    timed = {"mode": "m", "performance": "pass", "graph_breaks": 0, "weights": "random"}
    cells = [{**timed, "model": f"model_{number}", "compile_cold_s": 100.0 + 30 * number} for number in range(6)]
    cells += [{**timed, "model": "broken", "graph_breaks": 7}, {**timed, "model": "lost", "performance": "OOM"}]
    *_, failure, slow, broken, note = printed(*cells, checks=["performance"]).splitlines()
    assert failure == "OOM m/lost performance"
    assert slow == (
        "warning slow_compile 5 cells: compiles for longer than `max_compile_s`: m/model_5 (compile_cold_s 250), "
        "m/model_4 (compile_cold_s 220), m/model_3 (compile_cold_s 190), and 2 more"
    )
    assert broken.startswith("warning graph_breaks 1 cell: ") and broken.endswith("m/broken (graph_breaks 7)")
    assert note.startswith("note weak_evidence 8 of 8 cells have random weights")


def test_a_table_that_mixes_machines_says_so(printed):
    text = printed(*({**cell("m", "pass"), "device_name": name} for name in ("A", "A", "B")))
    assert text.splitlines()[-1] == "warning mixed_machines device_name is A in 2, B in 1"
