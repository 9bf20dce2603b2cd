"""Scripts that repeat a cell: what becomes of a row, what they say, and that they end as the cell does."""

import os
import re
import subprocess
import sys

import pytest

import fake_worker
import specs
from timmgate.core.build import BuildOptions
from timmgate.core.run_options import RunOptions
from timmgate.core.schemas import CELLS
from timmgate.core.verdict import status_by_rule
from timmgate.diagnosis import script
from timmgate.diagnosis.script import Case
from timmgate.supervisor import study

NOTHING = {column.name: None for column in CELLS}
FACTS = {**fake_worker.FACTS, "inductor_config": {"fallback_random": True}}
BOTH = ("accuracy", "performance")
WRONG = {"accuracy": "fail_accuracy", "strict": "fail", "accuracy_stage": "null_runs", "comparison": "error"}


def case(options=None, checks=BOTH, by="strict", **columns):
    row = {**NOTHING, **columns}
    row["accuracy_by_rule"], row["passed_by"] = status_by_rule(row["accuracy"], row["strict"], by)
    return script.case(specs.cell(options=options), row, checks)


@pytest.mark.parametrize(
    ("columns", "check", "rule", "compiles"),
    [
        (WRONG, "accuracy", "strict", True),
        ({"accuracy": "pass", "strict": "pass", "performance": "pass"}, "accuracy", "strict", True),
        ({"accuracy": "fail_accuracy", "strict": "undecided", "comparison": "error"}, "accuracy", "dynamo", True),
        ({"accuracy": "fail_accuracy", "comparison": "cosine"}, "accuracy", "cosine", True),
        ({"accuracy": "fail_to_run", "accuracy_stage": "run"}, "accuracy", None, True),
        ({"accuracy": "timeout", "accuracy_stage": "eager"}, "accuracy", None, False),
        ({"accuracy": "eager_1st_run_fail", "accuracy_stage": "eager"}, "accuracy", None, False),
        ({"accuracy": "eager_two_runs_differ", "accuracy_stage": "eager"}, "accuracy", "eager", False),
        ({"accuracy": "pass", "performance": "OOM", "performance_stage": "warmup"}, "performance", None, True),
    ],
)
def test_the_check_that_failed_is_repeated_and_judged_by_the_rule_that_decided(columns, check, rule, compiles):
    found = case(**columns)
    assert (found.spec.check, found.rule, found.compiles) == (check, rule, compiles)


@pytest.mark.parametrize(
    ("by", "strict", "comparison", "rule"),
    [
        ("both", "pass", "error", "dynamo"),
        ("both", "fail", "error", "strict"),
        ("dynamo", "pass", "error", "dynamo"),
        ("strict", "fail", "cosine", "strict"),
    ],
)
def test_a_script_has_the_rule_that_failed_the_cell(by, strict, comparison, rule):
    found = case(by=by, accuracy="fail_accuracy", strict=strict, comparison=comparison)
    assert found.rule == rule


def test_a_wrong_timed_output_is_judged_by_the_error_that_it_was_allowed_at_the_batch_size_that_ran():
    timed = {"timed_output_error": 0.5, "timed_output_margin": 10.0, "performance_batch_size": 3}
    found = case(accuracy="pass", performance="fail_accuracy", **timed)
    assert (found.rule, found.limit, found.batch_size) == ("timed", 0.05, 3)
    assert case(accuracy="pass", performance="fail_accuracy", timed_output_batch_size=2, **timed).judged_size == 2
    infinite = {**timed, "timed_output_error": float("inf"), "timed_output_margin": float("inf")}
    assert case(accuracy="pass", performance="fail_accuracy", **infinite).limit == 1.0


OPTIONS = [
    {},
    {"training": True},
    {"training": True, "precision": "amp"},
    {"precision": "bfloat16", "channels_last": True},
    {"freezing": True, "inductor_config": {"max_autotune": True}},
    {"dynamic": True, "compile_mode": "reduce-overhead"},
    {"backend": "aot_inductor", "dynamic": True},
    {"backend": "fault:drop-skip@first", "training": True},
    {"training": True, "optimizer": "sgd"},
]


