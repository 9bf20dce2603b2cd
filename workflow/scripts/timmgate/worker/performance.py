"""The performance check: how much faster is the compiled model than eager, how sure is that, and what does it cost?

The program is the one that the accuracy check judges. Import, load, compilation and warm-up go on beside other measurements;
while samples are taken, nothing else of ours runs on the device.
"""

import gc
import math
import operator
import random
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from timmgate.core.protocol import Reporter
from timmgate.core.spec import Spec, dynamic_batch_sizes
from timmgate.core.statistics import Sample, figures
from timmgate.system import cpu_topology, gpus, machine, timing_turns
from timmgate.worker import backends, flops, models, peak_memory, timed_output, timing, torch_device
from timmgate.worker.compile_cache import Cache
from timmgate.worker.training_step import Setup, cloned, fresh, iterate, load, make_optimizer

TARGET = {"cpu": 0.02}
"""Relative half-width of the speedup's interval at which sampling stops, by device; 0.01 on the others."""

PADDING_BYTES = 1 << 17
"""Largest random gap before a tensor that is moved: more than a page, and more than a first-level cache."""


class Iterations:
    """Runs one iteration of either side: every batch once. `left` are bytes of an accelerator that are none of its own."""

    def __init__(self, spec: Spec, model: torch.nn.Module, batches: list[torch.Tensor], reporter: Reporter, left: int = 0):
        self._spec, self._model, self._batches, self._clock = spec, model, batches, reporter.clock
        self._optimizer = make_optimizer(spec, model)
        self._state = {name: _on_host(tensor) for name, tensor in models.state(model).items()}
        self._images = [_on_host(batch) for batch in batches]
        self._kinds = [*map(_kind, model.parameters())]
        self._is_frozen = spec.device == "cpu" and torch._inductor.config.freezing
        self._constants, self._left = peak_memory.Added(), left
        self._random, self._padding = random.Random(seed(spec)), []

    @property
    def steps(self) -> bool:
        """Whether an optimizer steps the weights."""
        return self._optimizer is not None

    def run(self, forward: Callable[..., Any]) -> Any:
        """What the first batch gave; in training gradients are then in the parameters."""
        return self._run_all(forward)[0]

    def _run_all(self, forward: Callable[..., Any]) -> list[Any]:
        if self._spec.device == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        return [iterate(self._spec, self._model, forward, batch, self._optimizer) for batch in self._batches]

    def begin_again(self) -> None:
        """Have the weights that there were before an optimizer made others of them."""
        if self._optimizer:
            models.set_state(self._model, self._state)

    def has_weights(self) -> bool:
        """Whether the weights are still such tensors as at the beginning: some compilers discard, pack or move them."""
        return [*map(_kind, self._model.parameters())] == self._kinds

    def are_weights_written(self) -> bool:
        """Whether a parameter is not as it was at the beginning, which no optimizer has stepped since `begin_again`."""
        return any(
            not torch.equal(parameter.detach().cpu(), self._state[name])
            for name, parameter in self._model.named_parameters()
        )

    @contextmanager
    def constants_counted(self) -> Iterator[None]:
        """Compilation; what freezing makes of the weights lies beside them from then on, and belongs to compiled."""
        before = peak_memory.HostTensors() if self._is_frozen else None
        yield
        self._constants = before.added_bytes() if before else peak_memory.Added()

    def memory(self, forward: Callable[..., Any]) -> tuple[int | None, int | None]:
        """Peak memory in bytes of an iteration, with its gradients if it makes any, and what torch's allocator gave of it.

        On an accelerator both are the allocator's.
        """
        resident, device = peak_memory.tensor_bytes(self._model, *self._batches), self._spec.device
        beside = self._constants if forward is not self._model else peak_memory.Added()
        self._without_gradients()
        peak = peak_memory.peak_bytes(device, lambda: self.run(forward), resident + beside.used, self._left)
        if device != "cpu":
            return peak, peak
        self._without_gradients()
        return peak, peak_memory.allocated_bytes(lambda: self.run(forward), resident + beside.allocated)

    def _without_gradients(self) -> None:
        for tensor in (*self._model.parameters(), *self._batches):
            tensor.grad = None

    def relocate(self) -> None:
        """Move weights and images to other addresses, if the spec says so, for the samples to see many layouts and not one.

        Where things lie moves a speedup by percents, is drawn anew in every process, and would be the same in all samples of
        one (Curtsinger and Berger, Stabilizer, 2013). The compiled code, and what freezing made of the weights, stay.
        """
        if not self._spec.relocate:
            return
        padding = []
        for tensor in (*models.state(self._model).values(), *self._batches):
            padding.append(torch.empty(self._random.randrange(PADDING_BYTES), dtype=torch.uint8))
            moved = tensor.data.clone()
            if moved.stride() == tensor.stride():  # else it is a view with gaps, and a program may have compiled them
                tensor.data = moved
        self._padding = padding

    def begin_block(self, forward: Callable[..., Any], in_turns: bool) -> None:
        """What comes before a block of samples, untimed. In turns the caches have what another process left in them."""
        self.relocate()
        if in_turns:
            self.run(self._model)
            self.run(forward)

    @torch.no_grad()
    def exchange_images(self) -> None:
        """Mirror the images, in their place: what a program keeps of a call is then not what the next one has to compute."""
        for batch in self._batches:
            batch.copy_(batch.flip(-1))

    def is_kept(self, forward: Callable[..., Any]) -> bool:
        """Whether a program returns for other images of a batch what it has returned before, where eager does not."""
        kept = self._are_the_same_for_others(forward)
        return any(kept) and any(map(operator.gt, kept, self._are_the_same_for_others(self._model)))

    def computed(self, forward: Callable[..., Any]) -> list[timed_output.Leaves]:
        """What is computed of each batch, on the host, with the images and buffers of the beginning: eager may write to
        either.
        """
        buffers = dict(self._model.named_buffers())
        models.set_state(self._model, {name: before for name, before in self._state.items() if name in buffers})
        models.assign(self._batches, self._images)
        found = (timed_output.computed(self._spec, self._model, forward, batch) for batch in self._batches)
        return [{kind: [leaf.cpu() for leaf in leaves] for kind, leaves in of_batch.items()} for of_batch in found]

    def _are_the_same_for_others(self, forward: Callable[..., Any]) -> list[bool]:
        """Of each batch."""
        found = []
        for _ in range(2):
            torch_device.seed_everything(self._spec.seed)
            found.append(cloned(self._run_all(forward)))
            self.exchange_images()
        return [
            all(map(torch.equal, *(filter(torch.is_tensor, tree_leaves(each)) for each in pair)))
            for pair in zip(*found, strict=True)
        ]

    def timed(self, forward: Callable[..., Any]) -> float:
        """Seconds of one iteration on images that the one before did not have, until the device is done."""
        self.exchange_images()
        torch_device.synchronize(self._spec.device)
        start = self._clock()
        self.run(forward)
        torch_device.synchronize(self._spec.device)
        return self._clock() - start


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    """A copy."""
    return tensor.detach().to("cpu", copy=True)


