"""One measurement, frozen, to and from JSON.

Everything that changes what is measured is in `Spec` and nothing else is: a cell is measured again exactly when its spec
changes. Policy (`run_options`) is not part of it.
"""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from timmgate.core.build import DEFAULT
from timmgate.core.checks import CHECKS
from timmgate.core.described import described

C = TypeVar("C", bound="Cell")

PROTOCOL = 19
"""Number of the measurement protocol. Raise it when the meaning of a recorded figure changes: every cell is then redone."""

SEEDED_WEIGHTS = ("random", "random-timm")
"""Words of the key `weights` that need no file: so that every part of a model matters, or as timm draws them."""

SEED = 1337
"""Seed of every random number generator before every run, as in PyTorch's benchmarks/dynamo."""

ACCURACY_BATCH_SIZE = 8
"""Batch size of the accuracy check unless overridden, as in benchmarks/dynamo for timm models."""

LEARNING_RATE = 0.01
"""Of both optimizers (benchmarks/dynamo)."""

LOSS_SCALE = 1000
"""Divisor of the loss for the suite's scaled_loss models (benchmarks/dynamo)."""

OTHER_WEIGHTS, OTHER_WEIGHTS_OF_HALF = 0.01, 0.1
"""Width of the range of relative changes of parameters that make other values of them, which a program has not seen. In half
precision half a percent is what rounding makes, so that a weight which a program keeps would not be seen.
"""


def other_weights(precision: str) -> float:
    """That width in a mode of this precision."""
    return OTHER_WEIGHTS if precision == "float32" else OTHER_WEIGHTS_OF_HALF


DYNAMIC_SHARES = (1.0, 0.75, 0.5)
"""Batch sizes of a dynamic mode's timed iteration, as shares of the batch size."""


def dynamic_batch_sizes(batch_size: int) -> list[int]:
    """Images of each batch of a dynamic mode's timed iteration; eager and compiled see all of them.

    From 2 on, unless `batch_size` is less: a size of 1 is a constant for torch in programs of any size.
    """
    return list(dict.fromkeys(min(batch_size, max(2, round(batch_size * share))) for share in DYNAMIC_SHARES))


INDUCTOR_BACKENDS = ("inductor", "aot_inductor")
"""Backends that end in inductor, whose options they take."""

INFERENCE_ONLY_BACKENDS = ("export", "aot_inductor")
"""Backends that have no backward pass."""


@dataclass(frozen=True)
class Mode:
    """The options of a mode."""

    training: bool = described(
        "Forward and backward pass in training mode, gradients compared; false is inference.", default=False
    )
    precision: Literal["float32", "bfloat16", "float16", "amp"] = described(
        "`float32`, `bfloat16` and `float16` cast model and input; `amp` casts nothing and runs under autocast.",
        default="float32",
    )
    amp_dtype: Literal["bfloat16", "float16"] | None = described(
        "Autocast's dtype; null is the device's default (bfloat16 on CPU, float16 on CUDA).", default=None
    )
    freezing: bool = described("Inductor's freezing, which turns weights into constants. Inference only.", default=False)
    backend: str = described(
        "The compiler, by its torch.compile name (inductor, aot_eager, eager, cudagraphs, ...), or export, "
        "aot_inductor, or nothing.",
        default="inductor",
        minLength=1,
    )
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] = described(
        "The `mode` of torch.compile. Inductor only.", default="default"
    )
    dynamic: bool = described("Compile for dynamic shapes.", default=False)
    cudagraphs: bool = described("Inductor's CUDA graphs.", default=False)
    channels_last: bool = described("channels_last memory format for model and input.", default=False)
    use_eval_mode: bool = described(
        "Train in eval mode, so that BatchNorm and dropout behave as at inference.", default=False
    )
    inductor_config: dict[str, Any] = described("Keys of torch._inductor.config, with dots.", default_factory=dict)
    optimizer: Literal["auto", "none", "sgd", "adam"] = described(
        "Optimizer whose step is part of a training iteration. `auto` follows benchmarks/dynamo: SGD or Adam "
        "by the suite's column on CUDA, none elsewhere and in float16.",
        default="auto",
    )
    batch_size: int | None = described(
        "Images per batch in this mode; null leaves it to the suite and the check.", default=None, minimum=1
    )
    cosine: bool = described(
        "The dynamo rule, and the performance check of what it timed, compare by cosine similarity instead of error against "
        "float64, which is weak. The strict rule does not.",
        default=False,
    )


