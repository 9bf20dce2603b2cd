"""The real worker through the real workflow: the null compiler and inductor pass, injected bugs do not."""

import json
from itertools import pairwise

import pytest
import yaml

from conftest import ROOT
from timmgate.core.checks import CHECKS

INDUCTOR_MODES = ("inference-amp", "training")
"""Two that between them have both precisions and both directions; all modes are compiled in a slow test."""
NULL_MODES = ("inference-eager", "inference-amp-eager", "inference-freezing-eager", "training-eager")
QUICK = {"batch_size": 2, "timing_limit": 1, "checks": "accuracy,performance"}
INJECTED_BUGS = {
    f"bug-{kind}": {"inductor_config": {"cpp.inject_relu_bug_TESTING_ONLY": bug}}
    for kind, bug in (("accuracy", "accuracy"), ("compile", "compile_error"))
}
COMPILATION_S = 3600.0
"""Of all cells of a run on a busy machine, and more."""

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def workflow(new_project, tmp_path_factory):
    """Runs the workflow with the real worker in a folder of its own; returns the merged cells as a list of dicts."""
    toolchain = tmp_path_factory.mktemp("toolchain")

    def run(**config) -> list[dict]:
        folder = tmp_path_factory.mktemp("run")
        worker = {"TIMMGATE_WORKER": ""}
        project = new_project(folder, config={**QUICK, **config}, environment=worker, patience_s=COMPILATION_S)
        (folder / ".cache" / "toolchain").symlink_to(toolchain)
        project.run()
        return project.table()

    return run


def by_mode(cells: list[dict]) -> dict[str, dict]:
    return {cell["mode"]: cell for cell in cells}


@pytest.fixture(scope="module")
def cells(workflow):
    """By mode, both checks of one small model."""
    return by_mode(workflow(modes=",".join(INDUCTOR_MODES), models="test_resnet"))


@pytest.mark.slow
def test_the_null_compiler_passes_in_every_cell_of_the_default_run(workflow):
    cells = workflow(modes=",".join(NULL_MODES), batch_size="null", checks="accuracy")
    assert len(cells) == 24
    assert {(cell["accuracy"], cell["accuracy_message"]) for cell in cells} == {("pass", None)}
    assert {cell["reference"] for cell in cells} == {"fp64"}
    assert {cell["margin"] for cell in cells} == {0.0}


def test_inductor_passes(cells):
    assert {(cell["accuracy"], cell["accuracy_message"]) for cell in cells.values()} == {("pass", None)}
    assert {(cell["strict"], cell["passed_by"]) for cell in cells.values()} == {("pass", "strict")}


def test_inductor_leaves_a_trace_in_the_last_bits(cells):
    assert all(0 < cell["margin"] < 1 for cell in cells.values()), "equal to the last bit: was anything compiled?"


def test_a_row_says_what_ran(cells):
    cell = cells["inference-amp"]
    expected = {
        "backend": "inductor",
        "precision": "amp",
        "amp_dtype": "bfloat16",
        "batch_size": 2,
        "input_size": [3, 160, 160],
        "weights": "random",
        "seed": 1337,
        "tolerance": 1e-3,
        "comparison": "error",
        "leaves": 1,
        "accuracy_attempt": 1,
        "accuracy_threads": 1,
    }
    assert {name: cell[name] for name in expected} == expected
    assert cell["parameters"] > 1e5
    assert 0 <= cell["margin"] < 1
    stages_s = [cell[f"accuracy_{stage.name}_s"] for stage in CHECKS["accuracy"].stages]
    assert all(seconds > 0 for seconds in stages_s)
    assert sum(stages_s) <= cell["accuracy_wall_s"]


def test_both_checks_of_every_cell_pass_and_the_timed_output_is_right(cells):
    assert {mode: (cell["accuracy"], cell["performance"]) for mode, cell in cells.items()} == dict.fromkeys(
        cells, ("pass", "pass")
    )
    assert {cell["timed_output_ok"] for cell in cells.values()} == {True}
    assert all(cell["speedup_ci_low"] <= cell["speedup"] <= cell["speedup_ci_high"] for cell in cells.values())


def test_a_model_that_is_one_graph_is_compiled_as_one_and_once(cells):
    assert {(cell["graph_breaks"], cell["recompiles"]) for cell in cells.values()} == {(0, 0)}


def test_no_two_cells_are_timed_at_once(cells):
    windows = sorted((cell["timing_started_at"], cell["timing_ended_at"]) for cell in cells.values())
    assert all(end <= start for (_, end), (start, _) in pairwise(windows))


def test_a_cell_compiles_once_for_both_checks_and_knows_what_cold_and_warm_cost(cells):
    cell = cells["inference-amp"]
    assert cell["compile_cold_s"] > 2 * cell["compile_warm_s"] > 0
    assert cell["compile_cold_cpu_s"] > 2 * cell["compile_warm_cpu_s"] > 0
    assert cell["compile_cold_s"] < cell["accuracy_compile_s"] + cell["accuracy_run_s"], "it was the accuracy check's"
    assert cell["performance_compile_s"] < cell["compile_cold_s"]
    assert cell["codegen_s"] < cell["inductor_s"] < cell["aot_autograd_s"] < cell["dynamo_s"] < cell["compile_cold_s"]


