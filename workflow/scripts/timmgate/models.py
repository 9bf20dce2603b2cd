"""timm models and their inputs, made as the protocol says (section 2)."""

import hashlib
from difflib import get_close_matches

import timm
import torch
from timm.data import resolve_data_config

from timmgate import devices
from timmgate.spec import Spec

CAST_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class UnknownModelError(ValueError):
    """timm has no model of that name; the message has near matches."""


def create(spec: Spec) -> torch.nn.Module:
    """The model with the protocol's arguments, seeded random weights, on its device, in train or eval mode, not yet cast.

    Raises UnknownModelError for a name that timm does not know.
    """
    check_name(spec.model)
    devices.seed_everything(spec.seed)
    try:
        model = timm.create_model(spec.model, in_chans=3, drop_rate=0.0, drop_path_rate=None, drop_block_rate=None)
    except TypeError:  # an architecture that refuses the drop arguments
        devices.seed_everything(spec.seed)
        model = timm.create_model(spec.model, in_chans=3)
    training = spec.options.training and not spec.options.use_eval_mode
    return model.to(spec.device, memory_format=memory_format(spec)).train(training)


def check_name(name: str) -> None:
    """Raise UnknownModelError unless timm can create `name`, an architecture with or without a pretrained tag."""
    if timm.is_model(name) and ("." not in name or name in timm.list_models(name, pretrained=True)):
        return
    near = get_close_matches(name, timm.list_models() + timm.list_models(pretrained=True), n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise UnknownModelError(f"timm {timm.__version__} has no model {name!r}{hint}")


def input_size(spec: Spec, model: torch.nn.Module) -> tuple[int, int, int]:
    """Channels, height, width of one image; for some models it differs between training and inference."""
    return resolve_data_config({}, model=model, use_test_size=not spec.options.training)["input_size"]


def images(spec: Spec, size: tuple[int, int, int]) -> torch.Tensor:
    """One batch of noise images, float32 (batch, *size) on the device: integers below 256, standardised as a whole."""
    torch.manual_seed(spec.seed)
    batch = torch.randint(256, (spec.requested_batch_size, *size), device=spec.device).to(torch.float32)
    batch = (batch - batch.mean()) / batch.std()
    return batch.to(memory_format=memory_format(spec))


def cast_dtype(spec: Spec) -> torch.dtype:
    """The dtype that model and images are cast to: float32 means no cast."""
    if spec.traits.force_amp:
        return torch.float32
    return CAST_DTYPES.get(spec.options.precision, torch.float32)


def amp_dtype(spec: Spec) -> torch.dtype | None:
    """The dtype of autocast, or None where the model runs without it.

    A model of the suite's force_amp set runs a bfloat16 or float16 mode under autocast of that same dtype.
    """
    if spec.options.precision == "amp":
        return devices.autocast_dtype(spec.device, spec.options.amp_dtype)
    return CAST_DTYPES.get(spec.options.precision) if spec.traits.force_amp else None


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