@dataclass(frozen=True)
class Traits:
    """What a suite's table says of one model."""

    batch_size: int = described("Images per batch of the performance check on a large accelerator.", default=1, minimum=1)
    batch_divisor: int = described("The batch size is divided by this.", default=1, minimum=1)
    training_accuracy_batch_size: int | None = described(
        "Images per batch of the accuracy check in training, where the usual 8 does not fit in float64.",
        default=None,
        minimum=1,
    )
    training_tolerance: float = described("Tolerance of the training comparison.", default=0.01, exclusiveMinimum=0)
    freezing_tolerance: float = described(
        "Tolerance of the inference comparison under freezing.", default=0.001, exclusiveMinimum=0
    )
    scaled_loss: bool = described("Divide the loss by 1000.", default=False)
    force_amp: bool = described(
        "Never cast this model; a bfloat16 or float16 mode runs it under autocast of that dtype instead.", default=False
    )
    nondeterministic: bool = described(
        "Eager training is not deterministic: the dynamo rule does not judge it (`pass_due_to_skip`), the strict rule does.",
        default=False,
    )
    training_optimizer: Literal["adam", "sgd", "none"] = described(
        "Optimizer of training on CUDA when the mode's optimizer is `auto`.", default="adam"
    )
    accuracy_optimizer: Literal["adam", "sgd", "none"] | None = described(
        "The same for the accuracy check alone, where it differs.", default=None
    )
    larger_multiplier: bool = described("Allow small tensors a larger multiple of eager's error.", default=False)
    emulate_precision_casts: bool = described(
        "Set inductor's emulate_precision_casts, to round where eager rounds.", default=False
    )
    skip_on: list[str] = described(
        "Where the model is not run, a torch device type or a type and a machine (cpu_aarch64); several with commas.",
        default_factory=list,
        items={"type": "string", "minLength": 1},
    )
    skip_reason: str | None = described("Why it is not run there.", default=None)


CellKey = tuple[str, str, str, str]
"""Device, build, mode and model: which cell of a folder of results."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is measured: everything that changes a figure. A cell is measured again when any of it changes, and only then.

    `device` is a torch device type, `build` the label of what compiles, `software` a digest of all that is known of it
    (`config.builds`). `mode` is the mode's name and `options` what the name stands for. `weights` is resolved (never
    `auto`), `batch_size` is what the user or the mode asks for, or None for the protocol's own. `threads`, `allocator` and
    `relocate` are None where they change no figure but compile times, as on an accelerator.
    """

    device: str
    mode: str
    model: str
    weights: str
    torch: str
    timm: str
    build: str = DEFAULT
    software: str = ""
    threads: int | None = None
    allocator: Literal["retain", "system"] | None = None
    relocate: bool | None = None
    batch_size: int | None = None
    options: Mode = field(default_factory=Mode)
    traits: Traits = field(default_factory=Traits)
    seed: int = SEED
    protocol: int = PROTOCOL

    @property
    def key(self) -> CellKey:
        """Which one of a folder of results it is."""
        return self.device, self.build, self.mode, self.model

    def to_dict(self) -> dict[str, Any]:
        """Plain dicts, strings, numbers and None all the way down. Change nothing in it: equal parts are in memory once."""
        return {**vars(self), "options": vars(self.options), "traits": vars(self.traits)}

    def to_json(self) -> str:
        """Canonical JSON: equal specs give equal text."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any]) -> C:
        """The inverse of `to_dict`. Raises TypeError on an unknown field, and on a missing one that has no default."""
        options, traits = Mode(**values.get("options", {})), Traits(**values.get("traits", {}))
        return cls(**{**values, "options": options, "traits": traits})

    def spec(self, check: str) -> "Spec":
        """The measurement of one check."""
        return Spec(check=check, **vars(self))


@dataclass(frozen=True, kw_only=True)
class Spec(Cell):
    """One check of one cell."""

    check: str

    @property
    def requested_batch_size(self) -> int:
        """Images per batch: the override, else the check's own (accuracy 8, performance the suite's over its divisor)."""
        override = self.batch_size or self.options.batch_size
        if override:
            return override
        if CHECKS[self.check].suite_batch:
            return max(1, self.traits.batch_size // self.traits.batch_divisor)
        return (self.options.training and self.traits.training_accuracy_batch_size) or ACCURACY_BATCH_SIZE

    def program(self, batch_size: int, threads: int) -> str:
        """Hex digest of all that the compiler sees, which both checks of a cell have in common if their batch size is equal.

        The number of threads is part of it: inductor writes it into the code that it generates for CPUs.
        """
        return _digest({**self.to_dict(), "check": None, "batch_size": batch_size, "threads": threads})[:16]

    def optimizer(self) -> str:
        """The optimizer whose step is part of a training iteration: none, sgd or adam."""
        choice: str = self.options.optimizer
        if choice == "auto":
            own = self.traits.accuracy_optimizer if self.check == "accuracy" else None
            # In float16 Adam divides by squares that are 0.
            is_possible = self.device == "cuda" and self.options.precision != "float16"
            choice = (own or self.traits.training_optimizer) if is_possible else "none"
        return choice if self.options.training else "none"

    def identity(self) -> str:
        """Hex digest (SHA-256) of all fields but the build's label: equal if and only if the same thing is measured."""
        return _digest({**self.to_dict(), "build": None})


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
