"""What a comparison holds against its baseline, where that is not what this folder measures."""

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from timmgate.config.settings import Settings
from timmgate.core.errors import ConfigError
from timmgate.tables import parquet
from timmgate.tables.gate import baseline
from timmgate.tables.gate.baseline import Measured
from timmgate.tables.history import store


class Candidate(NamedTuple):
    """Cells that were measured before on one device: `called` as the user calls them, and `builds` what each is called."""

    measured: Measured
    called: str
    device: str
    builds: dict[str, str]


def find(settings: Settings) -> Candidate | None:
    """What the key `candidate` names; None without it. Raises ConfigError where that has no measured cells."""
    called = settings.candidate
    if called is None:
        return None
    measured = baseline.tables(called, settings.device, settings.history_path, "candidate", any_device=True)
    if measured is None:
        missing = "has no measured tables" if Path(called).exists() else "does not exist"
        raise ConfigError(f"candidate: {called!r} {missing}; it is the results of an earlier run, or history: and a run")
    if measured.kind == "history" and measured.name is None:
        raise ConfigError("candidate: history has many runs; say which, as in candidate=history:20260301T001500Z-1a2b3c4d")
    if measured.kind != "history":
        baseline.builds_of(measured.path, "candidate")
    cells = _cells(measured, ["device", "build"])
    if not len(cells):
        raise ConfigError(f"candidate: {called!r} has no cells")
    devices, builds = (pc.unique(cells[name]).to_pylist() for name in ("device", "build"))
    names = {build: called if len(builds) == 1 else f"{called} {build}" for build in sorted(builds)}
    return Candidate(measured, called, settings.device if settings.device in devices else devices[0], names)


def its_baseline(candidate: Candidate, settings: Settings) -> Measured:
    """The measured tables that the key `baseline` names, as one of the candidate's device and builds has them.

    Raises ConfigError where there are none, or where both are the same.
    """
    builds = dict.fromkeys(candidate.builds, next(iter(settings.builds.values())))
    of_candidate = replace(settings, device=candidate.device, builds=builds)
    is_build = (settings.baseline or "").startswith("build:")
    found = None if is_build else baseline.measured(of_candidate, any_device=True, own=False)
    if found is None:
        raise ConfigError(
            f"candidate: {candidate.called!r} is compared with what was measured before; set baseline to the results of an "
            "earlier run, or to history: and a run"
        )
    if (Path(found.path).resolve(), found.name) == (Path(candidate.measured.path).resolve(), candidate.measured.name):
        raise ConfigError(f"candidate: {candidate.called!r} is the baseline, too, and would be compared with itself")
    return found


def load(candidate: Candidate) -> pa.Table:
    """Its cells in the schema of `cells`, as if they were requested. What an older table lacks is null."""
    cells = _cells(candidate.measured, None)
    cells = cells.filter(pc.equal(cells["device"], candidate.device))
    known: dict[str, Any] = {name: cells[name] for name in cells.column_names}
    known["requested"] = pa.array([True] * len(cells))
    schema = parquet.SCHEMAS["cells"]
    return pa.table({name: known.get(name, pa.nulls(len(cells))) for name in schema.names}).cast(schema)


def _cells(measured: Measured, columns: list[str] | None) -> pa.Table:
    """These columns of the cells, or all."""
    if measured.kind != "history":
        return pq.read_table(measured.path, columns=columns)
    return store.read(Path(measured.path), columns or store.SCHEMA.names, pc.field("run") == measured.name)
