"""How much memory a cell may be expected to take, from what the suite's table says of its model. Deliberately too much.

`cost` is millions of parameters times input pixels over 224 x 224, which is never less than the parameters of a usual input.
"""

import math
from collections.abc import Collection

from timmgate.core.checks import CHECKS
from timmgate.core.spec import Spec

SUPERVISION_MB = 1000
"""What a job takes beside the processes of its cell: the supervisor, and on a cluster Snakemake itself."""

BASE_BYTES, THREAD_BYTES = 3.5e9, 0.5e9
"""Of the processes themselves: torch, inductor and images; and of a process of the compiler's pool, for each thread."""

WEIGHTS_BYTES = 44e6
"""Per million parameters: float64 and float32 weights, for the reference, eager and compiled, the gradients of each, and
those of compiled's first iteration."""

UNKNOWN_COST = 100.0
"""About that of a ViT-B/16, more than that of most models; no limit is made of what follows from it."""

IMAGE_BYTES, IMAGE_BYTES_PER_COST = 120e6, 8e6
"""Activations of one image in float32 training: what small models take, and what large ones take beside that."""

INFERENCE_SHARE = 0.3
"""Of the activations of training that inference keeps at a time."""


def memory_bytes(specs: Collection[Spec], cost: float | None, threads: int) -> int:
    """Bytes that the processes of one cell may occupy together on the host, in whole GB; a guess if `cost` is None."""
    cost = UNKNOWN_COST if cost is None else cost
    of_model = cost * WEIGHTS_BYTES + max(_activations(spec, cost) for spec in specs)
    return math.ceil((processes_bytes(threads) + of_model) / 1e9) * 10**9


def processes_bytes(threads: int) -> int:
    """Of the processes themselves, without a model."""
    return int(BASE_BYTES + threads * THREAD_BYTES)


def _activations(spec: Spec, cost: float) -> float:
    if spec.device != "cpu":
        return 0.0
    share = 1.0 if spec.options.training else INFERENCE_SHARE
    return CHECKS[spec.check].width * share * spec.requested_batch_size * (IMAGE_BYTES + IMAGE_BYTES_PER_COST * cost)
