"""How much of each model's parameters has a gradient of zero: with timm's own random weights, and with `random` ones.

    python benchmarks/lively_weights.py                    # the tiny models of timm
    python benchmarks/lively_weights.py resnet18 vit_tiny_patch16_224

A gradient counts as zero if the root mean square of its tensor is less than 1e-6 of the largest tensor's, in float64, of a
loss that weighs all logits at random. What computes a branch whose parameters have no gradient, as one behind a factor of
zero, has no effect that a check of outputs or gradients could see.
"""

import argparse
import math
import sys
from pathlib import Path

import timm
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from timmgate.worker.lively_weights import enliven  # noqa: E402

NEGLIGIBLE = 1e-6
SEED = 1337


def share_without_gradient(model: torch.nn.Module, images: torch.Tensor) -> float:
    """Share of the elements of all parameters in training."""
    model = model.double().train()
    torch.manual_seed(SEED)
    output = model(images.double())
    loss = (output * torch.randn(output.shape, dtype=torch.float64)).sum()
    weights = list(model.parameters())
    gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
    sizes = torch.tensor([float(gradient.norm()) / math.sqrt(gradient.numel()) for gradient in gradients])
    without = sum(weight.numel() for weight, size in zip(weights, sizes, strict=True) if size < NEGLIGIBLE * sizes.max())
    return without / sum(weight.numel() for weight in weights)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=timm.list_models("test_*"))
    print("| model | `random-timm` | `random` |\n| --- | --- | --- |")
    for name in parser.parse_args().models:
        shares = []
        for is_lively in (False, True):
            torch.manual_seed(SEED)
            model = timm.create_model(name)
            images = torch.randn(8, *model.pretrained_cfg["input_size"], generator=torch.Generator().manual_seed(SEED))
            if is_lively:
                enliven(model, SEED, images)
            shares.append(share_without_gradient(model, images))
        print(f"| {name} | {' | '.join(f'{share:.2%}' for share in shares)} |", flush=True)


if __name__ == "__main__":
    main()
