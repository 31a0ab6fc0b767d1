"""Copies matrices of a checkpoint to where they stay, in the format that is asked for, block by block.

Sources are views of mapped files. A block of rows is converted, checked and stored while it is in the processor's
cache, so nothing of a matrix's size is held beside the result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from prosparse.kernels.quant import quantize, row_bytes
from prosparse.kernels.weight import FORMATS, Weight

from ..errors import MachineError
from .checkpoint import Checkpoint
from .finite import check_finite, check_scales
from .formats import PACKED
from .gguf import GgufCheckpoint
from .memory import Place
from .pickled import PickledCheckpoint

Progress = Callable[[int, int], None]

# Rows converted at a time: few enough for the cache, and of a transposed matrix enough to read whole cache lines.
BLOCK_ROWS = 256


def width(fmt: str, columns: int) -> int:
    """Elements of a row's tensor in a format."""
    return row_bytes(fmt, columns) if fmt in PACKED else columns


@dataclass(frozen=True, eq=False)
class Halves:
    """A matrix whose rows lie in two tensors, and in another order than they are stored.

    Args:
        first, second: its first and its other rows, [.., width] each; rows may lie apart.
        rank: which row of the two together each stored row becomes, [rows] int64.
    """

    first: Tensor
    second: Tensor
    rank: Tensor

    def __len__(self) -> int:
        return len(self.rank)

    @property
    def dtype(self) -> torch.dtype:
        return self.first.dtype

    def __getitem__(self, rows: slice) -> Tensor:
        """Room for stored rows, to be given to `put`."""
        return self.first.new_empty(len(self.rank[rows]), self.first.shape[1])

    def put(self, rows: slice, block: Tensor) -> None:
        """Put stored rows where they belong."""
        rank, cut = self.rank[rows], len(self.first)
        is_first = rank < cut
        self.first[rank[is_first]] = block[is_first]
        self.second[rank[~is_first] - cut] = block[~is_first]


def copy_matrix(
    checkpoint: Checkpoint | PickledCheckpoint,
    name: str,
    out: Tensor | Halves,
    fmt: str,
    columns: int,
    workers: Executor,
    transpose: bool = False,
    order: Tensor | None = None,
) -> Iterator[None]:
    """Begin to fill `out` with a matrix in some format; it is filled once the result was walked through.

    Args:
        name: of a float matrix, or of one that is packed in this format already.
        out: [rows, width(fmt, columns)] in the dtype of the format; its rows may lie apart. Or two such tensors.
        fmt: a weight format.
        columns: of the result.
        workers: see `workers.block_workers`.
        transpose: the columns of a float matrix become rows; a packed one is stored that way.
        order: which row of the source becomes each row, [rows] int64; not with transpose. None is as stored.

    Raises:
        CheckpointError: weights or scales that are not finite; of the former, while the result is walked through.
    """
    source = checkpoint.matrix(name) if isinstance(checkpoint, GgufCheckpoint) else checkpoint.read(name)
    packed = fmt in PACKED
    stored_so = isinstance(source, Tensor) and packed and source.dtype == out.dtype
    if isinstance(source, Tensor) and stored_so:
        check_scales(checkpoint, name, source, columns)

    def copy_block(start: int) -> None:
        rows = slice(start, start + BLOCK_ROWS)
        taken = rows if order is None else order[rows]
        target = out[rows]
        if stored_so:
            target.copy_(source[taken])
        else:
            block = source[:, rows].t() if transpose else source[taken]
            if packed:
                block = block.contiguous()
                check_finite(checkpoint, name, block)
                quantize(block, fmt, out=target)
            else:
                target.copy_(block.to(target.dtype))
                check_finite(checkpoint, name, target)
        if isinstance(out, Halves):
            out.put(rows, target)

    return workers.map(copy_block, range(0, len(out), BLOCK_ROWS))


def wait(*copies: Iterator[None]) -> None:
    """Walk through what `copy_matrix` gave."""
    for copy in copies:
        deque(copy, maxlen=0)


