"""timm models and their inputs, made as docs/protocol.md says ("Model and images")."""

import copy
import hashlib
import itertools
import platform
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import create_transform, resolve_data_config

from timmgate.core.names import check_name
from timmgate.core.spec import SEED, SEEDED_WEIGHTS, Spec
from timmgate.worker import torch_device
from timmgate.worker.lively_weights import enliven
from timmgate.worker.photos import load as load_photos

STATISTICS_IMAGES = 4
"""Images that the running statistics of random weights are set by."""

PHOTO_SHIFT = 16
"""Pixels by which photos are rolled for the next seed."""

CAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def create(spec: Spec, weights: Path | None = None) -> torch.nn.Module:
    """The model with the protocol's arguments, on its device, in train or eval mode, not yet cast.

    Its weights are the state dict in the file `weights`, or drawn from the seed where the spec says so. Raises
    UnknownModelError for a name that timm does not know, ValueError for a file too many or too few.
    """
    check_name(spec.model, timm)
    arguments = {"in_chans": 3, **_source(spec, weights)}
    torch_device.seed_everything(spec.seed)
    try:
        model = timm.create_model(spec.model, **arguments, drop_rate=0.0, drop_path_rate=None, drop_block_rate=None)
    except TypeError:  # an architecture that refuses the drop arguments
        torch_device.seed_everything(spec.seed)
        model = timm.create_model(spec.model, **arguments)
    if spec.weights == "random":
        enliven(model, spec.seed, noise(spec, input_size(spec, model), STATISTICS_IMAGES, "cpu"))
    training = spec.options.training and not spec.options.use_eval_mode
    return model.to(spec.device, memory_format=memory_format(spec)).train(training)


def _source(spec: Spec, weights: Path | None) -> dict[str, Any]:
    """timm's arguments for the weights.

    `custom_load` says that a file is in the architecture's own format, as only NumPy's are. Older versions of timm say so of
    every file of some architectures.
    """
    if (spec.weights in SEEDED_WEIGHTS) != (weights is None):
        raise ValueError(f"{spec.weights} weights, but the request names {weights or 'no file'}")
    if weights is None:
        return {}
    return {"pretrained": True, "pretrained_cfg_overlay": {"file": str(weights), "custom_load": weights.suffix == ".npz"}}


def skipped(spec: Spec) -> bool:
    """Whether the suite's table says not to run this model on this device or machine."""
    return bool({spec.device, f"{spec.device}_{platform.machine()}"} & set(spec.traits.skip_on))


def input_size(spec: Spec, model: torch.nn.Module) -> tuple[int, int, int]:
    """Channels, height, width of one image; for some models it differs between training and inference."""
    return resolve_data_config({}, model=model, use_test_size=not spec.options.training)["input_size"]


def images(spec: Spec, size: tuple[int, int, int], batch_size: int) -> torch.Tensor:
    """One batch, float32 (batch, *size) on the device."""
    batch = (photos if kind_of_images(spec) == "photos" else noise)(spec, size, batch_size)
    return batch.to(memory_format=memory_format(spec))


def kind_of_images(spec: Spec) -> str:
    """`photos` with packaged weights, which have something to see in them, else `noise`."""
    return "photos" if spec.weights == "packaged" else "noise"


def noise(spec: Spec, size: tuple[int, int, int], batch_size: int, device: str | None = None) -> torch.Tensor:
    """Integers below 256, standardised as a whole."""
    torch.manual_seed(spec.seed)
    batch = torch.randint(256, (batch_size, *size), device=device or spec.device).to(torch.float32)
    return (batch - batch.mean()) / batch.std()


def photos(spec: Spec, size: tuple[int, int, int], batch_size: int) -> torch.Tensor:
    """Photos prepared as timm does for the model at inference, the same ones again and again until the batch is full.

    With another seed than the usual one they are rolled, so that it has other images.
    """
    config = resolve_data_config(
        {"input_size": size}, pretrained_cfg=timm.get_pretrained_cfg(spec.model).to_dict(), use_test_size=True
    )
    transform = create_transform(**config, is_training=False)
    prepared = itertools.cycle([transform(photo) for photo in load_photos()])
    batch, shift = torch.stack(list(itertools.islice(prepared, batch_size))), PHOTO_SHIFT * (spec.seed - SEED)
    return batch.roll((shift, shift), (-2, -1)).to(spec.device)


def cast_dtype(spec: Spec) -> torch.dtype:
    """The dtype that model and images are cast to: float32 means no cast."""
    if spec.traits.force_amp:
        return torch.float32
    return CAST_DTYPES.get(spec.options.precision, torch.float32)


def computing_dtype(spec: Spec) -> torch.dtype:
    """The dtype of convolutions and matrix products."""
    return amp_dtype(spec) or cast_dtype(spec)


def amp_dtype(spec: Spec) -> torch.dtype | None:
    """The dtype of autocast, or None where the model runs without it.

    A model of the suite's force_amp set runs a bfloat16 or float16 mode under autocast of that same dtype.
    """
    if spec.options.precision == "amp":
        return torch_device.autocast_dtype(spec.device, spec.options.amp_dtype)
    return CAST_DTYPES.get(spec.options.precision) if spec.traits.force_amp else None


def autocast(spec: Spec, images: torch.Tensor) -> AbstractContextManager:
    """Autocast where the mode runs under it, but never for the float64 reference."""
    dtype = amp_dtype(spec)
    if dtype is None or images.dtype == torch.float64:
        return nullcontext()
    return torch.autocast(spec.device, dtype=dtype)


def memory_format(spec: Spec) -> torch.memory_format:
    """channels_last if the mode asks for it, else whatever the tensor has."""
    return torch.channels_last if spec.options.channels_last else torch.preserve_format


def weights_hash(model: torch.nn.Module) -> str:
    """SHA-256 of the state dict: names, dtypes, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Its parameters, then its buffers, by name; a state dict leaves out some buffers."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def set_state(model: torch.nn.Module, values: Mapping[str, torch.Tensor]) -> None:
    """Copy the values of another `state` into that of the model; a buffer that is in one of them alone stays."""
    both = [(tensor, values[name]) for name, tensor in state(model).items() if name in values]
    assign([tensor for tensor, _ in both], [value for _, value in both])


def cast(spec: Spec, model: torch.nn.Module) -> torch.nn.Module:
    """The model with its tensors of floats in the dtype of the mode, if that is another one than they were made in.

    Not those of complex numbers, of which half precision has none.
    """
    dtype = cast_dtype(spec)
    if dtype == torch.float32:
        return model
    return model._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)


def in_float64(model: torch.nn.Module) -> torch.nn.Module:
    """A copy of the model in float64, complex tensors in complex128."""
    return copy.deepcopy(model).double()._apply(lambda each: each.to(torch.complex128) if each.is_complex() else each)


def _is_expanded(tensor: torch.Tensor) -> bool:
    return tensor.layout == torch.strided and any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )


@torch.no_grad()
def assign(tensors: Iterable[torch.Tensor], values: Iterable[torch.Tensor]) -> None:
    """Copy values into tensors, one for each.

    Not into a buffer that its model has since made anew, in another shape, nor into an expanded one: nobody can write to it.
    """
    for tensor, value in zip(tensors, values, strict=True):
        if tensor.shape == value.shape and not _is_expanded(tensor):
            tensor.copy_(value)
