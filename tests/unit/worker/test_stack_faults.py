"""The faults inside the stack: enough of each layer, described, and put there by an import."""

import os
import subprocess
import sys
from collections import Counter

import pytest

from timmgate import module_environment
from timmgate.core.diagnosis import LAYERS
from timmgate.core.spec import Mode
from timmgate.worker.faults import stack

MEASURED = ("guards", "decompositions", "joint_graph", "post_grad", "lowerings", "code_generation", "freezing")


def test_there_are_at_least_forty_and_five_of_each_layer_that_is_measured():
    counts = Counter(fault.layer for fault in stack.FAULTS.values())
    assert set(counts) <= set(LAYERS)
    assert counts.total() >= 40
    assert all(counts[layer] >= 5 for layer in MEASURED)


@pytest.mark.parametrize("fault", stack.FAULTS.values(), ids=lambda fault: fault.name)
def test_a_fault_is_described(fault):
    assert fault.does[0].islower() or fault.does.startswith(("LayerNorm", "SiLU", "GELU", "Hardswish", "ReLU"))
    Mode(**fault.options)
    import timm

    assert timm.is_model(fault.model)
    if fault.module:
        timm.create_model(fault.model).get_submodule(fault.module)


def test_importing_puts_the_fault_there_that_the_environment_names():
    program = "import timmgate.worker.faults.stack, torch; from torch._inductor.lowering import lowerings;"
    program += "print(lowerings[torch.ops.aten.relu.default].__module__)"
    environment = module_environment({**os.environ, stack.VARIABLE: "lowering_relu"})
    printed = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert "timmgate" in printed.stdout
