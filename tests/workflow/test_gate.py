"""`snakemake gate`, `make gate`, `update_expected` and `export`: what they do, what they leave, and their exit codes."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from timmgate.tables.gate import outcome
from timmgate.tables.gate.outcome import ExitCode

ROOT = Path(__file__).parents[2]
CONFIG = {"models": "test_vit,test_resnet", "modes": "inference,training", "checks": "accuracy,performance"}
CELLS = ["inference/test_resnet", "inference/test_vit", "training/test_resnet", "training/test_vit"]
CHECKS = ("accuracy", "performance")
ALL_PASS = {f"{cell} {check}": "pass" for cell in CELLS for check in CHECKS}
WRONG, CRASHED = "inference/test_vit accuracy", "training/test_resnet performance"
EXPECTED = {
    "expected/cpu/inference.csv": ["name,accuracy", "test_resnet,pass", "test_vit,fail_accuracy"],
    "expected/cpu/training.csv": ["name,accuracy,performance", "test_resnet,pass,fail_to_run", "test_vit,pass,"],
}
EXPORTED = "results/cpu/export/inductor_timm_models_float32_inference_cpu_accuracy.csv"


def classes(project):
    """Class of every check of a cell, as "mode/model check", in gate.tsv."""
    with (project.folder / "results/cpu/gate.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return {f"{row['mode']}/{row['model']} {row['check_name']}": row["class"] for row in rows}


def ended(project):
    """ExitCode and reasons of the last run that began."""
    return outcome.read(project.folder / "results" / "cpu" / "outcome.json")


@pytest.fixture(scope="module")
def judged(new_project, tmp_path_factory):
    """A project in which nothing but a gate has run, and what that printed. Two of eight checks fail. Change nothing."""
    project = new_project(tmp_path_factory.mktemp("judged"), config=CONFIG)
    project.worker.behaviours.update(
        {"inference/test_vit": "fail_accuracy", "training/test_resnet": "raise@performance.compare"}
    )
    return project, project.run("gate", code=1)


@pytest.fixture(scope="module")
def recorded(judged, copy_of, tmp_path_factory):
    """A copy of it with the expectations and the export of what it found. Change nothing."""
    project = copy_of(judged[0], tmp_path_factory.mktemp("recorded"))
    project.run("update_expected", "export")
    return project


def test_expectations_stay_where_one_of_them_cannot_be_renewed(recorded, copy_of, tmp_path):
    project = copy_of(recorded, tmp_path)
    expected = tmp_path / "expected" / "cpu"
    (expected / "inference.csv").unlink()
    (expected / "inference.csv").mkdir()
    before = (expected / "training.csv").read_text()
    assert "update_expected" in project.run("update_expected", code=1)
    assert (expected / "training.csv").read_text() == before


def test_what_was_measured_with_other_options_is_missing_where_snakemake_has_no_record_of_it(recorded, copy_of, tmp_path):
    """As of results that were copied: Snakemake does not measure them anew, whatever has changed since."""
    project = copy_of(recorded, tmp_path)
    for record in (project.folder / ".snakemake" / "metadata").iterdir():
        record.unlink()
    project.run("gate", baseline="expected")
    printed = project.run("gate", code=1, baseline="expected", batch_size=4)
    assert set(classes(project).values()) == {"missing"}
    assert "results that are of other software or options than today's, and count as missing: 8;" in printed
    cells = pq.read_table(project.folder / "results/cpu/cells.parquet")
    place = cells.schema.get_field_index("compiled_ms")
    faster = cells.set_column(place, cells.schema.field(place), pc.divide(cells["compiled_ms"], 2.0))
    (project.folder / "faster/cpu").mkdir(parents=True)
    pq.write_table(faster, project.folder / "faster/cpu/cells.parquet")
    project.run("gate", code=1, baseline="faster", batch_size=4)
    assert json.loads((project.folder / "results/cpu/confirm/suspects.json").read_text()) == {}, "they tell nothing of today"


def test_what_only_exports_leaves_the_outcome_of_the_gate(recorded, copy_of, tmp_path):
    project = copy_of(recorded, tmp_path)
    project.run("gate", baseline="expected")
    shutil.rmtree(project.folder / "results/cpu/export")
    project.run("export", baseline="expected")
    assert ended(project)[0] == ExitCode.AS_EXPECTED


def test_a_gate_runs_what_is_missing(judged):
    project, _ = judged
    assert set(project.worker.cells()) == set(CELLS)


def test_a_surprise_of_either_check_is_in_the_terminal_and_in_the_table_that_a_failed_gate_leaves(judged):
    project, printed = judged
    assert f"new_failure {WRONG} expected pass, got fail_accuracy; output.1 is wrong: 1 of 2 tensors differ" in printed
    assert f"new_failure {CRASHED} expected pass, got fail_to_run; RuntimeError" in printed
    assert "The gate failed: 2 new_failure. See results/cpu/gate.tsv" in printed
    assert "Traceback" not in printed
    assert classes(project) == {**ALL_PASS, WRONG: "new_failure", CRASHED: "new_failure"}
    assert ended(project) == (
        ExitCode.REGRESSION,
        ["The gate failed: 2 new_failure.", f"new_failure {WRONG}", f"new_failure {CRASHED}"],
    )


def test_what_was_found_is_written_as_expectations(recorded):
    files = recorded.folder.glob("expected/**/*.csv")
    assert {str(file.relative_to(recorded.folder)): file.read_text().split() for file in files} == EXPECTED


def test_a_later_difference_from_what_was_found_fails_and_what_is_expected_stays(recorded, copy_of, tmp_path):
    project = copy_of(recorded, tmp_path)
    project.worker.behaviours["inference/test_vit"] = "raise@run"
    for cell in ("inference/test_vit", "training/test_vit"):
        (project.folder / "results" / "cpu" / "default" / cell / "accuracy.parquet").unlink()
    assert "The gate failed: 1 changed_failure." in project.run("gate", baseline="expected", code=1)
    assert set(project.worker.cells()) == {"inference/test_vit", "training/test_vit"}, "what was deleted is measured first"
    assert classes(project) == {**ALL_PASS, WRONG: "changed_failure", CRASHED: "expected_failure"}
    assert {name: (project.folder / name).read_text().split() for name in EXPECTED} == EXPECTED


def test_with_an_exported_file_as_baseline_everything_is_as_expected(recorded, copy_of, tmp_path):
    project = copy_of(recorded, tmp_path)
    printed = project.run("gate", modes="inference", baseline=EXPORTED)
    assert "The gate passed: everything is as expected." in printed
    assert classes(project) == {
        **{f"{cell} {check}": "pass" for cell in CELLS[:2] for check in CHECKS},
        WRONG: "expected_failure",
    }
    assert ended(project) == (ExitCode.AS_EXPECTED, ["The gate passed: everything is as expected."])
    assert project.worker.starts() == []
    summary = (project.folder / "results/cpu/summary.tsv").read_text()
    assert "training" not in summary, "all tables speak of the last request"


def test_with_the_tables_of_an_earlier_run_as_baseline_a_new_difference_fails_and_no_other(judged, copy_of, tmp_path):
    project = copy_of(judged[0], tmp_path)
    shutil.copytree(tmp_path / "results", tmp_path / "old")
    project.worker.behaviours["training/test_vit"] = "raise@run"
    project.file("training/test_vit").unlink()
    printed = project.run("gate", baseline="old", code=1)
    assert "new_failure training/test_vit accuracy expected pass, got fail_to_run" in printed
    assert "The gate failed: 1 new_failure." in printed
    xml = (project.folder / "results/cpu/gate.xml").read_text()
    assert xml.count("<failure") == 1
    (tmp_path / "flaky.tsv").write_text("mode\tmodel\tissue\tuntil\ntraining\ttest_v*\t#7\t2999-01-01\n")
    printed = project.run("gate", baseline="old", quarantine="flaky.tsv")
    assert "flaky: new_failure, in quarantine for #7 until 2999-01-01" in printed


def test_what_github_shows_is_printed_where_it_runs(judged, copy_of, tmp_path):
    project = copy_of(judged[0], tmp_path)
    assert "::error" not in judged[1]
    project.environment["GITHUB_ACTIONS"] = "true"
    printed = project.run("gate", code=1)
    assert f"::error file=config/expected,title=new_failure {WRONG}::new_failure {WRONG} expected pass" in printed


def test_a_model_that_is_expected_and_gone_is_missing_and_one_that_was_left_out_is_not(judged, copy_of, tmp_path):
    project = copy_of(judged[0], tmp_path)
    (tmp_path / "mine.csv").write_text("name,accuracy\ntest_vit,fail_accuracy\n\n\ntest_resnet,pass\ntest_gone,pass\n")
    chosen = {"models": "test_*", "exclude": "test_*net,test_conv*", "modes": "inference", "checks": "accuracy"}
    printed = project.run("gate", code=1, baseline="mine.csv", **chosen)
    assert "missing inference/test_gone accuracy expected pass, got no result" in printed
    assert classes(project) == {WRONG: "expected_failure", "inference/test_gone accuracy": "missing"}


MISTAKES = {
    "in a file": ({"baseline": "mine.csv"}, "mine.csv, line 3: the model 'test_vit' is listed twice"),
    "in a folder": ({"baseline": "old"}, "baseline: 'old' has results of the device cuda, and this run is on cpu"),
    "in the quarantine": ({"quarantine": "gone.tsv"}, "there is no file 'gone.tsv'"),
}


@pytest.mark.parametrize(("config", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_what_it_is_held_against_is_named_before_anything_is_measured(config, sentence, project):
    (project.folder / "mine.csv").write_text("name,accuracy\ntest_vit,pass\ntest_vit,pass\n")
    (project.folder / "old" / "cuda").mkdir(parents=True)
    (project.folder / "old" / "cuda" / "cells.parquet").touch()
    assert sentence in project.run("gate", code=1, **config)
    assert project.worker.entries() == []


# Through the shell.


@pytest.fixture
def make_gate(recorded, copy_of, tmp_path):
    """Runs `make gate` in a copy of `recorded`, and returns its exit code; with that project."""
    project, programs = copy_of(recorded, tmp_path / "work"), tmp_path / "bin"
    programs.mkdir()
    for name in ("python", "snakemake"):
        program = Path(sys.executable).with_name(name)
        (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(str(program))} "$@"\n')
        (programs / name).chmod(0o755)

    def make(environment=None, **config):
        options = project.command(**config)[1:]
        variables = {**os.environ, **project.worker.environment}
        command = ["make", "-C", ROOT, "gate", f"BIN={programs}", f"ARGS={shlex.join(map(str, options))}"]
        process = subprocess.run(command, env={**variables, **(environment or {})}, capture_output=True, text=True)
        print(process.stdout, process.stderr)
        return process.returncode

    return project, make


def test_make_gate_ends_with_0_1_or_2_and_the_next_run_is_not_locked_after_any_of_them(make_gate):
    project, make = make_gate
    found = project.folder / "results" / "cpu"
    assert make(modes="inferenc") == 2, "refused while parsing"
    assert make({"FAKE_PREFLIGHT": "there is no such device"}, modes="inference-amp") == 2, "refused by the preflight"
    assert ended(project) == (ExitCode.WRONG_REQUEST, ["there is no such device"])
    found.rename(project.folder / "aside")
    found.write_text("in the way")
    assert make(modes="inference") == 2, "refused when it started, for it cannot write"
    found.unlink()
    (project.folder / "aside").rename(found)
    assert make() == 1
    assert ended(project)[0] == ExitCode.REGRESSION
    assert make(baseline="expected") == 0
    assert ended(project)[0] == ExitCode.AS_EXPECTED
    assert not list((project.folder / ".snakemake").glob("locks/*"))


def test_what_is_slower_than_a_baseline_is_timed_again_and_fails_only_where_it_still_is(new_project, tmp_path):
    config = {**CONFIG, "modes": "inference", "models": "test_vit", "checks": "performance"}
    exact = {"FAKE_SCATTER": "0"}
    earlier, later = (new_project(tmp_path / name, config=config, environment={**exact}) for name in ("earlier", "later"))
    earlier.run()
    later.environment["FAKE_COMPILED_S"] = "0.11"
    later.config["baseline"] = str(earlier.folder / "results")
    assert "+10.0% in 2 fresh processes" in later.run("gate", code=1, confirm=2)
    starts = len(later.worker.starts())
    assert "The gate failed: 1 slower" in later.run("gate", code=1, confirm=2)
    assert len(later.worker.starts()) == starts, "nothing is new"
    earlier.environment["FAKE_COMPILED_S"] = "0.102"
    earlier.run("--forcerun", "measure")
    later.environment["FAKE_COMPILED_S"] = "0.1"
    assert "The gate passed: 1 not_confirmed." in later.run("gate", confirm=2), "against the same files with other figures"
    assert len(later.worker.starts()) == starts + 1, "one process has told"


@pytest.mark.parametrize("target", ["run", "report"])
@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ("", ["--cores", "all"]),
        ("--config device=cuda", ["--cores", "all", "--config", "device=cuda"]),
        ("--config modes=inference -c2", ["--config", "modes=inference", "-c2"]),
        ("--cores 2", ["--cores", "2"]),
        ("-j 4", ["-j", "4"]),
    ],
)
def test_make_gives_snakemake_all_cores_unless_it_is_told_how_many(target, arguments, options, tmp_path):
    for name in ("python", "snakemake"):
        (tmp_path / name).touch()
    command = ["make", "--no-print-directory", "-C", ROOT, "-n", target, f"BIN={tmp_path}", f"ARGS={arguments}"]
    *_, line = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [word for word in shlex.split(line)[1:] if word != target] == options


def test_make_says_what_a_gate_would_do_without_doing_it(tmp_path):
    for name in ("python", "snakemake"):
        (tmp_path / name).touch()
    (tmp_path / "python").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "python").chmod(0o755)
    command = ["make", "--no-print-directory", "-C", ROOT, "-n", "gate", f"BIN={tmp_path}"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "timmgate.tables.gate.outcome --cores all" in printed
    assert not (tmp_path / "started").exists()
