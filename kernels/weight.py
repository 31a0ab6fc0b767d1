"""One matrix of a model: its format, its layout, and the tensors that hold it.

Every op takes a `Weight` in layout `rows`: [rows, columns], a row contiguous. gate and up have one neuron per row, and
so has `down`, which is transposed once at load: a neuron is then three contiguous rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FORMATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
FORMAT_OF_DTYPE = {dtype: name for name, dtype in FORMATS.items()}
LAYOUTS = ("rows",)


@dataclass(frozen=True, eq=False)
class Weight:
    """A matrix as the kernels read it.

    Args:
        codes: [rows, columns], in the dtype of `format`; a row is contiguous.
        layout: one of `LAYOUTS`.

    Raises:
        ValueError: not a matrix, rows not contiguous, or a dtype that is no weight format.
    """

    codes: Tensor
    layout: str = "rows"

    def __post_init__(self) -> None:
        if self.codes.dim() != 2 or self.codes.stride(-1) != 1:
            raise ValueError(
                f"weight: must be [rows, columns] with contiguous rows, got shape {tuple(self.codes.shape)}, strides "
                f"{self.codes.stride()}; call .contiguous() on the tensor"
            )
        if self.codes.dtype not in FORMAT_OF_DTYPE:
            raise ValueError(f"weight: dtype {self.codes.dtype} is no format; supported are {', '.join(FORMATS)}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"weight: layout {self.layout!r} is not known; supported are {', '.join(LAYOUTS)}")

    @property
    def format(self) -> str:
        return FORMAT_OF_DTYPE[self.codes.dtype]

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """Bytes of the whole matrix, as a kernel reads it."""
        return self.shape[0] * self.row_bytes

    @property
    def row_bytes(self) -> int:
        return self.shape[1] * self.codes.element_size()
