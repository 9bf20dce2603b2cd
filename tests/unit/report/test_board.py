"""How a run is shown: as lines, and as a picture that fits the terminal."""

import io
import re

import pytest
from rich.console import Console

from timmgate.report import board
from timmgate.report.progress import Finished, Plan, Progress
from timmgate.supervisor import stages

CHECKS = ("accuracy", "performance")
LOG = board.Plan.logs / "cpu" / "default" / "inference" / "test_vit.log"
WIDTH = 80


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")


def plan(*cells, to_measure=None):
    cells = cells or (("cpu", "default", "inference", "test_vit"),)
    return Plan("cpu", CHECKS, cells, set(cells if to_measure is None else to_measure), {}, "strict")


def end(status, **known):
    return {"status": status, "stage": None, "cause": None, "message": None, "reason": None, **known}


def ended(**ends):
    return Finished("inference/test_vit", ends, 34.2, LOG)


def shown(progress, width=WIDTH, height=16, now_s=100.0):
    console = Console(file=io.StringIO(), width=width, height=50, force_terminal=False)
    console.print(board.picture(progress, now_s, width, height))
    empty, *lines = console.file.getvalue().splitlines()
    assert empty == ""
    return lines


def start(progress, number, cell, since_s=0.0, **told):
    names = dict(zip(("device", "build", "mode", "model"), cell, strict=True))
    progress.started(number, "measure", names, since_s)
    if told:
        stages.StageFile(stages.path_of(cell)).tell(**told)
    progress.look()


def test_a_pipe_gets_lines_and_a_terminal_a_picture_unless_it_is_dumb(monkeypatch):
    assert isinstance(board.board(plan(), io.StringIO(), no_color=False), board.Lines)
    assert isinstance(board.board(plan(), Terminal(), no_color=False), board.Picture)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert isinstance(board.board(plan(), io.StringIO(), no_color=False), board.Lines)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(board.board(plan(), Terminal(), no_color=False), board.Lines)


def test_a_cell_is_one_line_with_how_its_checks_ended_and_how_long_it_took():
    assert board.line(ended(accuracy=end("pass"), performance=end("pass"))) == (
        "inference/test_vit  accuracy pass, performance pass  34 s"
    )


def test_the_line_of_a_cell_that_failed_says_why_and_where_the_log_is():
    wrong = end("fail_accuracy", stage="compare", cause="comparison", reason="1 of 2 tensors differ")
    assert board.line(ended(accuracy=wrong, performance=end("pass"))) == (
        f"inference/test_vit  accuracy fail_accuracy 1 of 2 tensors differ, performance pass  34 s  log: {LOG}"
    )


def test_a_failure_is_shown_as_it_is():
    reason = 'expected [bold]"3"[/bold] not [/] :smile: <script>'
    text = board.failure(ended(), "accuracy", end("fail_to_run", stage="compile", reason=reason))
    assert text.plain == f"fail_to_run inference/test_vit accuracy  {reason}  log: {LOG}"


def test_lines_are_printed_whole_and_without_colour_into_a_pipe():
    stream = io.StringIO()
    lines = board.board(plan(), stream, no_color=False)
    lines.show_finished(ended(accuracy=end("fail_to_run", reason="word " * 60)))
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("0 of 1 inference/test_vit  accuracy fail_to_run word word")
    assert line.endswith(f"log: {LOG}")


def test_a_cell_without_a_row_is_a_line_too():
    stream = io.StringIO()
    lines = board.board(plan(), stream, no_color=False)
    lines.started(1, "measure", dict(zip(("device", "build", "mode", "model"), plan().cells[0], strict=True)), 0.0)
    lines.lost(1)
    lines.started(2, "merge", {"device": "cpu"}, 0.0)
    lines.lost(2)
    assert stream.getvalue() == f"lost inference/test_vit  ended without a row  log: {LOG}\n"


def test_there_is_a_line_for_the_whole_run_a_minute():
    stream = io.StringIO()
    lines = board.board(plan(), stream, no_color=False)
    lines._shown_s = lines._progress.began_s = 0.0
    for now_s in range(0, 200, 20):
        lines.show(float(now_s))
    printed = stream.getvalue().splitlines()
    assert len(printed) == 3
    unknown = "time left: unknown until a cell is done"
    assert printed[0].endswith(f"0 done, 0 failed, 0 running, 1 queued of 1 cells, 1 min; {unknown}")