@pytest.mark.parametrize("rule", [*script.WRONG_IF, None])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("check", BOTH)
def test_a_script_is_python_of_at_most_sixty_lines_that_needs_nothing_of_ours_but_the_fault(options, rule, check):
    facts = {**FACTS, "amp_dtype": "bfloat16" if options.get("precision") == "amp" else None}
    one = Case(specs.spec(check, options=options), 8, rule, 'wrong: "x" \\ y', limit=0.1)
    text = script.text(one, RunOptions(), facts)
    compile(text, "repro.py", "exec")
    assert len([line for line in text.splitlines() if line.strip()]) <= 60
    own = [line for line in text.splitlines() if "timmgate" in line]
    assert bool(own) == options.get("backend", "").startswith("fault:")
    imported = set(re.findall(r"^(?:import|from) ([\w., ]+?)(?: import .*)?$", text, flags=re.MULTILINE))
    assert imported <= {"copy, math, os, sys", "timm, torch", "safetensors.torch", "timmgate.worker.faults"}


@pytest.mark.parametrize("rule", [*script.WRONG_IF, None])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("check", BOTH)
def test_a_script_of_a_model_with_several_outputs_is_python(options, rule, check):
    facts = {**FACTS, "is_tree": True}
    one = Case(specs.spec(check, options=options), 8, rule, "wrong", limit=0.1, timed="output.1")
    text = script.text(one, RunOptions(), facts)
    compile(text, "repro.py", "exec")
    assert ("numbered(" in text) == (rule == "timed")


def test_what_failed_while_it_was_timed_must_not_be_compiled_again():
    texts = [script.text(Case(specs.spec(check), 8, None), RunOptions(), FACTS) for check in BOTH]
    assert ["fail_on_recompile" in text for text in texts] == [False, True]


def test_what_is_exported_under_amp_has_its_autocast_in_it():
    options = {"backend": "aot_inductor", "precision": "amp"}
    text = script.text(Case(specs.spec(options=options), 8, "strict"), RunOptions(), {**FACTS, "amp_dtype": "bfloat16"})
    assert "torch.export.export(InAutocast(broken), (images,))" in text


@pytest.mark.parametrize(("reference", "kind", "timed", "is_exact"), [
    ("fp64", "output.1", "output.1", True), ("extrapolated", "output", "output", False), ("fp64", "kept", "output", True)
])  # fmt: skip
def test_a_timed_output_is_held_against_what_the_cell_was(reference, kind, timed, is_exact):
    columns = {"timed_output_error": 0.5, "timed_output_margin": 10.0, "timed_reference": reference}
    columns |= {"timed_output_margin": float("inf")} if kind == "kept" else {}
    found = case(accuracy="pass", performance="fail_accuracy", timed_output_kind=kind, **columns)
    assert (found.timed, found.is_exact) == (timed, is_exact) and found.limit > 0


