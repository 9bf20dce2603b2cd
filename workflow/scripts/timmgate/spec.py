"""One measurement, frozen, to and from JSON. Knows no paths and no Snakemake.

Everything that changes what is measured is in `Spec` and nothing else is: a cell is measured again exactly when its spec
changes. Policy (deadline, threads, attempts, caches) is not part of it.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

PROTOCOL = 2
"""Number of the measurement protocol. Raise it when the meaning of a recorded figure changes: every cell is then redone."""

CHECKS = {"accuracy": "evidence", "performance": "samples"}
"""The checks in the order in which they run, and the table of many lines that each keeps beside its row."""

SEED = 1337
"""Seed of every random number generator before every run, as in PyTorch's benchmarks/dynamo."""

ACCURACY_BATCH_SIZE = 8
"""Batch size of the accuracy check unless overridden, as in benchmarks/dynamo for timm models."""


@dataclass(frozen=True)
class Mode:
    """The options of a mode; `workflow/schemas/config.schema.yaml` describes each."""

    training: bool = False
    precision: str = "float32"
    amp_dtype: str | None = None
    freezing: bool = False
    backend: str = "inductor"
    compile_mode: str = "default"
    dynamic: bool = False
    cudagraphs: bool = False
    channels_last: bool = False
    use_eval_mode: bool = False
    inductor_config: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "auto"
    batch_size: int | None = None
    cosine: bool = False


@dataclass(frozen=True)
class Traits:
    """What a suite's table says of one model; `workflow/schemas/suite.schema.yaml` describes each column."""

    batch_size: int = 1
    batch_divisor: int = 1
    training_accuracy_batch_size: int | None = None
    training_tolerance: float = 1e-2
    freezing_tolerance: float = 1e-3
    scaled_loss: bool = False
    force_amp: bool = False
    nondeterministic: bool = False
    training_optimizer: str = "adam"
    accuracy_optimizer: str | None = None
    larger_multiplier: bool = False
    emulate_precision_casts: bool = False
    skip_on: list[str] = field(default_factory=list)
    skip_reason: str | None = None


@dataclass(frozen=True)
class Spec:
    """One check of one cell.

    `device` is a torch device type, `mode` the mode's name and `options` what the name stands for, `weights` is resolved
    (never `auto`), `batch_size` is what the user or the mode asks for, or None for the protocol's own.
    """

    check: str
    device: str
    mode: str
    model: str
    weights: str
    torch: str
    timm: str
    batch_size: int | None = None
    options: Mode = field(default_factory=Mode)
    traits: Traits = field(default_factory=Traits)
    seed: int = SEED
    protocol: int = PROTOCOL

    @property
    def requested_batch_size(self) -> int:
        """Images per batch: the override, else the check's own (accuracy 8, performance the suite's over its divisor)."""
        override = self.batch_size or self.options.batch_size
        if override:
            return override
        if self.check == "accuracy":
            return (self.options.training and self.traits.training_accuracy_batch_size) or ACCURACY_BATCH_SIZE
        return max(1, self.traits.batch_size // self.traits.batch_divisor)

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, strings, numbers and None all the way down. Change nothing in it: equal parts are in memory once."""
        return {**vars(self), "options": vars(self.options), "traits": vars(self.traits)}

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Spec":
        """The inverse of `to_dict`. Raises TypeError on an unknown field, and on a missing one that has no default."""
        options, traits = Mode(**values.get("options", {})), Traits(**values.get("traits", {}))
        return cls(**{**values, "options": options, "traits": traits})

    @classmethod
    def from_json(cls, text: str) -> "Spec":
        """The inverse of `to_json`."""
        return cls.from_dict(json.loads(text))

    def program(self, batch_size: int, threads: int) -> str:
        """Hex digest of all that the compiler sees, which both checks of a cell have in common if their batch size is equal.

        The number of threads is part of it: inductor writes it into the code that it generates for CPUs.
        """
        values = {**self.to_dict(), "check": None, "batch_size": batch_size, "threads": threads}
        return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]

    def identity(self) -> str:
        """Hex digest (SHA-256) of all fields: equal if and only if the same thing is measured."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
