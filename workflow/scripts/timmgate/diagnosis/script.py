"""The script that repeats a cell, or a module of it, with torch and timm alone: its text, and the files beside it."""

import math
import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

from timmgate import PACKAGE_ROOT
from timmgate.core import faults
from timmgate.core.build import BuildOptions
from timmgate.core.checks import CHECKS, EAGER_2ND
from timmgate.core.diagnosis import RUNS_OF_A_CRASH
from timmgate.core.files import write_text
from timmgate.core.run_options import RunOptions
from timmgate.core.schemas import FAILED, SHOWN_STATUS
from timmgate.core.spec import (
    INFERENCE_ONLY_BACKENDS,
    LEARNING_RATE,
    LOSS_SCALE,
    Cell,
    Spec,
    dynamic_batch_sizes,
    other_weights,
)
from timmgate.core.verdict import ALWAYS_WRONG, FIRST_CALLS, NOT_COMPUTED, OF_A_SAMPLE, OTHER_LOSS
from timmgate.supervisor import study

NAME = "repro.py"
"""Of the script."""

LEAST_TIMEOUT_S = 600
"""For what only eager runs for: a time limit that is low because something compiled hangs is not about that."""

TEMPLATE = Path(__file__).with_name("repro.py.j2")

WRONG_IF = {
    "strict": "a tensor's error against float64 is beyond what null runs allow (limits.* in inputs.safetensors)",
    "dynamo": "a tensor's error against float64 is beyond the dynamo rule's (limits.* in inputs.safetensors)",
    "timed": "the error is beyond what eager's own error allows",
    "eager": "two eager runs are not equal in every bit, or are not finite",
    "cosine": "the cosine of a tensor and of eager's is below 0.99",
}
"""By rule, when a result is wrong."""

ALLOWS = {"strict": "null runs allow", "dynamo": "the dynamo rule allows"}
"""By rule, what a margin is relative to; others just allow."""

RUNS = "Exit code 0 if it runs."

WIDTH = 150
"""Of the docstring."""

AS_LARGE_AS_ITSELF = 1.0
"""Relative error that is wrong in any case, where a row does not say what was allowed."""

NOT_IN_ONE_CALL = tuple(f"{word}." for word in (*ALWAYS_WRONG, FIRST_CALLS))
"""Beginnings of leaves that the last call of a program does not show."""

