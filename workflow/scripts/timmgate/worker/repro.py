"""What a script needs that repeats a cell without us: weights and inputs, and the limits that its result is held to.

Nothing is compiled here, so that a cell whose compiler crashes or hangs has its script too. The folder gets
`weights.safetensors`, the state dict, and `inputs.safetensors`: `input.0` and so on, in training `cotangent.0` and so on,
and for each tensor that is judged `limits.<name>`, its scale and then its limits in the order of `STATISTICS`, those of
slices for up to two dimensions, and that of the contrast for outputs in half precision.
"""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from timmgate.core.run_options import RunOptions
from timmgate.core.spec import Spec
from timmgate.worker import accuracy, backends, iterations, models, strict_verdict, torch_device
from timmgate.worker.calls import Call, first_calls, is_floats
from timmgate.worker.compare import compare_leaves
from timmgate.worker.compile_cache import Cache
from timmgate.worker.cotangent import cotangents, differentiable
from timmgate.worker.leaf_errors import Reference
from timmgate.worker.training_step import Setup, fresh, make

STATISTICS = ("rms", "max", "projection", "mean", "slice_mean_0", "slice_rms_0", "slice_mean_1", "slice_rms_1", "contrast")
"""Order of the limits of a tensor."""

Limits = dict[str, list[float]]
"""By name of a tensor, its scale and the limits of its statistics."""


@dataclass
class Facts:
    """What the script's text depends on and only torch knows.

    * `refuses_drop`: timm's constructor of the model does not take the arguments for dropout.
    * `dtype`: of weights and inputs; `amp_dtype`: of autocast, or None.
    * `arguments`, `keywords`: of the module's forward, as text: names of inputs, and what is no tensor as it is.
    * `in_place`: it writes into its first argument, and must be given a copy.
    * `is_tree`: it returns more than one tensor.
    * `has_reference`: float64 runs.
    * `inductor_config`: what is set in torch._inductor.config.
    """

    refuses_drop: bool
    dtype: str
    amp_dtype: str | None
    arguments: list[str]
    keywords: dict[str, str]
    in_place: bool
    is_tree: bool
    has_reference: bool
    inductor_config: dict[str, Any]


class Called(nn.Module):
    """A module with the other arguments that it was called with, in the dtype of the first, which is copied `in_place`."""

    def __init__(self, module: nn.Module, others: tuple[Any, ...], keywords: Mapping[str, Any], in_place: bool):
        super().__init__()
        self.module, self._others, self._keywords, self._in_place = module, others, dict(keywords), in_place

    def forward(self, first: Tensor) -> Any:
        """The module's own output."""
        first = first.clone() if self._in_place else first
        others = [_as(value, first.dtype) for value in self._others]
        return self.module(first, *others, **{name: _as(value, first.dtype) for name, value in self._keywords.items()})