class Reader:
    """Copies tensors of a checkpoint into new ones on a device, or on two; matrices are complete after `finish`.

    Args:
        checkpoint: where they are read.
        sizes: (rows, columns) of every matrix as Hugging Face stores it, whatever the checkpoint packs it to.
        place: where whole tensors go; may be set anew between them.
        workers: see `workers.block_workers`.
        progress: called with (done, total) bytes.
    """

    def __init__(
        self,
        checkpoint: Checkpoint | PickledCheckpoint,
        sizes: dict[str, tuple[int, ...]],
        place: Place,
        workers: Executor,
        progress: Progress | None,
    ) -> None:
        self.checkpoint, self.sizes, self.place, self.progress = checkpoint, sizes, place, progress
        self.workers = workers
        self.done = self.total = 0
        self._begun: list[Iterator[None]] = []  # copies of the matrix that is asked for
        self._before: list[Iterator[None]] = []  # and of the one before it

    def expect(
        self,
        wanted: dict[Place, int],
        what: str,
        others: Mapping[str, int] = MappingProxyType({}),
        instead: str | None = None,
    ) -> None:
        """Insist that so many bytes of each place fit into memory, and reserve them.

        Args:
            wanted: bytes.
            what: their format.
            others: bytes that all would take in other formats, for the message.
            instead: another option that would fit, for the message.
        """
        self.total = sum(wanted.values())
        for place in wanted:
            total = sum(nbytes for other, nbytes in wanted.items() if other.device == place.device)
            if total > place.free:
                fitting = [f"--weights {fmt} ({n / 2**30:.1f} GiB)" for fmt, n in others.items() if n <= place.free]
                fitting += [] if instead is None else [instead]
                cure = f"{' or '.join(fitting)} would fit" if fitting else "close other programs or use a smaller model"
                raise MachineError(
                    f"load: the weights of {self.checkpoint.folder} need {total / 2**30:.1f} GiB as {what}, but "
                    f"{place.free / 2**30:.1f} GiB of {place.device.type} memory are free; {cure}"
                )
        for place, nbytes in wanted.items():
            place.reserve(nbytes)

    def matrix(self, fmt: str, *parts: str, transpose: bool = False, order: Tensor | None = None) -> Weight:
        """One matrix, or several one below the other; transposed means that columns become rows, see `copy_matrix`."""
        sizes = [self.sizes[name][::-1] if transpose else self.sizes[name] for name in parts]
        columns = sizes[0][1]
        codes = self.place.empty((sum(size[0] for size in sizes), width(fmt, columns)), dtype=FORMATS[fmt])
        start = 0
        for name, size in zip(parts, sizes, strict=True):
            end = start + size[0]
            self._copy(name, codes[start:end], fmt, columns, transpose, order)
            start = end
        return self._finished(codes, fmt, columns, self.place)[0]

    def bundle(self, fmt: str, up: str, down: str) -> tuple[Weight, Weight]:
        """up, and down transposed, with the two rows of each neuron adjacent."""
        neurons, columns = self.sizes[up]
        codes = self.place.empty((neurons, 2, width(fmt, columns)), dtype=FORMATS[fmt])
        self._copy(up, codes[:, 0], fmt, columns)
        self._copy(down, codes[:, 1], fmt, columns, transpose=True)
        first, second = self._finished(codes, fmt, columns, self.place)
        return first, second

    def divide(
        self, fmt: str, parts: dict[str, bool], other: Place, rank: Tensor, cut: int
    ) -> tuple[list[Weight], list[Weight]]:
        """Matrices with one row a neuron in two places, the rows that a neuron has in them adjacent.

        Args:
            fmt: a weight format.
            parts: their names, and whether columns become rows.
            other: where neurons go from place `cut` on; those before go to `place`.
            rank: the place of each neuron, [neurons] int64.
            cut: how many go to `place`.

        Returns:
            the matrices' rows in `place`, and those in the other.
        """
        name, transpose = next(iter(parts.items()))
        columns = self.sizes[name][0 if transpose else 1]
        places = {self.place: cut, other: len(rank) - cut}
        shapes = [(rows, len(parts), width(fmt, columns)) for rows in places.values()]
        first, second = (place.empty(shape, dtype=FORMATS[fmt]) for place, shape in zip(places, shapes, strict=True))
        for i, (name, transpose) in enumerate(parts.items()):
            halves = Halves(first[:, i], second[:, i], rank)
            self._copy(name, halves, fmt, columns, transpose)
        return self._finished(first, fmt, columns, self.place), self._finished(second, fmt, columns, other)

    def vector(self, *parts: str) -> Tensor:
        """Norm weights, biases and small tables are always float32: they are few."""
        vectors = [self.checkpoint.read(name).float() for name in parts]
        for name, vector in zip(parts, vectors, strict=True):
            check_finite(self.checkpoint, name, vector)
        # torch.cat copies, so that no view keeps the file mapped
        return torch.cat(vectors).to(self.place.device)

    def finish(self) -> None:
        """Wait for all matrices.

        Raises:
            CheckpointError: one is not finite.
        """
        wait(*self._before, *self._begun)
        self._before, self._begun = [], []

    def _copy(
        self,
        name: str,
        out: Tensor | Halves,
        fmt: str,
        columns: int,
        transpose: bool = False,
        order: Tensor | None = None,
    ) -> None:
        self._begun.append(copy_matrix(self.checkpoint, name, out, fmt, columns, self.workers, transpose, order))

    def _finished(self, codes: Tensor, fmt: str, columns: int, place: Place) -> list[Weight]:
        """The weights in a new tensor, which is counted: [rows, width], or [rows, weights, width]."""
        if place.device.type == "cpu":  # one matrix stays behind, so that no worker waits for another's last block
            wait(*self._before)
            self._before, self._begun = self._begun, []
        else:
            self.finish()
        self.done += codes.nbytes
        if self.progress is not None:
            self.progress(self.done, self.total)
        there = place.settle(codes)
        views = [there] if there.dim() == 2 else list(there.unbind(1))
        return [Weight(view, columns if fmt in PACKED else None) for view in views]
