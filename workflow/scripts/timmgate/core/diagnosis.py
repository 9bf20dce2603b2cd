"""What diagnosing a cell is made of: layers of the compiler, variants of a cell, and what a worker is told of one trial.

A trial is the accuracy check's verdict on one variant of a cell, in a process of its own. It has one seed, and takes
reference and null runs from the trial before, if that had the same ones.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from timmgate.core.described import columns
from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec

TRIAL = "trial"
"""What a worker calls a trial where it would name a check."""

LAYERS = {
    "eager": "eager itself fails, before anything is compiled: an operator of torch, or the model",
    "capture": "dynamo, or torch.export, captures another program than eager runs, or cannot capture it",
    "guards": "dynamo's guards: a program runs where it does not hold, or is compiled anew where it does",
    "aot_autograd": "AOTAutograd: tracing of the backward pass, functionalization, the program around the graphs",
    "decompositions": "operators are taken apart into others that compute something else",
    "partitioner": "the graph is split into forward and backward, with its common subexpressions and recomputation",
    "pre_grad": "inductor's passes over the captured graph",
    "joint_graph": "inductor's passes over the graph of forward and backward together",
    "freezing": "weights as constants: folding, and the passes over a frozen graph",
    "post_grad": "inductor's passes over a forward or a backward graph",
    "lowerings": "operators become loops that compute something else",
    "code_generation": "loops become code that computes something else: fusion, vectors, buffers, the compiler behind it",
    "loops": "lowerings or code_generation, not told apart, as loops could not be interpreted, which only a CPU's can",
    "cudagraphs": "graphs are recorded and replayed",
    "inductor": "inductor, in no layer of it that can be left out",
    "backend": "the backend that the mode names",
    "unknown": "a trial ended before anything was compiled, or was ended from outside, twice: the search could not go on",
    "flaky": "it does not fail again",
}
"""Where in the stack a cell goes wrong, from the first to the last that a model goes through, and what is no place."""

BISECTED = {
    "decompositions": ("aot_eager_decomp_partition", "decomposition"),
    "pre_grad": ("inductor", "pre_grad_passes"),
    "joint_graph": ("inductor", "joint_graph_passes"),
    "post_grad": ("inductor", "post_grad_passes"),
    "lowerings": ("inductor", "lowerings"),
}
"""Layers that torch._inductor.compiler_bisector can leave out, application by application: its backend and subsystem."""


CODE = "code_generation"
"""A layer that a trick of ours leaves out, loop by loop: they are interpreted instead."""


@dataclass(frozen=True)
class Variant:
    """A change of a cell that takes a part of the compiler out of it.

    * `options`: of the mode; `settings`: keys of torch._inductor.config.
    * `layer`, `applications`: of a layer in `BISECTED`, or of `CODE`, only so many applications are left, in the order in
      which they come.
    * `trick`: a change that torch has no setting for, a name in `worker.diagnose.tricks`.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    layer: str | None = None
    applications: int = 0
    trick: str | None = None

    def of(self, spec: Spec) -> Spec:
        """The variant of a measurement."""
        settings = {**spec.options.inductor_config, **self.settings}
        return replace(spec, options=replace(spec.options, **self.options, inductor_config=settings))

    @property
    def variables(self) -> dict[str, str]:
        """Environment variables that leave out what `layer` says."""
        if self.layer not in BISECTED:
            return {}
        backend, subsystem = BISECTED[self.layer]
        left = str(self.applications - 1)  # the number of the last one, from 0
        return {"TORCH_BISECT_BACKEND": backend, "TORCH_BISECT_SUBSYSTEM": subsystem, "TORCH_BISECT_MAX": left}


SIGNAL = "signal"
"""What ended a trial whose process died by itself, whatever its signal: broken memory shows in one way or another."""

RUNS_OF_A_CRASH = 20
"""How often a module runs where a crash is looked for: broken memory does not end a process each time. A choice."""

IN_EAGER = "in eager"
"""What the search of modules calls the null runs of the one that it found."""

GRAPH, GRAPH_SCRIPT = "graph", "graph.py"
"""Folder of the smallest graph, in that of what trials have in common, and the script in it."""


@dataclass(frozen=True)
class TrialRequest:
    """What a worker is told of one trial.

    `batch_size` is that of the check that failed. `kept` is a folder for what trials have in common. With `known` the
    places are searched instead: by the name of a module, whether it failed, for those that were tried before. `cause` is
    what is looked for where that is no wrong result: the class of an exception, `signal`, `timeout` or `OOM`; then a program
    that runs passes. `null_runs`: modules are judged by null runs. The rest is as in `protocol.Request`.
    """

    spec: Spec
    run: RunOptions
    variant: Variant
    batch_size: int
    kept: Path
    known: Mapping[str, str] | None = None
    cause: str | None = None
    null_runs: bool = True
    messages: int = 1
    paused: int | None = None
    device_number: int | None = None

    @property
    def allocator(self) -> str | None:
        """The cell's, on a CPU."""
        return self.spec.allocator

    def to_json(self) -> str:
        """Canonical JSON."""
        about = {
            "spec": self.spec.to_dict(),
            "run": self.run.to_dict(),
            "variant": vars(self.variant),
            "kept": str(self.kept),
        }
        return json.dumps({**vars(self), **about}, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "TrialRequest":
        """The inverse of `to_json`. Raises TypeError on an unknown field."""
        values = json.loads(text)
        spec, run = Spec.from_dict(values["spec"]), RunOptions.from_dict(values["run"])
        about = {"spec": spec, "run": run, "variant": Variant(**values["variant"]), "kept": Path(values["kept"])}
        return cls(**{**values, **about})


REPORTED = columns(
    "trial",
    [
        ("margin", "float64", "", "largest error over allowed error by the dynamo rule, 1 is the limit"),
        ("worst_leaf", "string", "", "compared tensor that it is of"),
        ("strict", "string", "", "pass, fail or undecided: the verdict by null runs, with one seed"),
        ("strict_margin", "float64", "", "largest statistic of an error over its limit by null runs, 1 is the limit"),
        ("strict_worst_leaf", "string", "", "compared tensor that it is of"),
        ("applications", "int64", "", "how often the layer that a variant leaves out came to be applied"),
        ("application", "string", "", "the last of them that was left in"),
        ("raised_in", "string", "", "file, line and function of torch that raised an exception"),
        ("module", "string", "", "smallest module that fails when it is compiled alone; null for the whole model"),
        ("module_class", "string", "", "its class"),
        ("direction", "string", "", "forward, backward, or raised, where compiling or running it fails"),
        ("fails_in_eager", "bool", "", "of what raised: whether its null runs, which are eager, fail too"),
        (
            "graph",
            "string",
            "",
            "operators of the smallest part of its graph that goes wrong, in their order; float32 alone",
        ),
        ("graph_operators", "int64", "", "their number"),
    ],
)
"""Columns that a worker reports of a trial."""

MODULE_COLUMNS = ("module", "module_class", "direction", "fails_in_eager", "graph", "graph_operators")
"""Those of them that the search of modules reports."""

PLACES = columns(
    "place",
    [
        (
            "module",
            "string",
            "",
            "name of a module of the model, empty for the whole; it is being tried",
        ),
        ("module_class", "string", "", "its class"),
        ("ended", "string", "", "pass, forward, backward or raised, once it is known"),
    ],
)
"""Columns of a detail that a worker reports while it searches places."""
