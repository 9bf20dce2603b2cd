"""The faults that can be put into a compiled program, to see whether the gate finds them. Needs no torch.

A fault is a backend like any other, `fault:<name>[@place]`: it breaks the captured graph in one known way, and the rest of
it runs as in eager. What each does is in `worker.faults`; here are names, sizes and places, and what it is modelled on.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from timmgate.core.errors import did_you_mean

PREFIX = "fault:"

PLACES = {
    "first": "the first node that it applies to",
    "middle": "the middle one",
    "last": "the last one",
    "one": "one drawn at random, always the same for one fault and number of nodes",
    "all": "every node that it applies to",
}
"""Where a fault can be, in a graph's order."""

DEFAULT_PLACE = "middle"

MISCOMPILATIONS = {
    93262: "bilinear interpolation samples other positions",
    93708: "a sum of half precision numbers is accumulated in half precision",
    94775: "with ceil_mode, max pooling has a last row of -inf",
    98852: "the last ReLU of three is missing",
    99686: "concatenated parts are put back in the order before they were permuted",
    100987: "a window of average pooling over the border is divided by the full window's size",
    108863: "folded convolutions keep the weights that they were compiled with",
    108963: "the second of two equal values is zero",
    117331: "a convolution adds its result into a buffer that it still reads",
    121253: "the factor of an addmm's bias is ignored under freezing",
    124808: "a batch norm is folded into its convolution once more at each call in the graph",
    126848: "denormal numbers become zero",
    135758: "denormal numbers become zero",
    136662: "of two accumulations into one element, the gradient has one",
    138908: "an in-place addition is done twice",
    144462: "padding is filled with the tensor's own value",
    149278: "the last element of an index is zero",
    161944: "the exponential is the fast approximation",
    167313: "the factors alpha and beta of an addmm are ignored",
    172693: "a reshape takes a strided tensor for contiguous",
    174049: "attention is scaled by the default instead of the given factor",
    174078: "dropout draws its mask in the order of another memory layout",
    174963: "a channels_last tensor's memory is read as if it were contiguous",
    175154: "nearest interpolation takes the neighbouring pixel",
    178964: "the indices of a maximum are all zero",
    179931: "all samples but the first are read with another stride than they were written",
    180164: "the gradient of what a scatter overwrites is zero, or too large by a factor",
    182012: "the gradient of what a scatter overwrites is zero",
    183986: "writes to the rows of an expanded tensor all go to the same memory",
    189799: "the sign of zero is lost",
    189895: "the border of a padding gets the value instead of the fill",
    190938: "the incoming gradient belongs to other rows",
    192748: "a buffer that is mutated in a later call ends in SIGSEGV",
    192905: "a layer runs the body that was specialised for another layer",
    193061: "slices of a gradient are never written",
    194281: "two calls with the same input differ, by memory that was never written",
    195320: "a permuted key is taken for a transposed one",
    195422: "an in-place update of an input is dropped",
    195582: "the end of a tensor is memory that was never written",
    195845: "a reduction also counts the rows that fill up the last block",
    196468: "attention takes the softmax over another axis than the given one",
    197039: "the backward pass recomputes a value from a tensor that was updated in between",
    197888: "indices in another memory format send gradients to other elements",
    198201: "nearest interpolation resamples an axis whose size does not change",
    198333: "four neighbours share a dropout mask, and forward and backward use different ones",
    158643: "dropout takes other numbers from the generator than eager does",
}
"""Published cases that faults are modelled on: the number of an issue or pull request of pytorch/pytorch, and in our words
what it saw. They are no list of open bugs: most are fixed.
"""

Size = float | str


