"""Peak memory, proved on known amounts."""

import torch

from timmgate.worker import peak_memory

MEBIBYTE = 1 << 20


def allocate(mebibytes: int) -> None:
    """Touch so much memory and let go of it."""
    torch.ones(mebibytes * MEBIBYTE, dtype=torch.uint8)


def test_the_peak_is_what_was_allocated_on_top_of_what_was_there():
    allocate(400)  # a larger peak before must not show
    for mebibytes in (50, 200, 100):
        peak = peak_memory.peak_bytes("cpu", lambda amount=mebibytes: allocate(amount), resident=7 * MEBIBYTE)
        assert abs(peak - (mebibytes + 7) * MEBIBYTE) < 5 * MEBIBYTE


def test_memory_that_an_earlier_iteration_left_in_the_heap_counts_again():
    pieces = [torch.ones(MEBIBYTE, dtype=torch.uint8) for _ in range(100)]
    del pieces[::2]

    def run():
        return [torch.ones(MEBIBYTE // 2, dtype=torch.uint8) for _ in range(80)]

    assert peak_memory.peak_bytes("cpu", run, resident=0) > 38 * MEBIBYTE


def test_tensors_on_the_host_count_once_each_storage_and_packed_ones_too():
    before, gone = peak_memory.HostTensors(), torch.ones(MEBIBYTE)
    kept = torch.ones(MEBIBYTE, dtype=torch.uint8)
    views, packed = [kept[:10], kept[10:]], torch.ones(4, 3, 8, 8).to_mkldnn()
    assert len(views) == 2
    del gone
    used = MEBIBYTE + packed.numel() * 4
    assert before.added_bytes() == (used, used)
    reserved = torch.ones(MEBIBYTE, 1).to_mkldnn()  # as MKL's packed matrices are
    assert before.added_bytes() == (used, used + reserved.numel() * 4)


def test_weights_and_images_have_their_bytes():
    model = torch.nn.BatchNorm2d(10)  # 2 x 10 parameters, 2 x 10 buffers, one int64
    assert peak_memory.tensor_bytes(model, torch.ones(2, 3, dtype=torch.float64)) == 160 + 8 + 48


def test_what_the_allocator_gave_out_is_known_to_the_byte_and_the_same_again():
    def run():
        kept = torch.ones(3 * MEBIBYTE, dtype=torch.uint8)
        allocate(20)
        return kept + allocate(7)

    def allocate(mebibytes):
        torch.ones(mebibytes * MEBIBYTE, dtype=torch.uint8)
        return 1

    torch.ones(50 * MEBIBYTE, dtype=torch.uint8)  # a larger peak before must not show
    peaks = [peak_memory.allocated_bytes(run, resident=1000) for _ in range(3)]
    assert peaks == [1000 + 23 * MEBIBYTE] * 3


def test_a_backward_pass_counts_as_well():
    weight = torch.ones(MEBIBYTE, dtype=torch.float32, requires_grad=True)
    peak = peak_memory.allocated_bytes(lambda: (weight * weight).sum().backward(), resident=0)
    assert 8 * MEBIBYTE <= peak <= 8 * MEBIBYTE + 1000, "gradients of both factors, when the product is gone"


def test_a_run_of_which_the_profiler_saw_no_allocation_has_none():
    assert peak_memory.allocated_bytes(lambda: None, resident=7) is None


def test_a_torch_whose_profiler_does_not_say_has_none(monkeypatch):
    class Silent:
        def __init__(self, **options):
            self.profiler = None

        __enter__ = __exit__ = lambda self, *error: self if not error else None

    monkeypatch.setattr(peak_memory, "profile", Silent)
    assert peak_memory.allocated_bytes(lambda: None, resident=7) is None
