"""Random matrices as fast as memory is touched: all are cut from one block of normal numbers.

Equal numbers occur in several matrices, but hardly ever at the same place of a row.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from prosparse.kernels.weight import FORMATS, Weight, bytes_per_row, in_format

from ...config import ModelConfig
from ...errors import MachineError, UserError
from ...machine import available_memory
from ..memory import Arena

Progress = Callable[[int, int], None]

# Prime: wrapped around it, the rows of a matrix that is longer than the block come out shifted, hence different.
BLOCK = 16_777_259  # numbers


class MatrixMaker:
    """Makes matrices of one format on one device.

    Args:
        fmt: weight format.
        seed: of the block of random numbers and of where matrices are cut from it.
        progress: called with (done, total) bytes.
        device: where the matrices are made, and stay.

    Attributes:
        rng: for further random numbers of the same model, on the device.

    Raises:
        UserError: no such format.
    """

    def __init__(
        self, fmt: str, seed: int = 0, progress: Progress | None = None, device: torch.device | str = "cpu"
    ) -> None:
        if fmt not in FORMATS:
            raise UserError(f"synthetic: weights is {fmt!r}; supported are {', '.join(FORMATS)}")
        self.fmt, self.device = fmt, torch.device(device)
        self.rng = torch.Generator(self.device).manual_seed(seed)
        # fp16 has no fast GEMM on a CPU, and packed formats have no arithmetic
        self.work = {"fp32": torch.float32, "fp16": torch.float32}.get(fmt, torch.bfloat16)
        self._places = random.Random(seed)
        self._block = torch.randn(BLOCK, generator=self.rng, device=self.device).to(self.work)
        self._progress = progress
        self._done = self._total = 0
        self._empty: Callable[..., Tensor] = partial(torch.empty, device=self.device)

    def expect(self, total: int) -> None:
        """Insist that `total` bytes fit into memory, reserve them on the CPU, and report progress against them."""
        self._total = total
        cuda = self.device.type == "cuda"
        free = torch.cuda.mem_get_info(self.device)[0] if cuda else available_memory()
        if total * 1.1 > free:  # a tenth for the cache and everything else
            raise MachineError(
                f"synthetic: the weights need {total / 2**30:.1f} GiB, but {free / 2**30:.1f} GiB of "
                f"{self.device.type} memory are free; take a smaller shape"
            )
        if not cuda:
            self._empty = Arena(total).empty

    def matrix(self, rows: int, columns: int, scale: float) -> Weight:
        """[rows, columns] with normal entries of standard deviation `scale`."""
        return self.finish(self.normal(rows, columns, scale))

    def normal(self, rows: int, columns: int, scale: float) -> Tensor:
        """The values of a matrix that is still to be changed before it is finished, in the dtype to do so in."""
        if self.work == FORMATS[self.fmt]:
            return self._fill(self._empty((rows, columns), dtype=self.work), scale)
        return self._fill(torch.empty(rows, columns, dtype=self.work, device=self.device), scale)

    def planted(self, rows: int, basis: Tensor, share: float, scale: float) -> Tensor:
        """Like `normal`, with a share of the energy in a part of low rank.

        Args:
            rows: of the matrix.
            basis: row space of the planted part, [rank, columns], orthonormal rows.
            share: of the energy.
            scale: standard deviation of the entries.
        """
        rank, columns = basis.shape
        values = self.normal(rows, columns, scale * (1 - share) ** 0.5)
        if share == 0:
            return values
        mixing = self._fill(torch.empty(rows, rank, dtype=self.work, device=self.device), 1.0)
        return values.addmm_(mixing, basis.to(self.work), alpha=scale * (share * columns / rank) ** 0.5)

    def finish(self, values: Tensor) -> Weight:
        """A matrix in the format asked for. Every matrix passes here once, and is counted."""
        if values.dtype == FORMATS[self.fmt]:
            weight = Weight(values)
        else:
            weight = in_format(values, self.fmt)
            codes = self._empty(weight.codes.shape, dtype=weight.codes.dtype).copy_(weight.codes)
            weight = Weight(codes, weight.packed_columns)
        self._done += weight.nbytes
        if self._progress is not None:
            self._progress(self._done, self._total)
        return weight

    def _fill(self, values: Tensor, scale: float) -> Tensor:
        flat, start, done = values.view(-1), self._places.randrange(BLOCK), 0
        while done < flat.numel():
            source = self._block[start : start + flat.numel() - done]
            torch.mul(source, scale, out=flat[done : done + source.numel()])
            done, start = done + source.numel(), 0
        return values


def weight_bytes(config: ModelConfig, fmt: str) -> int:
    """Bytes of the matrices of a shape."""
    attended = config.head_dim * config.heads
    rows = config.head_dim * (config.heads + 2 * config.kv_heads)
    rows += (3 if config.gated else 2) * config.neurons
    tables = config.vocab * (1 if config.tied_embeddings else 2)
    per_layer = rows * bytes_per_row(fmt, config.hidden) + config.hidden * bytes_per_row(fmt, attended)
    return config.layers * per_layer + tables * bytes_per_row(fmt, config.hidden)
