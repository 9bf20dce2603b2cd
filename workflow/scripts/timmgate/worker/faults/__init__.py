"""Backends that break what they compile, in one known way each: `fault:<name>[@place]` (core.faults)."""

from timmgate.worker.faults.backend import compile_model
from timmgate.worker.faults.trials import Trials

__all__ = ["Trials", "compile_model"]
