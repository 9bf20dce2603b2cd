"""Where and with what something was measured, and the command that repeats it."""

import shlex
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from timmgate import PACKAGE_ROOT, module_environment
from timmgate.core.checks import CHECKS
from timmgate.core.outcome import Outcome
from timmgate.core.protocol import Request
from timmgate.supervisor.cell import worker_command
from timmgate.system import gpus, machine

FACT_COLUMNS = ("python", "torch_revision", "triton", "cuda", "cudnn", "cxx")
"""Facts of a build (`config.builds.find`) that are columns of the same name."""


def columns(request: Request, outcome: Outcome, facts: Mapping[str, Any], log: Path) -> dict[str, Any]:
    """The columns `schemas.PROVENANCE` of the row of one check, which ran as `request` says."""
    ran = outcome.result.columns.get("batch_size") if CHECKS[outcome.result.check].shrinks else None
    request = replace(request, device_number=outcome.result.device_number, timed_batch_size=ran)
    return {
        **{name: facts.get(name) for name in FACT_COLUMNS},
        "backends": _pairs(facts.get("backends")),
        "imports": facts.get("imports"),
        "sources": _pairs(facts.get("sources")),
        "environment": _pairs(facts.get("environment")),
        "driver": gpus.driver_version() if request.specs[0].device == "cuda" else None,
        "host": socket.gethostname(),
        **{f"machine_{name}": value for name, value in asdict(machine.facts()).items()},
        "snakemake": version("snakemake"),
        "commit": commit(PACKAGE_ROOT),
        "command": command(request, facts.get("environment") or {}, outcome.result.columns.get("device_uuid")),
        "log": str(log),
    }


def command(request: Request, environment: Mapping[str, str], gpu: str | None) -> str:
    """A shell command that repeats the measurement: with its variables, our search path, and on the same GPU."""
    own = request.run.build.env
    search_path = {"PYTHONPATH": module_environment(own)["PYTHONPATH"]}
    variables = {**environment, **own, **search_path, **(gpus.only(gpu) if gpu else {})}
    assignments = " ".join(f"{name}={shlex.quote(text)}" for name, text in variables.items())
    return f"{assignments} {shlex.join(worker_command(request))}"


def _pairs(values: Mapping[str, str] | None) -> list[str]:
    return [f"{name}={value}" for name, value in (values or {}).items()]


@cache
def commit(folder: Path) -> str | None:
    """Git commit of the checkout that `folder` lies in, with `-dirty` for uncommitted edits; None outside a checkout."""
    describe = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
