"""Cold weights on their way to the device that prefills: block by block through two buffers.

While one block is multiplied the next one travels, so a prefill needs two blocks of the fast device's memory beside
what lies there, however large the cold part is.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from prosparse.kernels.weight import Weight

from .link import has_streams

# Of each: at 25 GB/s a block travels for 0.7 ms, ten times what starts it takes, and what is left of a budget is worth
# more: 100 MiB are 0.1 times a layer split for a 7B on 8 GB (docs/hybrid.md).
BUFFER_BYTES = 16 << 20


class DoubleBuffer:
    """Two buffers on a device. One user at a time: see `Link.lock`.

    Args:
        device: where blocks go.
        nbytes: of each buffer.
    """

    def __init__(self, device: torch.device, nbytes: int = BUFFER_BYTES) -> None:
        self.device, self.block_bytes = device, nbytes
        self._buffers = [torch.empty(nbytes, dtype=torch.uint8, device=device) for _ in range(2)]
        self._next = 0
        self._copies = torch.cuda.Stream(device) if has_streams(device) else None
        if self._copies is not None:
            self._staged = [torch.empty(nbytes, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
            self._copied, self._used = ([torch.cuda.Event() for _ in range(2)] for _ in range(2))

    @classmethod
    def large_enough(cls, device: torch.device, weights: Sequence[Weight]) -> DoubleBuffer:
        """One of `BUFFER_BYTES` each, or less where the largest of these matrices needs less."""
        return cls(device, min(BUFFER_BYTES, max(weight.shape[0] * _room(weight) for weight in weights)))

    @property
    def nbytes(self) -> int:
        """Of both buffers."""
        return 2 * self.block_bytes

    def blocks(self, weight: Weight) -> Iterator[Weight]:
        """The rows of a matrix of another device in order, a block at a time; a block is valid until the next but one.

        Raises:
            ValueError: a row is longer than a buffer.
        """
        rows, width = weight.codes.shape
        of_block = self.rows_of_block(weight)
        if not of_block:
            raise ValueError(f"double buffer: a row has {weight.row_bytes} bytes, a buffer {self.block_bytes}")
        spans = [slice(start, min(start + of_block, rows)) for start in range(0, rows, of_block)]
        coming = self._start(weight.codes[spans[0]]) if spans else None
        for following in [*spans[1:], None]:
            if coming is None:
                return
            place, block = coming
            coming = None if following is None else self._start(weight.codes[following])
            self._await(place)
            yield Weight(block, weight.packed_columns)
            self._release(place)

    def rows_of_block(self, weight: Weight) -> int:
        """Rows of a matrix that fit, also when a packed block is unpacked to bfloat16 for a GEMM."""
        return self.block_bytes // _room(weight)

    def _start(self, rows: Tensor) -> tuple[int, Tensor]:
        """Start rows on their way into the buffer whose turn it is."""
        place, self._next = self._next, 1 - self._next
        block = _shaped(self._buffers[place], rows)
        if self._copies is None:
            block.copy_(rows)
            return place, block
        self._copied[place].synchronize()  # what was staged there has left
        staged = _shaped(self._staged[place], rows).copy_(rows)
        with torch.cuda.stream(self._copies):
            self._copies.wait_event(self._used[place])
            block.copy_(staged, non_blocking=True)
            self._copied[place].record(self._copies)
        return place, block

    def _await(self, place: int) -> None:
        if self._copies is not None:
            torch.cuda.current_stream(self.device).wait_event(self._copied[place])

    def _release(self, place: int) -> None:
        if self._copies is not None:
            self._used[place].record(torch.cuda.current_stream(self.device))


def _room(weight: Weight) -> int:
    """Bytes of a row, packed or not, whichever is more."""
    return max(weight.row_bytes, 2 * weight.shape[1] if weight.is_packed else 0)


def _shaped(buffer: Tensor, rows: Tensor) -> Tensor:
    """The beginning of a buffer as a tensor of this shape and dtype."""
    return buffer[: rows.numel() * rows.element_size()].view(rows.dtype).view(rows.shape)
