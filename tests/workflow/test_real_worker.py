"""The real worker through the real workflow: the null compiler passes everywhere, inductor passes, injected bugs do not.

All runs share one compile cache, so that a kernel is built once.
"""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

ROOT = Path(__file__).parents[2]
CELL_MODES = "inference,inference-amp,inference-freezing,training"
EAGER_MODES = "inference-eager,inference-amp-eager,inference-freezing-eager,training-eager"
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
    cache = tmp_path_factory.mktemp("inductor")

    def run(*config: str, configfile: Path | None = None, compile_cache: str = "shared") -> list[dict]:
        folder = tmp_path_factory.mktemp("run")
        if compile_cache == "shared":  # which has what the compiler builds once per machine
            (folder / ".cache" / "inductor" / "toolchain" / "cpu").mkdir(parents=True)
        snakemake = Path(sys.executable).with_name("snakemake")
        command = [snakemake, "--cores", "2", "--quiet", "all", "--snakefile", ROOT / "Snakefile", "--directory", folder]
        files = ["--configfile", configfile] if configfile else []
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(cache)}
        subprocess.run(
            [*command, *files, "--config", f"compile_cache={compile_cache}", *config], env=environment, check=True
        )
        return pq.read_table(next(folder.glob("results/*/cells.parquet"))).to_pylist()

    return run


def statuses(cells: list[dict]) -> dict[tuple[str, str], tuple[str, str | None]]:
    return {(cell["mode"], cell["model"]): (cell["accuracy"], cell["accuracy_message"]) for cell in cells}


def test_the_null_compiler_passes_in_every_cell_of_the_default_run(workflow):
    cells = workflow(f"modes={EAGER_MODES}", "checks=accuracy")
    assert len(cells) == 24
    assert set(statuses(cells).values()) == {("pass", None)}
    assert {cell["reference"] for cell in cells} == {"fp64"}
    assert {cell["margin"] for cell in cells} == {0.0}


@pytest.fixture(scope="module")
def inductor_cells(workflow):
    return workflow(f"modes={CELL_MODES}", "models=test_vit,test_resnet", "batch_size=2")


def test_inductor_passes_in_every_default_mode(inductor_cells):
    assert len(inductor_cells) == 8
    assert set(statuses(inductor_cells).values()) == {("pass", None)}


def test_inductor_leaves_a_trace_in_the_last_bits(inductor_cells):
    margins = {(cell["mode"], cell["model"]): cell["margin"] for cell in inductor_cells}
    assert margins["inference", "test_resnet"] > 0, "equal to the last bit: was anything compiled?"
    assert all(0 <= margin < 1 for margin in margins.values())


def test_a_row_says_what_ran(inductor_cells):
    cell = next(cell for cell in inductor_cells if (cell["mode"], cell["model"]) == ("inference-amp", "test_vit"))
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
    stages = sum(
        cell[f"accuracy_{stage}_s"] for stage in ("import", "load", "reference", "eager", "compile", "run", "compare")
    )
    assert stages == pytest.approx(cell["accuracy_worker_s"], rel=0.2)
    assert cell["accuracy_wall_s"] >= cell["accuracy_worker_s"]


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
    (cell,) = workflow("modes=inference", "models=test_vit", "batch_size=2", compile_cache="cell")
    assert (cell["accuracy"], cell["performance"]) == ("pass", "pass")
    assert cell["compile_cold_s"] > 2 * cell["compile_warm_s"] > 0
    assert cell["compile_cold_cpu_s"] > 2 * cell["compile_warm_cpu_s"] > 0
    assert cell["compile_cold_s"] < cell["accuracy_compile_s"] + cell["accuracy_run_s"], "it was the accuracy check's"
    assert cell["performance_compile_s"] < cell["compile_cold_s"]
    assert cell["codegen_s"] < cell["inductor_s"] < cell["aot_autograd_s"] < cell["dynamo_s"] < cell["compile_cold_s"]


def test_the_same_weights_run_in_every_mode(inductor_cells):
    assert len({(cell["model"], cell["weights_hash"]) for cell in inductor_cells}) == 2


def test_training_compares_loss_gradients_parameters_buffers_and_the_input_gradient(inductor_cells, tmp_path):
    cell = next(cell for cell in inductor_cells if (cell["mode"], cell["model"]) == ("training", "test_resnet"))
    assert cell["leaves"] > 20
    assert cell["tolerance"] == 1e-2


NEEDS_CUDA = ("fail_to_run", "CUDA graphs need device cuda, this is cpu")


def test_compilers_other_than_inductor_and_what_the_device_lacks(workflow):
    backends = "inference-aot-eager,training-aot-eager,inference-export,inference-aot-inductor"
    cells = workflow(f"modes={backends},inference-cudagraphs,training-cudagraphs", "models=test_resnet", "batch_size=2")
    assert all((cell["performance"] == "pass") is ("cudagraphs" not in cell["mode"]) for cell in cells)
    by_mode = {mode: status for (mode, _), status in statuses(cells).items()}
    assert by_mode.pop("inference-cudagraphs") == by_mode.pop("training-cudagraphs") == NEEDS_CUDA
    assert by_mode == dict.fromkeys(backends.split(","), ("pass", None))


@pytest.mark.slow
def test_every_mode_of_the_catalogue_passes_or_says_that_it_needs_cuda(workflow):
    catalogue = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())["mode_catalogue"]
    cells = workflow(f"modes={','.join(catalogue)}", "models=test_resnet", "batch_size=2")
    by_mode = {mode: status for (mode, _), status in statuses(cells).items()}
    assert by_mode == {mode: NEEDS_CUDA if "cudagraphs" in mode else ("pass", None) for mode in catalogue}


def test_bugs_injected_into_inductor_are_caught(workflow, tmp_path):
    configfile = tmp_path / "bugs.yaml"
    configfile.write_text(INJECTED_BUGS)
    modes = "modes=bug-accuracy,bug-compile,bug-run"
    cells = workflow(modes, "models=test_resnet", "batch_size=2", "threads=2", "checks=accuracy", configfile=configfile)
    assert {cell["mode"]: (cell["accuracy"], cell["accuracy_stage"]) for cell in cells} == {
        "bug-accuracy": ("fail_accuracy", "compare"),
        "bug-compile": ("fail_to_run", "compile"),
        "bug-run": ("fail_to_run", "run"),
    }