@dataclass(frozen=True)
class Fault:
    """One fault.

    * `sizes`: each makes a fault of its own, named `<name>-<size>`; none means that there is nothing to vary.
    * `issues`: keys of MISCOMPILATIONS with the same mechanism.
    * `backward`: it is in the backward graph, and leaves the forward one alone.
    * `exact`: what it changes can be computed in float64 too; else only in the dtype of the mode.
    * `has_places`: it is in one of a graph's nodes; else in the program as a whole.
    """

    name: str
    family: str
    description: str
    sizes: tuple[Size, ...] = ()
    issues: tuple[int, ...] = ()
    backward: bool = False
    exact: bool = True
    has_places: bool = True

    @property
    def names(self) -> dict[str, Size | None]:
        """Size by full name."""
        if not self.sizes:
            return {self.name: None}
        return {f"{self.name}-{size if isinstance(size, str) else format(size, 'g')}": size for size in self.sizes}


def _family(
    family: str, *faults: tuple, backward: bool = False, exact: bool = True, has_places: bool = True
) -> tuple[Fault, ...]:
    """Faults of one family, from name, description, sizes and issues of each."""

    def fault(name: str, description: str, sizes: tuple[Size, ...] = (), issues: tuple[int, ...] = ()) -> Fault:
        return Fault(name, family, description, sizes, issues, backward, exact, has_places)

    return tuple(fault(*each) for each in faults)


