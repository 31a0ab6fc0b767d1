"""What the memory of a GPU gives a kernel that only reads, and what a launch costs that does nothing."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from prosparse.kernels.triton.gpu import gpu_of

BLOCK = 4096  # numbers of 4 bytes: 16 KiB, as the tiles of the kernels


@triton.jit
def read_kernel(x_ptr, out_ptr, blocks, BLOCK: tl.constexpr, STAGES: tl.constexpr):
    """The largest number of every so many blocks."""
    largest = tl.full([BLOCK], -float("inf"), tl.float32)
    for block in tl.range(tl.program_id(0), blocks, tl.num_programs(0), num_stages=STAGES):
        at = block * BLOCK + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(x_ptr + at, eviction_policy="evict_first"))
    tl.store(out_ptr + tl.program_id(0), tl.max(largest, axis=0))


@triton.jit
def empty_kernel(x_ptr):
    pass


class GpuProbe:
    """Reads buffers that the L2 cache does not hold.

    Args:
        nbytes: of one of two buffers, read in turn; below 2^33.
        device: whose memory.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.nbytes = nbytes // (4 * BLOCK) * 4 * BLOCK
        self._buffers = [torch.ones(self.nbytes // 4, device=device) for _ in range(2)]
        self._programs = 4 * gpu_of(device).sms

    def __call__(self, number: int) -> Tensor:
        buffer = self._buffers[number % 2]
        out = buffer.new_empty(self._programs)
        read_kernel[(self._programs,)](buffer, out, buffer.numel() // BLOCK, BLOCK=BLOCK, STAGES=4, num_warps=8)
        return out

    def empty(self, number: int) -> None:
        """A launch that does nothing."""
        empty_kernel[(1,)](self._buffers[0], num_warps=1)
