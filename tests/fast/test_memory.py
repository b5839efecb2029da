"""Room for large results."""

import pytest
import torch

from twinloss.fast.runtime import memory


@pytest.fixture
def advice(monkeypatch):
    """Record the (start, bytes) for which large pages are requested."""
    asked = []
    monkeypatch.setattr(memory, "_madvise", lambda: lambda start, size, _: asked.append((start, size)))
    monkeypatch.setattr(memory.mmap, "MADV_HUGEPAGE", 14, raising=False)
    return asked


def test_large_pages_are_requested_only_within_the_tensor(advice):
    made = memory.empty((3, 2**21), torch.float32)
    assert (made.shape, made.dtype, made.is_contiguous()) == ((3, 2**21), torch.float32, True)
    ((start, size),) = advice
    assert start % 2**21 == size % 2**21 == 0
    assert made.data_ptr() <= start < start + size <= made.data_ptr() + made.nbytes
    assert size >= made.nbytes - 2 * 2**21


@pytest.mark.parametrize("shape", [(), (0, 3), (2**18,)])
def test_small_tensors_stay_on_small_pages(advice, shape):
    assert memory.empty(shape, torch.float32).shape == shape
    assert advice == []


def test_memory_is_allocated_without_support_for_large_pages(monkeypatch):
    monkeypatch.delattr(memory.mmap, "MADV_HUGEPAGE", raising=False)
    memory._madvise.cache_clear()
    try:
        assert memory.empty((2**22,), torch.float64).nbytes == 2**25
        assert memory._madvise() is None
    finally:
        memory._madvise.cache_clear()