def _kind(tensor: torch.Tensor) -> tuple[Any, ...]:
    """What a compiler leaves of a tensor whose values alone it uses."""
    return type(tensor.data), tensor.shape, tensor.dtype, tensor.layout, tensor.device


def measure(spec: Spec, setup: Setup, reporter: Reporter) -> None:
    """Run the check and report stages, columns, samples and result."""
    torch.set_num_threads(setup.threads)
    torch_device.set_deterministic(False)
    reporter.stage("load")
    if models.skipped(spec):
        reporter.result("pass_due_to_skip", spec.traits.skip_reason, "not run here, by the suite's table")
        return
    left = peak_memory.left_bytes(spec.device)
    model, images = load(spec, setup, reporter)
    reporter.columns(**flops.count(model, images[:1]))
    batches = [fresh(spec, images[:size]) for size in batch_sizes(spec, setup.batch_size)]
    with torch.set_grad_enabled(spec.options.training), backends.configured(spec):
        iterations = Iterations(spec, model, batches, reporter, left)
        reporter.stage("eager")
        iterations.run(model)
        eager_peak, eager_allocated = iterations.memory(model)
        reporter.stage("compile")
        with iterations.constants_counted():
            forward = compile_cold_and_warm(spec, setup.cache, model, images, iterations, reporter)
        if not iterations.has_weights():
            raise RuntimeError(
                "the compiler has discarded, packed or moved the weights of the model that eager is timed with"
            )
        compiled_peak, compiled_allocated = iterations.memory(forward)
        reporter.columns(
            eager_peak_bytes=eager_peak,
            compiled_peak_bytes=compiled_peak,
            eager_allocated_bytes=eager_allocated,
            compiled_allocated_bytes=compiled_allocated,
            compression_ratio=eager_peak / compiled_peak if eager_peak and compiled_peak else None,
        )
        reporter.stage("compare")
        iterations.begin_again()
        iterations.exchange_images()  # what is kept of the images that were compiled with is wrong then
        judge = partial(timed_output.judge, spec, model, forward, batches, eager_peak, setup.memory_bytes)
        judged = judge()
        reporter.columns(**judged)
        if iterations.are_weights_written():  # before anything steps them
            report_wrong("written", reporter)
        if judged["timed_reference"] != "none" and iterations.is_kept(forward):
            report_wrong("kept", reporter)
        reporter.columns(**backends.statistics())
        iterations.begin_again()
        before = iterations.computed(forward)
        reporter.stage("warmup")
        reporter.columns(warmup_iterations=timing.warm_up(lambda: iterations.timed(model) + iterations.timed(forward)))
        samples = take_samples(spec, setup, model, forward, iterations, reporter)
        reporter.stage("compare")
        is_written = not iterations.steps and iterations.are_weights_written()
        iterations.begin_again()
        if is_written:
            report_wrong("written", reporter)
        elif judged["timed_reference"] != "none" and judged["timed_output_ok"]:
            now = iterations.computed(forward)
            if timed_output.has_changed(spec, before, now):
                report_wrong("changed", reporter)
            elif timed_output.is_another_program(spec, before, now):
                iterations.exchange_images()
                reporter.columns(**dict.fromkeys(judged) | judge())
    report(samples, sum(map(len, batches)), setup.cache.cold(), reporter)