JUDGED = ("strict", "dynamo", "timed", "cosine")
"""Rules by which compiled is held against float64 or eager."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """What is to be repeated: a check of a cell.

    * `rule`: how the result is judged, a word of `WRONG_IF`; None where it never came to one.
    * `sentence`: why it failed, in the words of the tables; None if it passed.
    * `compiles`: whether a compiler has to do with it; else eager alone is run.
    * `limit`: of the relative error of the leaf `timed`, by the rule of that name; against float64, or eager if not
      `is_exact`; at the batch size `judged_size` of those of an iteration, the first of them if None.
    """

    spec: Spec
    batch_size: int
    rule: str | None
    sentence: str | None = None
    compiles: bool = True
    limit: float | None = None
    timed: str = "output"
    is_exact: bool = True
    judged_size: int | None = None


def case(cell: Cell, row: Row, checks: Sequence[str]) -> Case:
    """The case that a row of `cells` is: the first of the checks that failed, else the first of all."""
    check = next((check for check in checks if row[SHOWN_STATUS[check]] in FAILED), checks[0])
    spec, status, stage = cell.spec(check), row[SHOWN_STATUS[check]], row[f"{check}_stage"]
    about = {
        "spec": spec,
        "batch_size": row[f"{check}_batch_size"] or spec.requested_batch_size,
        "sentence": row[f"{check}_reason"],
    }
    if status in ("eager_two_runs_differ", "eager_not_finite"):
        return Case(rule="eager", compiles=False, **about)
    if status in FAILED and status != "fail_accuracy":
        stages = {each.name for each in CHECKS[check].stages if each.failure == ("fail_to_run",)}
        return Case(rule=None, compiles=stage in stages or (stage == "null_runs" and status not in EAGER_2ND), **about)
    if check == "performance":
        error, margin = row["timed_output_error"], row["timed_output_margin"]
        is_known = error and margin and math.isfinite(error) and math.isfinite(margin)
        about["timed"] = row["timed_output_kind"] or ("gradient" if spec.options.training else "output")
        about["is_exact"] = row["timed_reference"] in ("fp64", None)
        about["judged_size"] = row["timed_output_batch_size"]
        if about["timed"] in NOT_COMPUTED:
            about |= {"timed": "prediction" if spec.options.training else "output"}
            about["sentence"] = f"{about['sentence']} (which a call with new images, that is judged here, does not show)"
        return Case(rule="timed", limit=error / margin if is_known else AS_LARGE_AS_ITSELF, **about)
    by_dynamo = row["strict"] not in ("pass", "fail") or row.get("passed_by") == "dynamo"
    if (row["strict_worst_leaf"] or "").startswith(NOT_IN_ONE_CALL):
        about["sentence"] = f"{about['sentence']} (which the last call, that is judged here, does not show)"
    if by_dynamo or (status == "fail_accuracy" and row["strict"] == "pass"):
        return Case(rule="cosine" if row["comparison"] == "cosine" else "dynamo", **about)
    return Case(rule="strict", **about)


def write(case: Case, run: RunOptions, weights: Path | None, folder: Path, log: Path, module: str | None = None) -> Path:
    """Make the folder with the script and what it needs, and return the script's path.

    With the name of a `module`, the script is of that module alone, fed with what it gets when eager runs; it is judged by
    null runs of its own. `weights` is the file that says where the weights lie. Raises StudyError where the model cannot be
    made. Nothing is compiled here.
    """
    rule = "strict" if module and case.rule in JUDGED else case.rule
    shutil.rmtree(folder, ignore_errors=True)
    options = {"folder": str(folder.absolute()), "module": module, "rule": rule, "batch_size": case.batch_size}
    timeout_s = max(run.timeout, LEAST_TIMEOUT_S)
    (facts,) = study.rows("timmgate.worker.repro", case.spec, run, weights, log, timeout_s, **options)
    path = folder / NAME
    content = text(replace(case, rule=rule), run, facts, module)
    write_text(path, content)
    return path


def command(build: BuildOptions, path: Path) -> str:
    """How the script is run."""
    return shlex.join([build.python or sys.executable, str(path)])


def text(case: Case, run: RunOptions, facts: Row, module: str | None = None) -> str:
    """The script; `facts` are those of `worker.repro`."""
    spec, options = case.spec, case.spec.options
    about = f"{spec.check} of {spec.mode}/{spec.model}{f', module {module}' if module else ''} on {spec.device}"
    rule, is_exact = case.rule, case.is_exact and case.rule != "cosine" and facts["has_reference"]
    is_mirrored = rule == "strict" and module is None  # what keeps its first result is wrong with other images
    others = [*facts["arguments"][1:], *(f"{name}={value}" for name, value in facts["keywords"].items())]
    with_guard = f"with torch.autocast({spec.device!r}, torch.{facts['amp_dtype']}, enabled=images.dtype != torch.float64):"
    sizes, is_last = _sizes(case), options.channels_last
    template = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    return template.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        about=_wrapped(f"{about}, build {spec.build}, torch {spec.torch}: {case.sentence or 'it passed'}"),
        ends=_wrapped(f"Exit code 1 if {WRONG_IF[rule]}, else 0." if rule else RUNS),
        rule=rule,
        allows=ALLOWS.get(rule or "", "is allowed"),
        reference="float64" if is_exact else "eager",
        is_exact=is_exact,
        environment=run.build.script_environment(run.threads, spec.device),
        fault=faults.is_fault(options.backend),
        library=repr(str(PACKAGE_ROOT)),
        imports=run.build.import_,
        places=run.build.import_places(),
        is_timed=spec.check == "performance" and not module,
        options=options,
        device=spec.device,
        torch_device=repr(spec.device),
        config={} if faults.is_fault(options.backend) else facts["inductor_config"],
        compiles=case.compiles,
        compiled=_compiled(spec, case.batch_size, facts["amp_dtype"] is not None),
        exports=options.backend in INFERENCE_ONLY_BACKENDS and facts["amp_dtype"] is not None,
        loop=_loop(spec, sizes, is_mirrored, RUNS_OF_A_CRASH if module and not rule else 2),
        moves_weights=is_mirrored and options.training,
        moved=other_weights(spec.options.precision),
        judged_size=sizes[-1] if sizes else None,
        given="images[:size]" if sizes else "given" if is_mirrored else "images",
        model=repr(spec.model),
        submodule=f".get_submodule({module!r})" if module else "",
        drop="" if facts["refuses_drop"] else ", drop_rate=0.0, drop_path_rate=None, drop_block_rate=None",
        dtype=facts["dtype"],
        amp_dtype=facts["amp_dtype"],
        layout=", memory_format=torch.channels_last" if is_last else "",
        input_layout=".contiguous(memory_format=torch.channels_last)" if is_last and not module else "",
        is_train=options.training and not options.use_eval_mode,
        is_tree=facts["is_tree"],
        returned=_returned(facts["is_tree"], rule),
        rounds_weights=facts["amp_dtype"] is not None and rule == "strict" and facts["has_reference"],
        seed=spec.seed,
        guard=with_guard if facts["amp_dtype"] else None,
        deeper="    " if facts["amp_dtype"] else "",
        call=", ".join(["images.clone()" if facts["in_place"] else "images", *others]),
        losses=f'("", "{OTHER_LOSS}")' if rule == "strict" else '("", "")' if rule == "dynamo" else '("",)',
        loss_scale=f" / {LOSS_SCALE}" if spec.traits.scaled_loss else "",
        optimizer=_optimizer(spec) if rule == "dynamo" else None,
        learning_rate=LEARNING_RATE,
        timed=case.timed.removesuffix(OF_A_SAMPLE) if rule == "timed" else None,
        of_a_sample=case.timed.endswith(OF_A_SAMPLE),
        limit=case.limit,
    )


def _returned(is_tree: bool, rule: str | None) -> str:
    """What a run without gradients returns, by name; nothing where nothing is judged."""
    if rule is None:
        return "{}"
    if not is_tree:
        return '{"output": output.clone()}'
    return 'numbered("output", output)' if rule == "timed" else 'tensors("output", output)'


def _loop(spec: Spec, sizes: Sequence[int], is_mirrored: bool, times: int) -> str:
    """What the compiled program is run for; of which the last run is judged."""
    if sizes:
        return f"size in {tuple(sizes)}"
    if not is_mirrored:
        return f"_ in range({times})"
    others = "torch.cat([images, images[:len(images) // 3]])" if spec.options.dynamic else "images"
    return f"given in ({others}.flip(-1), images)"


def _wrapped(text: str) -> str:
    """A text as lines of a docstring."""
    return textwrap.fill(text.replace("\\", "/").replace('"', "'"), WIDTH, break_long_words=False, break_on_hyphens=False)


def _sizes(case: Case) -> tuple[int, ...]:
    """The batch sizes of an iteration, and the one that is judged, if a mode with dynamic shapes sees several."""
    if case.spec.check != "performance" or not case.spec.options.dynamic:
        return ()
    sizes = tuple(dynamic_batch_sizes(case.batch_size))
    return (*sizes, case.judged_size or sizes[0])


def _compiled(spec: Spec, batch_size: int, has_autocast: bool) -> str:
    """The expression that compiles `broken`; what gets a whole program gets autocast with it, and a batch of 1 as it is."""
    options, dynamic = spec.options, spec.options.dynamic or None
    if faults.is_fault(options.backend):
        return f"compile_model({options.backend!r}, broken, {dynamic})"
    shapes = ", dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)" if options.dynamic and batch_size > 1 else ""
    subject = "InAutocast(broken)" if has_autocast else "broken"
    exported = f"torch.export.export({subject}, (images,){shapes})"
    ahead = {
        "nothing": "broken",
        "export": f"{exported}.module()",
        "aot_inductor": f"torch._inductor.aoti_load_package(torch._inductor.aoti_compile_and_package({exported}))",
    }
    mode = "" if options.compile_mode == "default" else f", mode={options.compile_mode!r}"
    how = f"backend={options.backend!r}{', dynamic=True' if dynamic else ''}{mode}"
    return ahead.get(options.backend, f"torch.compile(broken, {how})")


def _optimizer(spec: Spec) -> str | None:
    """The class of the optimizer of a training iteration, if it has one."""
    return {"sgd": "SGD", "adam": "Adam"}.get(spec.optimizer())
