"""How much memory a cell may take: more for larger models and batches, and never so little that a small one fails."""

from dataclasses import replace

import pytest

import specs
from timmgate.config.memory_estimate import memory_bytes
from timmgate.core.spec import Mode

SPEC = specs.spec(model="resnet50", batch_size=8)
TRAINING = replace(SPEC, options=Mode(training=True))

MEASURED = {"lcnet_050": (1.9, 2, 0.9e9), "resnet18": (11.7, 2, 1.5e9), "cait_m36_384": (797, 2, 16.3e9)}
"""Cost, batch size and peak bytes of a training step in float32 on a CPU (tests/slow/test_every_model.py)."""


@pytest.mark.parametrize("model", MEASURED)
def test_the_float64_reference_of_a_measured_model_fits(model):
    cost, batch_size, peak_bytes = MEASURED[model]
    assert memory_bytes([replace(TRAINING, batch_size=batch_size)], cost, threads=1) > 2 * peak_bytes


def test_a_tiny_model_asks_for_little():
    assert memory_bytes([TRAINING], 0.2, threads=1) <= 6e9


SAVED = {
    "convmixer_768_32": (21.1, 407e6),
    "mobilevit_s": (7.3, 180e6),
    "tf_efficientnet_lite2": (8.2, 152e6),
    "tf_mixnet_l": (7.3, 127e6),
    "xcit_large_24_p8_224": (188.9, 1654e6),
}
"""Cost, and bytes for each image that autograd saves in float32 training: the models of the suites that have most of it for
their cost."""


@pytest.mark.parametrize("model", SAVED)
def test_what_autograd_saves_in_float64_fits_beside_torch_itself(model):
    cost, saved_bytes = SAVED[model]
    assert memory_bytes([TRAINING], cost, threads=1) > 2 * TRAINING.requested_batch_size * saved_bytes + 1.5e9


def test_larger_models_larger_batches_training_and_more_threads_take_more():
    small = memory_bytes([SPEC], 25, threads=1)
    assert memory_bytes([SPEC], 100, threads=1) > small
    assert memory_bytes([replace(SPEC, batch_size=128)], 25, threads=1) > small
    assert memory_bytes([TRAINING], 25, threads=1) > small
    assert memory_bytes([SPEC], 25, threads=8) > small


@pytest.mark.parametrize(("model", "cost", "batch_size"), [("vit_base_patch16_224", 87, 64), ("resnet50", 26, 32)])
def test_a_timing_of_a_dashboard_model_fits_a_server(model, cost, batch_size):
    timing = replace(TRAINING, check="performance", model=model, batch_size=batch_size)
    assert memory_bytes([TRAINING, timing], cost, threads=1) < 64e9


def test_the_larger_of_two_checks_counts():
    large = replace(SPEC, check="performance", batch_size=128)
    assert memory_bytes([SPEC, large], 25, threads=1) == memory_bytes([large], 25, threads=1)


def test_on_an_accelerator_activations_take_no_memory_of_the_host():
    cuda = replace(SPEC, device="cuda")
    assert memory_bytes([replace(cuda, batch_size=128)], 25, threads=1) == memory_bytes([cuda], 25, threads=1)