FAULTS = {
    fault.name: fault
    for fault in (
        *_family(
            "values",
            ("scale-output", "a node's result times this", (5.0, 1.1, 1.01)),
            ("shift-output", "this share of the root mean square is added to a node's result", (0.1, 0.01)),
            ("scale-weight", "the weight of a convolution or linear layer times this", (1.1, 1.01)),
            ("scale-weight-element", "one element of a weight times this", (2.0,)),
            ("scale-bias", "the bias of a convolution or linear layer times this", (2.0,), (121253, 167313)),
            ("scale-attention", "the scale of the attention scores times this", (1.02, 2.0), (174049,)),
            ("scale-epsilon", "the epsilon of a norm times this", (0.0, 10.0, 1000.0)),
            ("scale-activation", "the input of an activation times this, its output divided by it", (1.1, 1.01)),
            ("approximate-activation", "GELU by tanh and tanh by a rational function, or the other way round"),
            ("hard-activation", "SiLU, sigmoid and GELU by their piecewise or cheaper variants"),
            ("approximate-exponential", "exponential of sigmoid, SiLU and softmax with an error of 1e-4", (), (161944,)),
            (
                "lower-precision",
                "inputs of a convolution or matrix product are rounded to this dtype",
                ("tf32", "float16", "bfloat16", "float8_e5m2"),
            ),
            ("scale-norm-twice", "the weight of a batch norm is multiplied twice", (), (124808,)),
            ("unbiased-variance", "a norm divides by the unbiased variance"),
            ("mean-divisor", "a mean divides by one more than there are elements"),
            ("mean-padding", "a mean counts a block of padding with the value 0.25", (), (195845,)),
            ("average-pool-divisor", "average pooling divides by the full window at the border", (), (100987,)),
            ("drop-factor", "a multiplication by a number is dropped", (), (167313,)),
        ),
        Fault(
            "half-accumulation",
            "values",
            "partial sums of convolutions, matrix products and means are rounded to half precision",
            issues=(93708,),
            exact=False,
        ),
        *_family(
            "indices",
            ("reverse-batch", "a node's samples in reverse order"),
            ("rotate-batch", "every sample is its neighbour"),
            ("broadcast-sample", "every sample is the first one", (), (183986,)),
            ("lose-sample", "the last sample is zero"),
            ("batch-stride", "samples are read with a stride that is too long by one element", (), (179931,)),
            ("zero-tail", "the last elements of the last axis are zero, this many", (1.0, 4.0), (149278,)),
            ("repeat-tail", "the last element of the last axis is the first one"),
            ("garbage-tail", "the last element of the last axis is 1e4", (), (195582,)),
            ("zero-channel", "one channel is zero"),
            ("swap-channels", "the first two channels are exchanged"),
            ("misread-layout", "channels_last memory is read as contiguous", (), (172693, 174963)),
            ("flip-kernel", "the kernel of a convolution is mirrored"),
            ("transpose-weight", "a square weight is transposed"),
            ("shift-padding", "the window of a convolution or pooling is one pixel off"),
            ("fill-padding", "padding repeats the border instead of zeros", (), (144462, 189895)),
            ("softmax-axis", "the softmax of an attention is over the queries", (), (196468,)),
            ("permute-keys", "keys belong to their neighbours' values", (), (195320,)),
            ("mean-axis", "a mean over several axes is over the last one, at the first element of the others"),
            ("swap-parts", "concatenated parts are in reverse order", (), (99686,)),
            (
                "shift-index",
                "gathered elements, and interpolated pixels, are the neighbours",
                (),
                (93262, 175154, 198201),
            ),
            ("shift-roll", "a cyclic shift goes one too far"),
        ),
        *_family(
            "structure",
            ("drop-skip", "an addition without its earlier operand, the skip connection"),
            ("weaken-skip", "the skip connection times this", (0.9, 0.99)),
            ("drop-branch", "an addition without its later operand, the branch", (), (108963,)),
            ("overwrite-skip", "the skip connection has been overwritten by the branch", (), (117331,)),
            ("drop-bias", "a convolution or linear layer without its bias"),
            ("drop-affine", "a norm without weight and bias"),
            ("drop-activation", "an activation is missing", (), (98852,)),
            ("replace-activation", "ReLU6, SiLU, GELU and others by ReLU, ReLU by leaky ReLU"),
            ("ignore-mask", "attention without its mask or bias"),
            ("swap-inputs", "the operands of a difference or quotient, or query and key, are exchanged"),
            ("reuse-weight", "a layer uses the weight of an earlier one of the same shape", (), (192905,)),
        ),
        *_family(
            "gradients",
            ("zero-gradient", "a gradient is zero", (), (180164, 182012)),
            ("negate-gradient", "a gradient has the other sign"),
            ("scale-gradient", "a gradient times this", (2.0, 1.01), (180164,)),
            ("unwritten-gradient", "the last row of a gradient is zero", (), (193061,)),
            ("lose-gradient-sample", "the last sample's share of a gradient is lost"),
            ("rotate-gradient", "a gradient belongs to the neighbouring samples", (), (190938,)),
            ("misread-gradient", "a gradient's channels_last memory is read as contiguous", (), (197888,)),
            ("lose-gradient-path", "where gradients meet, one of them is lost", (), (136662,)),
            ("double-gradient-path", "where gradients meet, one is added twice", (), (138908,)),
            ("ignore-activation-gradient", "the derivative of an activation is 1"),
            ("overwrite-saved", "the derivative of an activation is taken at its output", (), (197039,)),
            ("first-of-pool-gradient", "the gradient of max pooling goes to the first element", (), (178964,)),
            ("other-dropout-mask", "the backward pass has another dropout mask", (), (198333,)),
            ("lower-gradient-precision", "gradients that go into a product are rounded to this dtype", ("bfloat16",)),
            ("gradient-nan", "one element of a gradient is NaN"),
            ("gradient-infinity", "one element of a gradient is infinite"),
            backward=True,
        ),
        *_family(
            "state",
            ("keep-statistics", "batch norm does not update its running statistics", (), (195422,)),
            ("update-twice", "batch norm updates its running statistics twice", (), (138908,)),
            ("scale-momentum", "the momentum of a batch norm times this", (2.0, 1.1)),
            ("biased-statistics", "the running variance of a batch norm is the biased one"),
            ("stop-counter", "a batch norm does not count its batches"),
            ("batch-statistics", "a batch norm at inference uses the batch's statistics"),
            ("running-statistics", "a batch norm in training uses its running statistics"),
            ("stale-weight", "a layer keeps the weight of the first call", (), (108863,)),
            ("stale-result", "a node gives the result of the first call again"),
            ("dropout-at-inference", "a tenth of the elements is dropped at inference"),
            ("drop-dropout", "dropout does nothing in training"),
            ("shift-random", "random numbers are drawn after others that eager does not draw", (), (158643,)),
            ("repeat-random", "four neighbours share a random number", (), (198333,)),
            ("reorder-random", "random numbers are used in another order", (), (174078,)),
        ),
        *_family(
            "special",
            ("one-nan", "one element is NaN"),
            ("all-nan", "every element is NaN"),
            ("one-infinity", "one element is infinite"),
            ("pool-infinity", "max pooling has a last row of -inf", (), (94775,)),
        ),
        *_family(
            "special",
            ("flush-denormals", "numbers below the smallest normal one become zero", (), (126848, 135758)),
            ("negative-zero", "zeros have a negative sign", (), (189799,)),
            exact=False,
        ),
        *_family(
            "process",
            ("raise-compile", "compiling raises an exception"),
            ("raise-run", "the compiled forward pass raises an exception"),
            ("hang-compile", "compiling never ends"),
            ("hang-run", "the compiled forward pass never ends"),
            ("exit", "the process ends with exit code 3"),
            ("kill", "the process gets SIGKILL"),
            ("segfault", "the process dies of SIGSEGV", (), (192748,)),
            ("exhaust-memory", "memory is allocated without end"),
            ("recompile", "every call compiles again"),
            has_places=False,
        ),
        Fault(
            "raise-backward", "process", "the compiled backward pass raises an exception", backward=True, has_places=False
        ),
        *_family(
            "process",
            ("wrong-first", "wrong in the first call alone: a node's result times this", (1.1,)),
            ("wrong-later", "right in the first call; from the second on, a node's result times this", (1.1,)),
            ("wrong-other-batch", "wrong only at another batch size than the first: a node's result times this", (1.1,)),
            ("wrong-at-random", "one element differs from call to call", (), (194281,)),
        ),
    )
}
"""All faults by name, without their sizes."""

