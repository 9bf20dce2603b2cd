"""One outcome to the rows that are kept of it. The only place where a spec, an ending and provenance meet."""

import json
import platform
import shlex
import socket
import subprocess
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from timmgate import PACKAGE_ROOT
from timmgate.spec import Spec
from timmgate.supervise import Outcome, Policy, worker_command

MESSAGE_CHARACTERS = 2000
"""A message longer than this is cut; the log has the whole of it."""


def row(spec: Spec, policy: Policy, outcome: Outcome, suite: str, log: Path) -> dict[str, Any]:
    """The one row of a check, with the columns of `rows.SCHEMAS[spec.check]`."""
    return {
        **identity(spec, suite),
        **outcome.ending.facts,
        **_ending(spec.check, policy, outcome),
        **_provenance(spec, policy, log),
    }


def evidence(spec: Spec, outcome: Outcome) -> list[dict[str, Any]]:
    """The rows of the evidence table: one per compared tensor, none if the measurement ended before."""
    return [{**key(spec), **leaf} for leaf in outcome.ending.evidence]


def key(spec: Spec) -> dict[str, str]:
    """The cell that a row belongs to."""
    return {"device": spec.device, "mode": spec.mode, "model": spec.model}


def identity(spec: Spec, suite: str) -> dict[str, Any]:
    """What is known of a measurement before it starts."""
    options = asdict(spec.options)
    return {
        **key(spec),
        **{name: options[name] for name in ("backend", "training", "precision", "freezing", "channels_last", "dynamic")},
        "architecture": spec.model.split(".", 1)[0],
        "suite": suite,
        "options": json.dumps(options, sort_keys=True),
        "batch_size_requested": spec.requested_batch_size,
        "weights": spec.weights,
        "seed": spec.seed,
        "protocol": spec.protocol,
        "identity": spec.identity(),
        "torch": spec.torch,
        "timm": spec.timm,
    }


def _ending(check: str, policy: Policy, outcome: Outcome) -> dict[str, Any]:
    verdict, ending = outcome.verdict, outcome.ending
    columns = {
        "stage": ending.stage,
        "cause": verdict.cause,
        "message": verdict.message and verdict.message[:MESSAGE_CHARACTERS],
        "attempt": outcome.attempt,
        "started_at": outcome.started_at,
        "wall_s": outcome.wall_s,
        "worker_s": ending.worker_s,
        "cpu_s": outcome.cpu_s,
        "threads": policy.threads,
        **{f"{stage}_s": seconds for stage, seconds in ending.stage_s.items()},
    }
    return {check: verdict.status, **{f"{check}_{name}": value for name, value in columns.items()}}


def _provenance(spec: Spec, policy: Policy, log: Path) -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "snakemake": version("snakemake"),
        "commit": commit(PACKAGE_ROOT),
        "command": f"PYTHONPATH={shlex.quote(str(PACKAGE_ROOT))} {shlex.join(worker_command(spec, policy))}",
        "log": str(log),
    }


@cache
def commit(folder: Path) -> str | None:
    """Git commit of the checkout that `folder` lies in, with `-dirty` for uncommitted edits; None outside a checkout."""
    describe = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