def test_the_same_weights_run_in_every_mode(cells):
    assert len({cell["weights_hash"] for cell in cells.values()}) == 1


def test_training_compares_every_parameter_with_its_own_tolerance(cells):
    assert cells["training"]["leaves"] > 20
    assert cells["training"]["tolerance"] == 1e-2


@pytest.mark.slow
def test_every_mode_of_the_catalogue_that_needs_no_accelerator_passes(workflow):
    catalogue = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["mode_catalogue"]
    modes = [mode for mode in catalogue if "cudagraphs" not in mode]
    found = by_mode(workflow(modes=",".join(modes), models="test_resnet"))
    assert {mode: (cell["accuracy"], cell["accuracy_message"]) for mode, cell in found.items()} == dict.fromkeys(
        modes, ("pass", None)
    )


IMPOSSIBLE = {
    "modes": "inference-cudagraphs,mine,inference",
    "mode_catalogue": "{mine: {backend: inductr}}",
    "inductor_config": "{max_autotunee: true}",
    "suite": "mine.tsv",
}
REASONS = (
    "no inductor option 'max_autotunee'; did you mean max_autotune",
    "mode 'inference-cudagraphs': CUDA graphs need device cuda",
    "mode 'mine': there is no backend 'inductr'; did you mean inductor",
    "has no model 'test_vitt'; did you mean test_vit",
)


def test_what_is_not_possible_here_is_said_before_any_cell(project):
    (project.folder / "mine.tsv").write_text("model\ntest_resnet\ntest_vitt\n")
    project.environment = {"TIMMGATE_WORKER": ""}
    last_lines = project.run(code=1, **IMPOSSIBLE).rstrip().splitlines()[-len(REASONS) :]
    assert [reason in line for reason, line in zip(REASONS, last_lines, strict=True)] == [True] * len(REASONS)
    assert not any(project.folder.glob("results/cpu/default/**/*"))


def test_bugs_injected_into_inductor_are_caught(workflow):
    bugs = {"mode_catalogue": json.dumps(INJECTED_BUGS), "modes": ",".join(INJECTED_BUGS)}
    cells = workflow(models="test_resnet", checks="accuracy", **bugs)
    assert {cell["mode"]: (cell["accuracy"], cell["accuracy_stage"]) for cell in cells} == {
        "bug-accuracy": ("fail_accuracy", "null_runs"),
        "bug-compile": ("fail_to_run", "compile"),
    }


PROCESS_FAULTS = {
    "raise-compile": ("fail_to_run", "compile"),
    "raise-run": ("fail_to_run", "run"),
    "hang-compile": ("timeout", "compile"),
    "hang-run": ("timeout", "run"),
    "exit": ("infra_error", "run"),
    "kill": ("infra_error", "run"),
    "segfault": ("fail_to_run", "run"),
    "exhaust-memory": ("OOM", "run"),
    "recompile": ("pass", "timing"),
    "wrong-later-1.1": ("fail_accuracy", "timing"),
    "pool-infinity": ("not_applicable", "run"),
}
"""Faults, the last one without a place in a transformer, with status and last stage of the performance check."""


@pytest.mark.slow
def test_every_way_that_a_compiler_can_end_has_its_status_in_both_checks(workflow):
    modes = {name: {"backend": f"fault:{name}"} for name in PROCESS_FAULTS}
    modes["backward"] = {"backend": "fault:raise-backward", "training": True}
    modes["wrong-first"] = {"backend": "fault:wrong-first-1.1@one"}
    modes["stale-result"] = {"backend": "fault:stale-result@last"}
    modes["other-batch"] = {"backend": "fault:wrong-other-batch-1.1", "dynamic": True}
    faulty = {"mode_catalogue": json.dumps(modes), "modes": ",".join(modes)}
    limits = {"timeout": 60, "attempts": 1, "memory": 3}
    cells = by_mode(workflow(models="test_vit", batch_size="null", **limits, **faulty))
    assert {
        name: (cells[name]["performance"], cells[name]["performance_stage"]) for name in PROCESS_FAULTS
    } == PROCESS_FAULTS
    assert {name: cells[name]["accuracy_by_rule"] for name in PROCESS_FAULTS} == {
        name: status for name, (status, _) in PROCESS_FAULTS.items()
    }
    assert cells["backward"]["accuracy"] == cells["backward"]["performance"] == "fail_to_run"
    assert cells["wrong-first"]["accuracy_by_rule"] == cells["stale-result"]["accuracy_by_rule"] == "fail_accuracy"
    assert cells["recompile"]["recompiles"] > 0
    assert cells["other-batch"]["accuracy_by_rule"] == "pass", "one batch size, which is right"
    assert cells["other-batch"]["performance"] == "fail_accuracy" and not cells["other-batch"]["counted"]