def test_a_picture_counts_cells_by_mode_and_names_what_runs():
    cells = [("cpu", "default", mode, model) for mode in ("inference", "training") for model in ("test_vit", "test_nfnet")]
    progress = Progress(plan(*cells, to_measure=cells[1:]), 0.0)
    start(progress, 1, cells[1], check="performance", stage="timing")
    start(progress, 2, cells[2], check="performance", stage="queue")
    start(progress, 3, cells[3], check="accuracy", stage="compile", is_paused=True)
    headline, header, *rows = shown(progress)[:5]
    assert headline == "cpu: 1 of 4 cells, 2 min; time left: unknown until a cell is done"
    assert header.split() == ["mode", "done", "failed", "running", "queued"]
    assert [row.split() for row in rows] == [["inference", "1", "1"], ["training", "2"], ["all", "1", "3"]]
    running, *jobs = shown(progress)[5:]
    assert running == "running: 3, of them 1 being timed, 1 waiting to be timed, 1 paused meanwhile"
    assert [re.sub(r" \d+ s$", "", job.strip()) for job in jobs] == [
        "inference/test_nfnet  performance is timed",
        "training/test_vit  performance waits to be timed",
        "training/test_nfnet  accuracy compile, paused",
    ]


def test_several_builds_have_a_column():
    cells = [("cpu", build, "inference", "test_vit") for build in ("release", "nightly")]
    header, *rows = shown(Progress(plan(*cells), 0.0))[1:5]
    assert header.split()[:2] == ["build", "mode"]
    assert [row.split() for row in rows] == [
        ["release", "inference", "1"],
        ["nightly", "inference", "1"],
        ["all", "2"],
    ]


@pytest.mark.parametrize(("width", "height"), [(80, 16), (60, 12), (120, 40)])
def test_a_picture_fits_the_terminal_whatever_there_is_to_show(width, height):
    models = [f"{'a_long_name_of_a_model_' * 3}{number}.of_some_tag" for number in range(40)]
    modes = [f"inference-with-a-long-name-{number}" for number in range(30)]
    cells = [("cpu", "default", mode, model) for mode in modes for model in models]
    progress = Progress(plan(*cells), 0.0)
    for number, cell in enumerate(cells[:40]):
        start(progress, number, cell, check="performance", stage="queue")
    lines = shown(progress, width, height)
    assert len(lines) < height
    assert max(map(len, lines)) <= width
    assert any("23 more" in line or "more" in line for line in lines)
    assert all(line.endswith(" s") for line in lines if "waits to be timed" in line), "the stage is not cut off"


@pytest.fixture
def drawn():
    """Shows a plan in a terminal for a moment; what was written to it."""

    def draw(no_color=False):
        terminal = Terminal()
        picture = board.board(plan(), terminal, no_color)
        picture.start()
        names = dict(zip(("device", "build", "mode", "model"), plan().cells[0], strict=True))
        picture.started(1, "measure", names, 0.0)
        picture.show_finished(ended(accuracy=end("fail_to_run", reason="why")))
        picture.stop()
        return terminal.getvalue()

    return draw


def test_the_terminal_is_left_as_it_was_with_only_the_failures_on_it(drawn):
    written = drawn()
    assert written.count("\x1b[?25l") == written.count("\x1b[?25h"), "the cursor is there again"
    assert "why" in written
    assert written.rindex("\x1b[2K") > written.rindex("running:"), "the picture is erased"


@pytest.mark.parametrize("by_option", [True, False])
def test_no_colour_is_used_where_none_is_wanted(drawn, monkeypatch, by_option):
    colour = re.compile(r"\x1b\[[0-9;]*3[0-9]m")
    assert colour.search(drawn())
    if not by_option:
        monkeypatch.setenv("NO_COLOR", "1")
    assert not colour.search(drawn(no_color=by_option))


def test_an_error_while_it_is_shown_ends_the_picture_and_nothing_else(monkeypatch):
    terminal = Terminal()
    picture = board.board(plan(), terminal, no_color=False)
    monkeypatch.setattr(board, "picture", lambda *_: 1 / 0)
    picture.start()
    picture.stop()
    assert "ZeroDivisionError" in terminal.getvalue()
    assert terminal.getvalue().count("\x1b[?25l") == terminal.getvalue().count("\x1b[?25h")


def test_jobs_that_are_no_cells_are_counted_while_some_of_them_run():
    progress = Progress(plan(to_measure=()), 0.0)
    for number in range(3):
        progress.started(number, "pair", {"model": f"model_{number}"}, 0.0)
    progress.finished(0, 1.0)
    progress.lost(1)
    for said in (board.summary(progress, 60.0), board.headline(progress, 60.0)):
        assert said.endswith("; pair: 1 done, 1 failed, 1 running")
    progress.finished(2, 2.0)
    assert "pair" not in board.summary(progress, 60.0)
