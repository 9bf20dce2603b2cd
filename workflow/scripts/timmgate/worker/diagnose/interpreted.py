"""Inductor's loops run as they are described, operation by operation with torch, instead of as C++ that is made of them.

What goes wrong with them then is wrong in the loops, and what does not is wrong in their code. On a CPU, with static shapes.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import sympy
import torch
from torch import Tensor
from torch._inductor.codegen.cpp import CppScheduling
from torch._inductor.virtualized import V

KERNELS: list[Callable[..., None]] = []
"""Kernels that generated programs call, by number."""

HALVES = (torch.bfloat16, torch.float16)

REDUCTIONS = {
    "sum": lambda value, axes: value.sum(axes, keepdim=True),
    "prod": lambda value, axes: _over_flat(value, axes, lambda flat: flat.prod(-1, keepdim=True)),
    "max": lambda value, axes: value.amax(axes, keepdim=True),
    "min": lambda value, axes: value.amin(axes, keepdim=True),
    "any": lambda value, axes: value.bool().sum(axes, keepdim=True) > 0,
    "argmax": lambda value, axes: _over_flat(value, axes, lambda flat: flat.argmax(-1, keepdim=True)),
    "argmin": lambda value, axes: _over_flat(value, axes, lambda flat: flat.argmin(-1, keepdim=True)),
}
"""What is made of values over axes, which all become 1 wide."""

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "truediv": torch.true_divide,
    "floordiv": torch.floor_divide,
    "truncdiv": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "mod": torch.fmod,
    "and_": torch.bitwise_and,
    "or_": torch.bitwise_or,
    "xor": torch.bitwise_xor,
    "invert": torch.bitwise_not,
    "fma": lambda a, b, c: a * b + c,
    "mul_rn": torch.mul,
    "round_to_int": lambda value, dtype: value.round().to(dtype),
    "trunc_to_int": lambda value, dtype: value.trunc().to(dtype),
    "identity": lambda value: value,
}
"""Operations that torch has under another name."""


@dataclass
class Count:
    """Groups of loops that were met, and operators of the last one that was compiled as ever."""

    met: int = 0
    last: str | None = None


@contextmanager
def interpreted(compiled: int = 0) -> Iterator[Count]:
    """Compile so many groups of fused loops as ever, in the order in which they come, and no others."""
    count, generate, generate_outer = Count(), CppScheduling.codegen_node, CppScheduling.codegen_outer_loop_node

    def codegen_node(scheduling: CppScheduling, node: Any) -> None:
        count.met += 1
        if count.met > compiled:
            interpret(scheduling, node)
            return
        count.last = ", ".join(dict.fromkeys(str(origin.target) for origin in _origins(node))) or str(node)
        generate(scheduling, node)

    def codegen_outer_loop_node(scheduling: CppScheduling, node: Any) -> None:
        inner = node.get_outer_nodes()
        if count.met + len(inner) <= compiled:
            count.met += len(inner)
            generate_outer(scheduling, node)
            return
        for each in inner:
            codegen_node(scheduling, each)

    with (
        mock.patch.object(CppScheduling, "codegen_node", codegen_node),
        mock.patch.object(CppScheduling, "codegen_outer_loop_node", codegen_outer_loop_node),
    ):
        yield count


def _origins(node: Any) -> list[Any]:
    """The nodes of the graph that a group of loops computes."""
    return [origin for each in node.get_nodes() for origin in each.node.origins if origin.op == "call_function"]


def interpret(scheduling: CppScheduling, node: Any) -> None:
    """In place of `CppScheduling.codegen_node`: the loops of a node become a kernel in Python, which is called at once."""
    scheduling.flush()  # what was compiled before is called before
    nodes, real = node.get_nodes(), V.graph.scheduler.mutation_real_name
    for each in nodes:
        each.mark_run()
    used = [dep.name for each in nodes for dep in (*each.read_writes.reads, *each.read_writes.writes)]
    names = list(dict.fromkeys(real.get(name, name) for name in used))
    KERNELS.append(Kernel([each._body for each in nodes], names, {name: real.get(name, name) for name in used}))
    wrapper = V.graph.wrapper_code
    name = f"interpreted_{wrapper.next_kernel_suffix()}"
    own = f"__import__({__name__!r}, fromlist=['KERNELS']).KERNELS[{len(KERNELS) - 1}]"
    wrapper.define_kernel(name, own, gpu=False)
    wrapper.generate_kernel_call(name, names, triton=False, arg_types=["void*"] * len(names))


class Kernel:
    """Bodies of loops over buffers, of which `names` are given in each call, in this order."""

    def __init__(self, bodies: list[Any], names: list[str], real: dict[str, str]):
        self._bodies, self._names, self._real = bodies, names, real

    def __call__(self, *tensors: Tensor) -> None:
        memory = Memory(dict(zip(self._names, tensors, strict=True)), self._real)
        for body in self._bodies:
            body.indexing = dict(body.indexing_exprs)
            with V.set_ops_handler(Loops(body, memory)):
                body.root_block()
        memory.write_back()


class Memory:
    """The storages of some tensors, as pointers to these see them: a tensor reaches to the end of its storage."""

    def __init__(self, tensors: dict[str, Tensor], real: dict[str, str]):
        self._real, self._originals, self._copies, self._written = real, {}, {}, {}
        self._places: dict[str, tuple[Any, int]] = {}
        for name, tensor in tensors.items():
            storage = tensor.untyped_storage()
            key = storage.data_ptr(), tensor.dtype
            self._places[name] = key, tensor.storage_offset()
            if key not in self._originals:
                size = storage.nbytes() // tensor.element_size()
                self._originals[key] = tensor.detach().as_strided((size,), (1,), 0)
                self._copies[key] = self._originals[key].clone()
                self._written[key] = torch.zeros(size, dtype=torch.bool)

    def load(self, name: str, at: Tensor) -> Tensor:
        """Elements of a buffer; what is masked out later may be anywhere."""
        key, offset = self._places[self._real[name]]
        return self._copies[key][(at + offset).clamp(0, len(self._copies[key]) - 1)]

    def store(self, name: str, at: Tensor, value: Tensor, accumulate: bool) -> None:
        """Set elements, or add to them."""
        key, offset = self._places[self._real[name]]
        where = ((at + offset).reshape(-1),)
        self._copies[key].index_put_(where, value.to(self._copies[key].dtype).reshape(-1), accumulate=accumulate)
        self._written[key][where] = True

    def write_back(self) -> None:
        """Have the tensors themselves what was stored."""
        for key, written in self._written.items():
            self._originals[key][written] = self._copies[key][written]


class Loops:
    """An ops handler of inductor that computes with whole tensors, one axis for each loop."""

    def __init__(self, body: Any, memory: Memory):
        self._memory = memory
        variables = [*body.iter_vars, *body.reduce_vars]
        self._sizes = [int(size) for size in itertools.chain.from_iterable(body.sizes)]
        self._reduced = tuple(range(len(body.iter_vars), len(variables)))
        self._values: dict[sympy.Symbol, Tensor] = {}
        for axis, (variable, size) in enumerate(zip(variables, self._sizes, strict=True)):
            shape = [size if each == axis else 1 for each in range(len(variables))]
            self._values[variable] = torch.arange(size).reshape(shape)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = FUNCTIONS.get(name) or getattr(torch, name.removeprefix("libdevice_"), None)
        if name.startswith("_") or function is None:
            raise NotImplementedError(f"loops with {name} cannot be interpreted")
        return lambda *args, **kwargs: function(*map(_tensor, args), **kwargs)

    def load(self, name: str, index: sympy.Expr) -> Tensor:
        return _computed(self._memory.load(name, self._index(index)))

    def store(self, name: str, index: sympy.Expr, value: Any, mode: str | None = None) -> None:
        at, value = torch.broadcast_tensors(self._index(index), _tensor(value))
        if mode:  # every turn of the loops adds its own
            at, value = at.expand(self._sizes), value.expand(self._sizes)
        self._memory.store(name, at, value, accumulate=mode == "atomic_add")

    def store_reduction(self, name: str, index: sympy.Expr, value: Any) -> None:
        self.store(name, index, value)

    def reduction(self, dtype: torch.dtype, source_dtype: torch.dtype, reduction_type: str, value: Any) -> Any:
        if reduction_type in ("welford_reduce", "welford_combine"):
            return self._moments(value)
        if reduction_type not in REDUCTIONS:
            raise NotImplementedError(f"a reduction by {reduction_type} cannot be interpreted")
        return REDUCTIONS[reduction_type](self._whole(value), self._reduced)

    def _moments(self, value: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, sum of squared deviations and count, of values or of such triples."""
        if not isinstance(value, tuple):
            value = value, torch.zeros(()), torch.ones(())
        mean, squares, count = map(self._whole, value)
        total = count.sum(self._reduced, keepdim=True)
        overall = (mean * count).sum(self._reduced, keepdim=True) / total
        deviations = (squares + count * (mean - overall).square()).sum(self._reduced, keepdim=True)
        return overall, deviations, total

    def _whole(self, value: Any) -> Tensor:
        return _tensor(value).expand(self._sizes)

    def constant(self, value: Any, dtype: torch.dtype) -> Tensor:
        return _computed(torch.tensor(value, dtype=dtype))

    def index_expr(self, expr: sympy.Expr, dtype: torch.dtype) -> Tensor:
        return self._index(expr).to(dtype)

    def value_expr(self, expr: sympy.Expr, dtype: torch.dtype) -> Tensor:
        return self._index(expr).to(dtype)

    def to_dtype(self, value: Any, dtype: torch.dtype, *_: Any, **__: Any) -> Tensor:
        return _computed(_tensor(value).to(dtype))

    def to_dtype_bitcast(self, value: Any, dtype: torch.dtype, source_dtype: torch.dtype) -> Tensor:
        return _computed(_tensor(value).to(source_dtype).view(dtype))

    def masked(self, mask: Any, body: Callable[[], Any], other: Any) -> Tensor:
        value = _tensor(body())
        return torch.where(_tensor(mask), value, torch.tensor(other).to(value.dtype))

    def where(self, condition: Any, value: Any, other: Any) -> Tensor:
        return torch.where(_tensor(condition).bool(), _tensor(value), _tensor(other))

    def indirect_indexing(self, value: Any, size: Any, check: bool = True, wrap_neg: bool = True) -> sympy.Symbol:
        variable, value = sympy.Symbol(f"interpreted_{len(self._values)}", integer=True), _tensor(value).long()
        self._values[variable] = torch.where(value < 0, value + self._index(size), value) if wrap_neg else value
        return variable

    def check_bounds(self, *_: Any) -> None:
        """Indices are taken as they are."""

    def device_assert_async(self, *_: Any) -> None:
        """What a model asserts is not asserted here."""

    def output(self, *_: Any) -> None:
        """Everything is stored already."""

    def _index(self, expr: Any) -> Tensor:
        return _tensor(_evaluated(sympy.sympify(expr), self._values))


