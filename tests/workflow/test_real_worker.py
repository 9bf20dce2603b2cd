"""The real worker through the real workflow: the null compiler and inductor pass, injected bugs do not.

All runs but one share one compile cache, so that a kernel is built once.
"""

import os
import subprocess
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from conftest import ROOT
from timmgate.core.checks import CHECKS
from workflow.conftest import SNAKEMAKE

CELL_MODES = "inference,inference-amp,inference-freezing,training"
EAGER_MODES = "inference-eager,inference-amp-eager,inference-freezing-eager,training-eager"
QUICK = ("batch_size=2", "timing_limit=1")
INJECTED_BUGS = """
mode_catalogue:
  bug-accuracy: {inductor_config: {cpp.inject_relu_bug_TESTING_ONLY: accuracy}}
  bug-compile: {inductor_config: {cpp.inject_relu_bug_TESTING_ONLY: compile_error}}
  bug-run: {inductor_config: {cpp.inject_relu_bug_TESTING_ONLY: runtime_error}}
"""

pytestmark = pytest.mark.compiles


@pytest.fixture(scope="module")
def workflow(tmp_path_factory):
    """Run the workflow in a folder of its own with the given config; returns the merged cells as a list of dicts."""
    cache, toolchain = tmp_path_factory.mktemp("inductor"), tmp_path_factory.mktemp("toolchain")

    def run(*config: str, configfile: Path | None = None, compile_cache: str = "shared") -> list[dict]:
        folder = tmp_path_factory.mktemp("run")
        (folder / ".cache").mkdir()
        (folder / ".cache" / "toolchain").symlink_to(toolchain)
        command = [SNAKEMAKE, "--cores", "2", "--quiet", "all", "--snakefile", ROOT / "Snakefile", "--directory", folder]
        files = ["--configfile", configfile] if configfile else []
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        subprocess.run(
            [*command, *files, "--config", f"compile_cache={compile_cache}", *QUICK, *config], env=environment, check=True
        )
        return pq.read_table(next(folder.glob("results/*/cells.parquet"))).to_pylist()

    return run


def statuses(cells: list[dict]) -> dict[tuple[str, str], tuple[str, str | None]]:
    return {(cell["mode"], cell["model"]): (cell["accuracy"], cell["accuracy_message"]) for cell in cells}


def assert_nothing_differs(cells: list[dict]) -> None:
    assert set(statuses(cells).values()) == {("pass", None)}
    assert {cell["reference"] for cell in cells} == {"fp64"}
    assert {cell["margin"] for cell in cells} == {0.0}


def test_the_null_compiler_passes_in_every_default_mode(workflow):
    assert_nothing_differs(workflow(f"modes={EAGER_MODES}", "models=test_vit", "checks=accuracy"))


@pytest.mark.slow
def test_the_null_compiler_passes_in_every_cell_of_the_default_run(workflow):
    cells = workflow(f"modes={EAGER_MODES}", "batch_size=null", "checks=accuracy")
    assert len(cells) == 24
    assert_nothing_differs(cells)


@pytest.fixture(scope="module")
def inductor_cells(workflow):
    """Both checks of one small model in the default modes."""
    return workflow(f"modes={CELL_MODES}", "models=test_resnet")


def test_inductor_passes_in_every_default_mode(inductor_cells):
    assert len(inductor_cells) == 4
    assert set(statuses(inductor_cells).values()) == {("pass", None)}
    assert {cell["strict"] for cell in inductor_cells} == {"pass"} and {cell["passed_by"] for cell in inductor_cells} == {
        "strict"
    }


def test_inductor_leaves_a_trace_in_the_last_bits(inductor_cells):
    margins = {cell["mode"]: cell["margin"] for cell in inductor_cells}
    assert margins["inference"] > 0, "equal to the last bit: was anything compiled?"
    assert all(0 <= margin < 1 for margin in margins.values())


def test_a_row_says_what_ran(inductor_cells):
    (cell,) = (cell for cell in inductor_cells if cell["mode"] == "inference-amp")
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


def test_both_checks_of_every_cell_pass_and_the_timed_output_is_right(inductor_cells):
    assert {cell["performance"] for cell in inductor_cells} == {"pass"}
    assert {cell["timed_output_ok"] for cell in inductor_cells} == {True}
    assert {cell["graph_breaks"] for cell in inductor_cells} == {0}
    assert {cell["recompiles"] for cell in inductor_cells} == {0}
    assert all(cell["speedup_ci_low"] <= cell["speedup"] <= cell["speedup_ci_high"] for cell in inductor_cells)


def test_no_two_cells_are_timed_at_once(inductor_cells):
    windows = sorted((cell["timing_started_at"], cell["timing_ended_at"]) for cell in inductor_cells)
    assert all(end <= start for (_, end), (start, _) in pairwise(windows))


def test_a_cold_compile_time_is_not_claimed_of_a_shared_cache(inductor_cells):
    assert {cell["compile_cold_s"] for cell in inductor_cells} == {None}
    assert all(cell["compile_warm_s"] > 0 for cell in inductor_cells)


