"""How much memory a cell may be expected to take, from what the suite's table says of its model. Deliberately too much."""

import math
from collections.abc import Collection

from timmgate.spec import Spec

BASE_BYTES = 4e9
"""Of the processes themselves: torch, inductor, the C++ compiler, and images."""

BYTES_PER_COST = 24e6
"""Per million parameters: weights in float64 and float32, for the reference, eager, compiled, and the gradients of each."""

BYTES_PER_COST_AND_IMAGE = {True: 25e6, False: 8e6}
"""In training and at inference, on a CPU: activations, of the float64 reference at worst. `cost` is millions of parameters
times input pixels over 224 x 224 (see the suite's tables), which is a rough measure of them.
"""


def memory_bytes(specs: Collection[Spec], cost: float) -> int:
    """Bytes that the processes of one cell may occupy together on the host, in whole GB."""
    images = max(spec.requested_batch_size if spec.device == "cpu" else 0 for spec in specs)
    activations = max(BYTES_PER_COST_AND_IMAGE[spec.options.training] for spec in specs) * images
    return math.ceil((BASE_BYTES + cost * (BYTES_PER_COST + activations)) / 1e9) * 10**9