def _evaluated(expr: sympy.Expr, values: dict[sympy.Symbol, Tensor]) -> Any:
    """An index with tensors for its variables. Raises NotImplementedError for one that it cannot compute."""
    if expr.is_Integer:
        return int(expr)
    if expr.is_Symbol:
        if expr not in values:
            raise NotImplementedError(f"an index with {expr} cannot be interpreted")
        return values[expr]
    args = [_evaluated(each, values) for each in expr.args]
    match type(expr).__name__:
        case "Add":
            return sum(args)
        case "Mul":
            return math.prod(args)
        case "Pow":
            return args[0] ** args[1]
        case "FloorDiv" | "CleanDiv" | "IntTrueDiv":
            return args[0] // args[1]
        case "ModularIndexing":
            return args[0] // args[1] % args[2]
        case "Mod" | "PythonMod":
            return args[0] % args[1]
        case "Identity":
            return args[0]
        case "Min":
            return _extreme(torch.minimum, args)
        case "Max":
            return _extreme(torch.maximum, args)
    raise NotImplementedError(f"an index with {type(expr).__name__} cannot be interpreted")


def _extreme(function: Callable[..., Tensor], args: list[Any]) -> Tensor:
    first, *others = map(_tensor, args)
    for other in others:
        first = function(first, other)
    return first


def _tensor(value: Any) -> Any:
    return torch.tensor(value) if isinstance(value, (bool, int, float)) else value


def _computed(value: Tensor) -> Tensor:
    """As loops compute: halves in float32."""
    return value.float() if value.dtype in HALVES else value


def _over_flat(value: Tensor, axes: tuple[int, ...], function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of the last axes, taken together; the axes are the last ones."""
    kept = value.shape[: value.ndim - len(axes)]
    return function(value.reshape(*kept, -1)).reshape(*kept, *(1 for _ in axes))