def test_a_cell_with_a_cache_of_its_own_compiles_once_for_both_checks_and_knows_what_cold_and_warm_cost(workflow):
    (cell,) = workflow("modes=inference", "models=test_vit", compile_cache="cell")
    assert (cell["accuracy"], cell["performance"]) == ("pass", "pass")
    assert cell["compile_cold_s"] > 2 * cell["compile_warm_s"] > 0
    assert cell["compile_cold_cpu_s"] > 2 * cell["compile_warm_cpu_s"] > 0
    assert cell["compile_cold_s"] < cell["accuracy_compile_s"] + cell["accuracy_run_s"], "it was the accuracy check's"
    assert cell["performance_compile_s"] < cell["compile_cold_s"]
    assert cell["codegen_s"] < cell["inductor_s"] < cell["aot_autograd_s"] < cell["dynamo_s"] < cell["compile_cold_s"]


def test_the_same_weights_run_in_every_mode(inductor_cells):
    assert len({cell["weights_hash"] for cell in inductor_cells}) == 1


def test_training_compares_loss_gradients_parameters_buffers_and_the_input_gradient(inductor_cells):
    (cell,) = (cell for cell in inductor_cells if cell["mode"] == "training")
    assert cell["leaves"] > 20
    assert cell["tolerance"] == 1e-2


def test_compilers_other_than_inductor_pass(workflow):
    backends = ["inference-aot-eager", "training-aot-eager", "inference-export", "inference-aot-inductor"]
    cells = workflow(f"modes={','.join(backends)}", "models=test_resnet")
    assert {cell["mode"]: (cell["accuracy"], cell["performance"]) for cell in cells} == dict.fromkeys(
        backends, ("pass", "pass")
    )


@pytest.mark.slow
def test_every_mode_of_the_catalogue_that_needs_no_accelerator_passes(workflow):
    catalogue = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["mode_catalogue"]
    modes = [mode for mode in catalogue if "cudagraphs" not in mode]
    cells = workflow(f"modes={','.join(modes)}", "models=test_resnet")
    assert statuses(cells) == {(mode, "test_resnet"): ("pass", None) for mode in modes}


MISTAKES = {
    "a mode for another device": (["modes=inference-cudagraphs", "models=test_vit"], "CUDA graphs"),
    "no such compiler": (
        ["mode_catalogue={mine: {backend: inductr}}", "modes=mine", "models=test_vit"],
        "did you mean inductor",
    ),
    "no such setting": (["inductor_config={max_autotunee: true}", "models=test_vit"], "did you mean max_autotune"),
    "no such model": (["suite=mine.tsv"], "has no model 'test_vitt'; did you mean test_vit"),
}


@pytest.mark.parametrize(("config", "sentence"), MISTAKES.values(), ids=MISTAKES)
def test_what_is_not_possible_here_is_said_before_any_cell(config, sentence, tmp_path):
    (tmp_path / "mine.tsv").write_text("model\ntest_resnet\ntest_vitt\n")
    command = [SNAKEMAKE, "--cores", "2", "--snakefile", ROOT / "Snakefile", "--directory", tmp_path, "--config", *config]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert sentence in done.stderr.rstrip().splitlines()[-1]
    assert not any(tmp_path.glob("results/cpu/default/**/*"))


def test_bugs_injected_into_inductor_are_caught(workflow, tmp_path):
    configfile = tmp_path / "bugs.yaml"
    configfile.write_text(INJECTED_BUGS)
    modes = "modes=bug-accuracy,bug-compile,bug-run"
    cells = workflow(modes, "models=test_resnet", "threads=2", "checks=accuracy", configfile=configfile)
    assert {cell["mode"]: (cell["accuracy"], cell["accuracy_stage"]) for cell in cells} == {
        "bug-accuracy": ("fail_accuracy", "null_runs"),
        "bug-compile": ("fail_to_run", "compile"),
        "bug-run": ("fail_to_run", "run"),
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
def test_every_way_that_a_compiler_can_end_has_its_status_in_both_checks(workflow, tmp_path):
    configfile = tmp_path / "faults.yaml"
    modes = {name: {"backend": f"fault:{name}"} for name in PROCESS_FAULTS}
    modes["backward"] = {"backend": "fault:raise-backward", "training": True}
    modes["other-batch"] = {"backend": "fault:wrong-other-batch-1.1", "dynamic": True}
    configfile.write_text(yaml.safe_dump({"mode_catalogue": modes, "modes": list(modes)}))
    cells = {
        cell["mode"]: cell
        for cell in workflow(
            "models=test_vit", "batch_size=null", "timeout=60", "attempts=1", "memory=3", configfile=configfile
        )
    }
    assert {
        name: (cells[name]["performance"], cells[name]["performance_stage"]) for name in PROCESS_FAULTS
    } == PROCESS_FAULTS
    assert {name: cells[name]["accuracy_by_rule"] for name in PROCESS_FAULTS} == {
        name: status for name, (status, _) in PROCESS_FAULTS.items()
    }
    assert cells["backward"]["accuracy"] == cells["backward"]["performance"] == "fail_to_run"
    assert cells["recompile"]["recompiles"] > 0
    assert cells["other-batch"]["accuracy_by_rule"] == "pass", "one batch size, which is right"
    assert cells["other-batch"]["performance"] == "fail_accuracy" and not cells["other-batch"]["counted"]
