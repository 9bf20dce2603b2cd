"""How far null runs and healthy compilers are from the strict limit: what `core.verdict.MULTIPLIER` is chosen from.

For each model and mode: null runs, judged by the families other than their own, and compilers, judged by all. Prints a
line each with the largest statistic over the largest of the null runs (the margin with a multiplier of 1), where it is, and
the seconds that it took.

    nice -n 10 python benchmarks/calibration.py --models test_resnet test_vit --modes float32 amp --compilers inductor
"""

import argparse
import time
import warnings
from contextlib import nullcontext

import timm
import torch
from timm.data import resolve_data_config
from torch import Tensor, nn

from timmgate.core import verdict
from timmgate.worker import leaf_errors
from timmgate.worker.compare import Leaf
from timmgate.worker.cotangent import cotangent_leaves
from timmgate.worker.lively_weights import enliven
from timmgate.worker.null_runs import null_runs, reference
from timmgate.worker.torch_device import seed_everything

SEED = 1337
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "amp": torch.bfloat16}


class Subject:
    """A model with lively weights and a batch of images, and how to run it."""

    def __init__(self, name: str, mode: str, batch_size: int, seed: int):
        precision, _, training = mode.partition("-")
        self.training, self.dtype, self.is_amp, self.seed = bool(training), DTYPES[precision], precision == "amp", seed
        seed_everything(seed)
        model = timm.create_model(name)
        size = resolve_data_config({}, model=model, use_test_size=not self.training)["input_size"]
        images = torch.randint(256, (batch_size, *size)).float()
        self.images = (images - images.mean()) / images.std()
        enliven(model, seed, self.images)
        self.model = model.train(self.training)
        if not self.is_amp:
            self.model, self.images = self.model.to(self.dtype), self.images.to(self.dtype)

    def autocast(self, images: Tensor):
        is_amp = self.is_amp and images.dtype != torch.float64
        return torch.autocast("cpu", self.dtype) if is_amp else nullcontext()

    def run(self, model: nn.Module, images: Tensor, forward=None) -> list[Leaf]:
        """All leaves of one iteration; in training those of two losses."""
        seed_everything(self.seed)
        forward = model if forward is None else forward
        if not self.training:
            with torch.no_grad(), self.autocast(images):
                return [Leaf("output", "output", forward(images))]
        model.zero_grad(set_to_none=True)
        images = images.detach().clone().requires_grad_()
        with self.autocast(images):
            output = forward(images)
            loss = output.sum() / output.numel()
        loss.backward()
        named = list(model.named_parameters())
        leaves = [
            Leaf("prediction", "prediction", output.detach()),
            Leaf("loss", "loss", loss.detach()),
            *(
                Leaf(f"gradient.{name}", "gradient", weight.grad.clone())
                for name, weight in named
                if weight.grad is not None
            ),
            *(Leaf(f"buffer.{name}", "buffer", buffer.clone()) for name, buffer in model.named_buffers()),
            Leaf("input_gradient", "input_gradient", images.grad.clone()),
        ]
        return leaves + cotangent_leaves(model, forward, images, lambda: self.autocast(images), self.seed)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["test_resnet", "test_vit", "test_convnext", "test_efficientnet"])
    parser.add_argument("--modes", nargs="+", default=["float32", "float32-training", "bfloat16", "amp"])
    parser.add_argument("--compilers", nargs="*", default=["aot_eager"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--seeds", type=int, nargs="+", default=[SEED])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    print("model,mode,seed,run,ratio,leaf,statistic,verdict,leaves,statistics,undecided,seconds")
    for name in options.models:
        for mode in options.modes:
            for seed in options.seeds:
                calibrate(name, mode, options.batch_size, seed, options.compilers)


def calibrate(name: str, mode: str, batch_size: int, seed: int, compilers: list[str]) -> None:
    """Print the lines of one model, mode and seed."""
    subject = Subject(name, mode, batch_size, seed)
    expected = reference(subject.run, subject.model, subject.images, subject.dtype)
    nulls, start = [], time.perf_counter()
    timed = {}
    for family, leaves in null_runs(subject.run, subject.model, subject.images, subject.dtype, seed, expected=expected):
        nulls.append(verdict.NullRun(family, leaf_errors.measure(leaves, expected, subject.dtype)))
        timed[family] = timed.get(family, 0.0) + time.perf_counter() - start
        start = time.perf_counter()
    for family, seconds in timed.items():
        others = [null for null in nulls if null.family != family]
        runs = [null.errors for null in nulls if null.family == family]
        report((name, mode, seed), f"null {family}", runs, others, seconds)
    for compiler in compilers:
        start = time.perf_counter()
        torch._dynamo.reset()
        model = Subject(name, mode, batch_size, seed).model
        leaves = subject.run(model, subject.images, torch.compile(model, backend=compiler))
        errors = leaf_errors.measure(leaves, expected, subject.dtype)
        report((name, mode, seed), compiler, [errors], nulls, time.perf_counter() - start)


def report(cell: tuple, run: str, errors: list[verdict.Errors], nulls: list[verdict.NullRun], seconds: float) -> None:
    """One line: the worst of several runs of a kind."""
    leaves = [leaf for each in errors for leaf in verdict.judge_leaves(each, nulls, 1.0)]
    decided = [leaf for leaf in leaves if leaf.strict is not None]
    worst = max(decided or leaves, key=lambda leaf: leaf.margin)
    statistics = sum(len(each.statistics) for each in errors[0].values())
    says = verdict.judge(errors[0], nulls).strict
    undecided = len(leaves) - len(decided)
    print(*cell, run, f"{worst.margin:.3g}", worst.leaf, worst.statistic, says, len(leaves), statistics, undecided,
          f"{seconds:.1f}", sep=",", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
