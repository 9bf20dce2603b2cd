"""One outcome to the rows that are kept of it. The only place where a spec, an ending and provenance meet."""

import json
import platform
import shlex
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from timmgate import PACKAGE_ROOT
from timmgate.attempts import shortened
from timmgate.redact import redacted
from timmgate.spec import Spec
from timmgate.supervise import Outcome, Policy, worker_command


def row(spec: Spec, outcome: Outcome, policy: Policy, suite: str, provenance: dict[str, Any]) -> dict[str, Any]:
    """The one row of a check, with the columns of `rows.SCHEMAS[spec.check]`."""
    return redacted({**identity(spec, suite), **outcome.ending.facts, **_ending(spec, policy, outcome), **provenance})


def details(spec: Spec, outcome: Outcome) -> list[dict[str, Any]]:
    """The rows of the check's table in `spec.CHECKS`; none if the measurement ended before it had any."""
    return redacted([{**key(spec), **line} for line in outcome.ending.details])


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
        "torch": spec.torch,
        "timm": spec.timm,
    }


def _ending(spec: Spec, policy: Policy, outcome: Outcome) -> dict[str, Any]:
    check, verdict, ending = spec.check, outcome.verdict, outcome.ending
    columns = {
        "stage": ending.stage,
        "cause": verdict.cause,
        "message": shortened(verdict.message),
        "identity": spec.identity(),
        "batch_size": ending.facts.get("batch_size"),
        "attempt": outcome.attempt,
        "started_at": ending.started_at,
        "wall_s": outcome.wall_s,
        "worker_s": ending.worker_s,
        "cpu_s": ending.cpu_s,
        "held_s": ending.held_s,
        "peak_rss_bytes": ending.peak_rss_bytes or None,
        "threads": policy.threads,
        **{f"{stage}_s": seconds for stage, seconds in ending.stage_s.items()},
    }
    return {check: verdict.status, **{f"{check}_{name}": value for name, value in columns.items()}}


def provenance(specs: Sequence[Spec], policy: Policy, log: Path, retry: int = 0) -> dict[str, Any]:
    """Where and with what the checks of a cell were measured, and the command that repeats them."""
    return {
        "retry": retry,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "snakemake": version("snakemake"),
        "commit": commit(PACKAGE_ROOT),
        "command": f"PYTHONPATH={shlex.quote(str(PACKAGE_ROOT))} {shlex.join(worker_command(specs, policy))}",
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