NAMES = {name: (fault, size) for fault in FAULTS.values() for name, size in fault.names.items()}
"""Fault and size by full name."""


class FaultNotApplicable(Exception):
    """The model has nothing that this fault could break."""


class UnknownFaultError(ValueError):
    """There is no fault of that name or no such place; the message has near matches."""


@dataclass(frozen=True)
class Choice:
    """A fault with its size and its place; `place` is None where the fault has none."""

    fault: Fault
    size: Size | None
    place: str | None

    def __str__(self) -> str:
        name = next(name for name, size in self.fault.names.items() if size == self.size)
        return f"{PREFIX}{name}" + (f"@{self.place}" if self.place else "")


def is_fault(backend: str) -> bool:
    """Whether a backend of this name is meant to be a fault."""
    return backend.startswith(PREFIX)


def parse(backend: str) -> Choice:
    """What `fault:<name>[@place]` means. Raises UnknownFaultError."""
    match = re.fullmatch(rf"{PREFIX}([^@]*)(?:@(.*))?", backend)
    if match is None:
        raise UnknownFaultError(f"{backend!r} is not of the form {PREFIX}<name>[@place]")
    name, place = match.groups()
    if name not in NAMES:
        sizes = FAULTS[name].names if name in FAULTS else ()
        hint = f"; its sizes are {', '.join(sizes)}" if sizes else did_you_mean(name, NAMES)
        raise UnknownFaultError(f"there is no fault {name!r}{hint}")
    fault, size = NAMES[name]
    if not fault.has_places:
        if place is not None:
            raise UnknownFaultError(f"the fault {name!r} has no places")
        return Choice(fault, size, None)
    place = DEFAULT_PLACE if place is None else place
    if place not in PLACES:
        raise UnknownFaultError(f"there is no place {place!r} for a fault{did_you_mean(place, PLACES)}")
    return Choice(fault, size, place)


def choices() -> Iterator[Choice]:
    """Every fault in every size and place."""
    for fault, size in NAMES.values():
        for place in PLACES if fault.has_places else (None,):
            yield Choice(fault, size, place)
