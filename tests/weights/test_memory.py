"""The block of memory that weights lie in."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from prosparse.errors import MachineError
from prosparse.weights.memory import ALIGNMENT, HUGE_PAGE, Arena

SHAPES = [((3, 5), torch.bfloat16), ((7,), torch.float32), ((1, 1), torch.float16), ((64, 100), torch.bfloat16)]


def test_tensors_are_apart_aligned_and_writable():
    arena = Arena(sum(torch.Size(shape).numel() * dtype.itemsize for shape, dtype in SHAPES))
    tensors = [arena.empty(shape, dtype) for shape, dtype in SHAPES]
    for number, tensor in enumerate(tensors):
        assert tensor.data_ptr() % ALIGNMENT == 0 and tensor.is_contiguous()
        tensor.fill_(number)
    assert tensors[0].data_ptr() % HUGE_PAGE == 0
    for number, (tensor, (shape, dtype)) in enumerate(zip(tensors, SHAPES, strict=True)):
        assert tensor.shape == shape and tensor.dtype == dtype and bool((tensor == number).all())


def resident() -> int:
    """Bytes of this process that are in memory."""
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_goes_with_the_last_tensor():
    size = 256 << 20
    before = resident()
    arena = Arena(size)
    kept, large = arena.empty((4,), torch.float32).fill_(1), arena.empty((size // 8,), torch.float32).fill_(2)
    assert resident() - before > size // 4
    del arena, large
    gc.collect()
    assert resident() - before > size // 4 and kept.sum() == 4  # a tensor still lies in it
    del kept
    gc.collect()
    assert resident() - before < size // 8


def test_more_than_the_system_has_is_refused():
    with pytest.raises(MachineError, match="load: the system refuses [0-9.]+ GiB of memory"):
        Arena(2**46)
