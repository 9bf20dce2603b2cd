"""Many faults on one captured program: it is compiled once, and each fault runs in a copy of its graphs.

What runs is what `FaultBackend` gives for the same fault; those of the process and of compilation have no graph to edit.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from functorch.compile import make_boxed_func

from timmgate.core.faults import DEFAULT_PLACE, Choice
from timmgate.worker.faults.backend import capture, compiled_frame
from timmgate.worker.faults.graph import EDITS, Captured, choose


class Trials:
    """A backend of torch.compile whose program runs with the fault that was chosen last, or with none.

    `compile` is what torch.compile is given.
    """

    def __init__(self) -> None:
        self._choice: Choice | None = None
        self._programs: list[_Program] = []

    def compile(self, graph_module: torch.fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        """Compile one graph of dynamo's."""
        return capture(self._compile, graph_module, example_inputs)

    def _compile(self, module: torch.fx.GraphModule, captured: Captured) -> Callable[..., Any]:
        program = _Program(module, replace(captured, graph=copy.deepcopy(module.graph)), compiled_frame())
        self._programs.append(program)
        program.choose(self._choice, {})
        return make_boxed_func(program)

    def choose(self, choice: Choice | None) -> bool:
        """Run with a fault from now on; whether it applies to what was captured so far."""
        self._choice = choice
        memory: dict[int | None, dict] = {}
        frame, applies = None, False
        for program in self._programs:
            elsewhere = choice is not None and choice.place != "all" and frame not in (None, program.frame)
            if program.choose(None if elsewhere else choice, memory.setdefault(program.frame, {})):
                frame, applies = program.frame, True
        return applies


class _Program:
    """One captured graph, which runs as it is or with a fault."""

    def __init__(self, module: torch.fx.GraphModule, captured: Captured, frame: int | None):
        self._module, self._captured, self.frame = module, captured, frame
        self._run: Callable[..., Any] = module.forward

    def choose(self, choice: Choice | None, memory: dict[str, dict]) -> bool:
        """Run with a fault; whether it applies."""
        self._run = self._module.forward
        if choice is None or choice.fault.name not in EDITS or choice.fault.backward != self._captured.backward:
            return False
        broken = replace(self._captured, graph=copy.deepcopy(self._captured.graph), size=choice.size)
        edit = EDITS[choice.fault.name]
        sites = edit.where(broken)
        if not sites:
            return False
        for node in choose(sites, choice.place or DEFAULT_PLACE, str(choice)):
            edit.apply(node, choice.size, memory)
        self._run = torch.fx.GraphModule(self._module, broken.graph).forward
        return True

    def __call__(self, *args: Any) -> Any:
        return self._run(*args)
