"""Backends that break what they compile, in one known way each: `fault:<name>[@place]` (core.faults)."""

from timmgate.core.faults import FaultNotApplicable
from timmgate.worker.faults.backend import CompiledWithFault, FaultBackend, applies, compile_model
from timmgate.worker.faults.trials import Trials

__all__ = ["CompiledWithFault", "FaultBackend", "FaultNotApplicable", "Trials", "applies", "compile_model"]