def _as(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def recorded(spec: Spec, model: nn.Module, images: Tensor, name: str) -> Call:
    """The first call of the module of this name when eager runs.

    Raises AttributeError for a module that there is not, ValueError for one that is not called with a tensor of floats.
    """
    call = first_calls(spec, model, images, [name]).get(name)
    if call is None or not is_floats(next(iter(call.arguments), None)):
        raise ValueError(f"the module {name!r} is not called with a tensor of floats first")
    return call


def strict_limits(judge: strict_verdict.Judge) -> Limits:
    """What null runs allow."""
    scales, allowed = judge.reference.scales(), judge.limits()
    judged = [name for name in scales if name in allowed]
    return {name: [scales[name], *(allowed[name][each] for each in STATISTICS if each in allowed[name])] for name in judged}


def dynamo_limits(spec: Spec, model: nn.Module, images: Tensor) -> Limits:
    """What the dynamo rule allows, of the rms alone."""
    reference = accuracy.run_exact(spec, model, images).leaves
    eager = iterations.run(spec, copy.deepcopy(model), images).leaves
    found = {leaf.leaf: leaf for leaf in compare_leaves(eager, eager, reference, accuracy.rule(spec, True))}
    scales = Reference(reference, models.computing_dtype(spec)).scales()
    return {
        name: [scale, found[name].allowed_error / scale]
        for name, scale in scales.items()
        if name in found and found[name].allowed_error is not None
    }


def prepare(spec: Spec, setup: Setup, folder: Path, module: str | None, rule: str | None) -> Facts:
    """Write the files, and say what the script's text depends on. `rule` is strict or dynamo; None: nothing is judged."""
    torch.set_num_threads(setup.threads)
    torch_device.set_deterministic(True)
    model, images = make(spec, setup)
    call = Call((strict_verdict.resized(spec, images) if rule == "strict" else images,), {})
    if module:
        call = recorded(spec, model, images, module)
        model = model.get_submodule(module)
    arguments, keywords = call.arguments, call.keywords
    inputs = {f"input.{number}": value for number, value in enumerate(arguments) if isinstance(value, Tensor)}
    inputs |= {f"input.{name}": value for name, value in keywords.items() if isinstance(value, Tensor)}
    state = model.state_dict()
    subject = Called(model, arguments[1:], keywords, call.in_place) if module else model
    with torch.set_grad_enabled(spec.options.training), backends.configured(spec):
        output = returned(spec, subject, fresh(spec, arguments[0])) if rule else None
        is_tree = not isinstance(output, Tensor) and output is not None
        if rule == "strict" and spec.options.training:
            drawn = cotangents(differentiable(output), spec.seed)
            inputs |= {f"cotangent.{number}": cotangent for number, cotangent in enumerate(drawn)}
        del output  # and its graph
        limits, has_reference = Limits(), True
        if rule == "strict":
            families = strict_verdict.families_of_a_module(spec, arguments[0]) if module else None
            judge = strict_verdict.prepare(spec, subject, arguments[0], families)
            limits, has_reference = strict_limits(judge), judge.is_exact
        elif rule == "dynamo":
            limits = dynamo_limits(spec, model, images)
    named = {_own(name) if module else name: torch.tensor(each, dtype=torch.float64) for name, each in limits.items()}
    inputs |= {f"limits.{name}": each for name, each in named.items()}
    folder.mkdir(parents=True, exist_ok=True)
    save(state, folder / "weights.safetensors")
    save(inputs, folder / "inputs.safetensors")
    return Facts(
        refuses_drop=refuses_drop(spec.model),
        dtype=_name(models.cast_dtype(spec)),
        amp_dtype=_name(models.amp_dtype(spec)),
        arguments=[_text(str(number), value) for number, value in enumerate(arguments)],
        keywords={name: _text(name, value) for name, value in keywords.items()},
        in_place=call.in_place,
        is_tree=is_tree,
        has_reference=has_reference,
        inductor_config=changes(spec),
    )


def returned(spec: Spec, model: nn.Module, images: Tensor) -> Any:
    """What the model returns."""
    with models.autocast(spec, images):
        return copy.deepcopy(model)(images)


def changes(spec: Spec) -> dict[str, Any]:
    """What the cell sets in torch._inductor.config and is not so by itself."""
    wanted = backends.inductor_changes(spec)
    return {name: value for name, value in wanted.items() if value != getattr(torch._inductor.config, name)}


def refuses_drop(model: str) -> bool:
    """Whether an architecture refuses timm's arguments for dropout."""
    try:
        timm.create_model(model, in_chans=3, drop_rate=0.0, drop_path_rate=None, drop_block_rate=None)
    except TypeError:
        return True
    return False


def save(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file; tensors that share memory are written apart."""
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)


def _own(name: str) -> str:
    """The name of a leaf without what `Called` put before a parameter's."""
    return name.replace(".module.", ".", 1)


def _text(name: str, value: Any) -> str:
    """An argument as the script has it, in the dtype of the first one."""
    if not isinstance(value, Tensor):
        return repr(value)
    return f'inputs["input.{name}"]{".to(images.dtype)" if value.is_floating_point() else ""}'


def _name(dtype: torch.dtype | None) -> str | None:
    return str(dtype).removeprefix("torch.") if dtype else None


def study(
    spec: Spec, run: RunOptions, number: int | None, batch_size: int, folder: str, module: str | None, rule: str | None
) -> list[dict[str, Any]]:
    """The facts of the script of a cell or of a module of its model, in one row; what it needs is in the folder then."""
    setup = Setup.of(run, Cache(run.cache), batch_size, number)
    return [asdict(prepare(spec, setup, Path(folder), module, rule))]
