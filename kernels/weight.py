"""One matrix of a model: its format and the tensor that holds it.

Every op takes a `Weight` in rows: [rows, columns], a row contiguous, the next one possibly further away. gate and up
have one neuron per row, and so has `down`, which is transposed once at load: a neuron is then three contiguous rows.
Layout "bundled" lays the up and the down row of a neuron side by side: one longer stretch of memory.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import quant

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORMATS = {**FLOATS, **quant.DTYPE}
FORMAT_OF_DTYPE = {dtype: name for name, dtype in FORMATS.items()}
LAYOUTS = ("rows", "bundled")


@dataclass(frozen=True, eq=False)
class Weight:
    """A matrix as the kernels read it.

    Args:
        codes: in the dtype of the format, a row contiguous: [rows, columns], or packed as `kernels.quant` says.
        packed_columns: columns of a packed matrix; None for the float formats, whose tensor says it.

    Raises:
        ValueError: not a matrix, rows not contiguous, a dtype that is no weight format, or columns that do not fit.
    """

    codes: Tensor
    packed_columns: int | None = None

    def __post_init__(self) -> None:
        if self.codes.dim() != 2 or self.codes.stride(-1) != 1:
            raise ValueError(
                f"weight: must be [rows, columns] with contiguous rows, got shape {tuple(self.codes.shape)}, strides "
                f"{self.codes.stride()}; call .contiguous() on the tensor"
            )
        if self.codes.dtype not in FORMAT_OF_DTYPE:
            raise ValueError(f"weight: dtype {self.codes.dtype} is no format; supported are {', '.join(FORMATS)}")
        if (self.packed_columns is not None) != self.is_packed:
            raise ValueError(
                f"weight: packed_columns is {self.packed_columns}, but {self.codes.dtype} is "
                f"{'packed, which needs it' if self.is_packed else 'not packed, which must not have it'}"
            )
        if self.packed_columns is not None:
            quant.check_packed("weight", "codes", self.codes, self.packed_columns)

    @property
    def format(self) -> str:
        return FORMAT_OF_DTYPE[self.codes.dtype]

    @property
    def is_packed(self) -> bool:
        """Whether the format is int8 or int4."""
        return self.codes.dtype in quant.FORMAT

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns if self.packed_columns is None else self.packed_columns

    @property
    def nbytes(self) -> int:
        """Bytes of the whole matrix, scales included, as a kernel reads it."""
        return self.shape[0] * self.row_bytes

    @property
    def row_bytes(self) -> int:
        return self.codes.shape[1] * self.codes.element_size()

    def values(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """[rows, columns] in float32 or bfloat16, or in any float dtype where it is not packed."""
        if self.packed_columns is None:
            return self.codes.to(dtype)
        return quant.dequantize(self.codes, self.packed_columns, dtype)

    def rows_of(self, ids: Tensor) -> Tensor:
        """[len(ids), columns] float32: the values of some rows, in a tensor of their own; ids [n] int64."""
        # not codes[ids]: that wakes PyTorch's threads, which then spin in the way of ours for milliseconds
        return Weight(self.codes.index_select(0, ids), self.packed_columns).values()


def in_format(matrix: Tensor, fmt: str) -> Weight:
    """A float matrix [rows, columns] as a Weight of any format.

    Raises:
        ValueError: no such format.
    """
    if fmt in quant.GROUP:
        return Weight(quant.quantize(matrix, fmt), matrix.shape[1])
    if fmt not in FORMATS:
        raise ValueError(f"weight: format is {fmt!r}; supported are {', '.join(FORMATS)}")
    return Weight(matrix.to(FORMATS[fmt]))


def bytes_per_row(fmt: str, columns: int) -> int:
    """Bytes of one row of a format."""
    return quant.row_bytes(fmt, columns) if fmt in quant.GROUP else columns * FORMATS[fmt].itemsize
