"""One block of memory for all weights of a model, on huge pages where the system gives them.

Decode walks through every weight once a token, far more memory than the processor's page tables can keep at hand with
pages of 4 KiB; `docs/performance.md` has what huge pages change. PROSPARSE_HUGE_PAGES=0 does without.
"""

from __future__ import annotations

import logging
import math
import mmap
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..errors import MachineError
from ..machine import available_memory

log = logging.getLogger("prosparse")

HUGE_PAGE = 2 << 20  # bytes, on x86-64 and most arm64
ALIGNMENT = 64  # bytes: a cache line
SLACK = 1 << 20  # bytes: what alignment takes of 16 000 tensors


class Block:
    """Hands out tensors of one block of a device's memory, which is freed when the last of them is.

    A caching allocator rounds each tensor up, a GPU's to 2 MiB: over all matrices of a model, more than a percent.

    Args:
        nbytes: of all tensors together.
        device: not the CPU, see `Arena`.
    """

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self._bytes, self._used = torch.empty(nbytes + SLACK, dtype=torch.uint8, device=device), 0

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor."""
        nbytes = math.prod(shape) * dtype.itemsize
        start = self._used
        self._used = start + -(-nbytes // ALIGNMENT) * ALIGNMENT
        assert self._used <= self._bytes.numel(), "more was taken from a block than was asked for"
        return self._bytes[start : start + nbytes].view(dtype).view(*shape)


class Arena(Block):
    """A block of the CPU's memory.

    Args:
        nbytes: of all tensors together.

    Raises:
        MachineError: the system refuses the memory.
    """

    def __init__(self, nbytes: int) -> None:
        size = nbytes + nbytes // 1000 + 2 * HUGE_PAGE  # alignment takes at most 63 bytes of a tensor
        try:
            block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise MachineError(
                f"load: the system refuses {size / 2**30:.1f} GiB of memory for the weights ({error.strerror}); close "
                "other programs or use a smaller model"
            ) from error
        if os.environ.get("PROSPARSE_HUGE_PAGES") != "0":
            try:
                block.madvise(mmap.MADV_HUGEPAGE)
            except (AttributeError, OSError) as error:
                log.info("no huge pages for the weights (%s): ordinary pages serve, somewhat slower", error)
        self._bytes = torch.frombuffer(block, dtype=torch.uint8)  # keeps the block alive, as every view of it does
        self._used = -self._bytes.data_ptr() % HUGE_PAGE


class Place:
    """Where tensors go.

    Args:
        device: on which they are in the end.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.empty: Callable[..., Tensor] = torch.empty  # on the CPU, where they are filled
        self._block: Block | None = None  # on another device, where they go then

    @property
    def free(self) -> int:
        """Bytes that can be had."""
        return torch.cuda.mem_get_info(self.device)[0] if self.device.type == "cuda" else available_memory()

    def reserve(self, nbytes: int) -> None:
        """One block of memory for tensors of so many bytes; on the CPU they are filled where they stay."""
        if self.device.type == "cpu":
            self.empty = Arena(nbytes).empty
        else:
            self._block = Block(nbytes, self.device)

    def copy(self, tensor: Tensor) -> Tensor:
        """A tensor from elsewhere, where it stays."""
        if self.device.type == "cpu":
            return self.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor)
        return self.settle(tensor)

    def settle(self, filled: Tensor) -> Tensor:
        """A tensor from `empty`, where it stays."""
        if self.device.type == "cpu" or self._block is None:
            return filled.to(self.device)
        return self._block.empty(filled.shape, filled.dtype).copy_(filled)