def test_a_builds_modules_are_found_where_a_worker_finds_them(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    run = RunOptions(build=BuildOptions(env={"PYTHONPATH": "/src/acme:/src/more"}, import_=["acme"]))
    lines = script.text(Case(specs.spec(), 8, "strict"), run, FACTS).splitlines()
    assert lines.index(f"sys.path += {[str(tmp_path), '/src/acme', '/src/more']}") < lines.index("import acme")


def test_a_builds_variables_come_before_torch_and_its_modules_are_imported():
    run = RunOptions(threads=3, build=BuildOptions(env={"TORCH_LOGS": "+dynamo"}, import_=["acme_torch"]))
    lines = script.text(Case(specs.spec(), 8, "strict"), run, FACTS).splitlines()
    variables = next(number for number, line in enumerate(lines) if line.startswith("os.environ"))
    assert "'TORCH_LOGS': '+dynamo'" in lines[variables] and "'OMP_NUM_THREADS': '3'" in lines[variables]
    assert variables < lines.index("import acme_torch") < lines.index("import timm, torch")


def test_it_says_why_the_cell_failed_and_what_is_wrong():
    text = script.text(Case(specs.spec(), 8, "strict", "output is off by 0.5"), RunOptions(), FACTS)
    assert "output is off by 0.5" in text and "inference/test_vit" in text and "null runs" in text


def test_a_module_that_crashed_is_run_often():
    texts = [script.text(Case(specs.spec(), 8, None), RunOptions(), FACTS, module) for module in (None, "stem")]
    assert ["range(20)" in text for text in texts] == [False, True]


def test_a_module_that_works_in_place_gets_a_copy():
    texts = [
        script.text(Case(specs.spec(), 8, "strict"), RunOptions(), {**FACTS, "in_place": each}) for each in (False, True)
    ]
    assert ["(images.clone())" in text for text in texts] == [False, True]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Writes the script of a case, and runs it in a fresh process: exit code and what it prints.

    What the script needs is prepared in this process, which has torch.
    """
    from timmgate.worker import repro

    def rows(module, spec, run, weights, log, timeout_s, /, **options):
        assert module == repro.__name__
        return repro.study(spec, run, None, **options)

    monkeypatch.setattr(study, "rows", rows)

    def write(case, module=None):
        run = RunOptions(cache=tmp_path / "cache")
        path = script.write(case, run, None, tmp_path / "repro", tmp_path / "log", module)
        environment = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
        done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, env=environment, cwd=tmp_path)
        return done.returncode, done.stdout, done.stderr

    return write


def real(options, rule="strict", check="accuracy", **known):
    spec = specs.spec(check, options=options, model="test_resnet", mode="mine", weights="random")
    return Case(spec, 2, rule, **known)


BUFFER = {"timed": "buffer", "limit": 0.1}


@pytest.mark.compiles
@pytest.mark.parametrize(
    ("case", "module", "code", "worst"),
    [
        (real({"backend": "fault:drop-bias"}), None, 1, "output"),
        (real({"backend": "aot_eager", "precision": "amp", "training": True, "channels_last": True}), None, 0, ""),
        (real({"backend": "fault:wrong-later-1.1", "training": True}), None, 1, "buffer"),
        (real({"backend": "fault:stale-weight", "training": True}), None, 1, ""),
        (real({"backend": "fault:drop-skip", "training": True, "precision": "amp"}), "layer2", 1, ""),
        (real({"backend": "aot_eager", "precision": "bfloat16"}, "timed", "performance", limit=1e-9), None, 1, "output"),
        (real({"backend": "fault:update-twice", "training": True}, "timed", "performance", **BUFFER), None, 1, "buffer"),
    ],
    ids=["wrong", "amp", "training", "stale", "module", "timed", "buffer"],
)
def test_a_script_ends_as_its_cell_does_and_names_the_worst_tensor(written, case, module, code, worst):
    returncode, printed, errors = written(case, module)
    assert returncode == code, printed + errors
    assert re.search(rf"^{worst}\S* is off from float64 by \S+ of its size", printed), printed + errors


@pytest.mark.compiles
def test_a_crash_crashes(written):
    assert written(real({"backend": "fault:segfault"}, rule=None))[0] == -11
    assert written(real({}, rule="eager", compiles=False))[:2] == (0, "eager agrees with itself\n")
    code, printed, _ = written(real({"backend": "aot_eager"}, rule=None))
    assert (code, printed) == (0, "it runs\n")


def test_the_batch_of_a_dynamic_mode_that_was_wrong_is_the_one_that_is_judged():
    spec = specs.spec("performance", options={"dynamic": True})
    text = script.text(Case(spec, 8, "timed", limit=0.1, judged_size=6), RunOptions(), FACTS)
    assert "for size in (8, 6, 4, 6):" in text and "images = images[:6]" in text


def test_a_single_image_is_exported_as_it_is():
    spec = specs.spec(options={"backend": "export", "dynamic": True})
    texts = [script.text(Case(spec, size, "strict"), RunOptions(), FACTS) for size in (1, 2)]
    assert ["dynamic_shapes" in text for text in texts] == [False, True]