def report_wrong(kind: str, reporter: Reporter) -> None:
    """What is wrong whatever the error of the timed output is; a word of `verdict.NOT_COMPUTED`."""
    reporter.columns(timed_output_ok=False, timed_output_kind=kind, timed_output_margin=math.inf)


def batch_sizes(spec: Spec, batch_size: int) -> list[int]:
    """Images of each batch of an iteration: one batch, or several sizes for a mode with dynamic shapes."""
    return dynamic_batch_sizes(batch_size) if spec.options.dynamic else [batch_size]


def compile_cold_and_warm(
    spec: Spec,
    cache: Cache,
    model: torch.nn.Module,
    images: torch.Tensor,
    iterations: Iterations,
    reporter: Reporter,
) -> Callable[..., Any]:
    """The compiled model, compiled last with a cache that was filled before, here or by the other check."""
    while True:
        with backends.compiling(spec, cache, reporter) as first:
            forward = backends.compile_model(spec, model, images)
            reporter.stage("run")
            iterations.run(forward)
            first.stop()
            backends.check_compiled(spec)
        if not first.was_cold:
            break
    reporter.columns(compile_warm_s=first.costs["wall_s"], compile_warm_cpu_s=first.costs["cpu_s"])
    return forward


def take_samples(
    spec: Spec,
    setup: Setup,
    model: torch.nn.Module,
    forward: Callable[..., Any],
    iterations: Iterations,
    reporter: Reporter,
) -> list[Sample]:
    """Samples of both sides with the device to ourselves; anything that is compiled anew now is an error."""
    cores = cpu_topology.available()  # before it is pinned to some of them
    sides = 2 if setup.turns else 1
    plan = timing.Plan(TARGET.get(spec.device, 0.01), sides * setup.timing_limit_s)
    reporter.stage("queue")
    gc.collect()
    gc.disable()
    try:
        nothing_new = torch.compiler.set_stance("fail_on_recompile")
        with (
            timing_turns.alone(gpus.own_name(spec.device, setup.device_number), setup.turns) as goes_on,
            torch_device.pinned(spec.device, setup.threads),
            nothing_new,
        ):
            reporter.stage("timing")
            if spec.device != "cpu":
                # A neighbour that is paused has launched kernels that run on, and clocks have fallen while we waited.
                timing.warm_up(lambda: iterations.timed(model) + iterations.timed(forward))
            reporter.columns(timing_started_at=now_us())
            before_s = torch_device.control_s(spec.device, reporter.clock)
            before = machine.activity(cores)
            samples = timing.collect(
                lambda: iterations.timed(model),
                lambda: iterations.timed(forward),
                plan,
                seed(spec),
                before_block=lambda: iterations.begin_block(forward, in_turns=bool(setup.turns)),
                goes_on=goes_on,
            )
            reporter.columns(**machine.disturbance(before, machine.activity(cores)))
            after_s = torch_device.control_s(spec.device, reporter.clock)
            ended_at = now_us()
    finally:
        gc.enable()
    reporter.columns(machine_drift=after_s / before_s, timing_ended_at=ended_at)
    return samples


def report(samples: list[Sample], images: int, cold: dict[str, float], reporter: Reporter) -> None:
    """Samples, what follows from each side alone, and the result. `images` is how many one iteration sees."""
    for sample in samples:
        reporter.detail(asdict(sample))
    eager_s, compiled_s = [sample.eager_s for sample in samples], [sample.compiled_s for sample in samples]
    cold_s = cold.pop("wall_s", None)
    reporter.columns(
        **figures(eager_s, compiled_s, images, cold_s),
        compile_cold_s=cold_s,
        compile_cold_cpu_s=cold.pop("cpu_s", None),
        **cold,
    )
    reporter.result("pass")


def now_us() -> int:
    """Microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def seed(spec: Spec) -> int:
    """Seed of what is drawn while samples are taken: the same in each build, so that these differ in nothing else."""
    return zlib.crc32(f"{spec.mode} {spec.model} {spec.seed}".encode())
