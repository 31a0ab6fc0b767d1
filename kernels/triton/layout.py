"""How a matrix reaches a kernel: typed views of its memory, and the constants that describe a row.

A row is read in *units* of 16 bytes, one per lane. A unit holds V elements (4 fp32, 8 fp16 or bf16, 16 int8, 4 words of
8 int4 codes), and an element holds one column or, in int4, 8 *planes* of them:

    column(unit, plane, lane) = (unit * 8 + plane) * V + lane

which is the order in which int4 words are packed, so that x meets every format in the same shape. Kernels of whole rows
take int8 in words as well, 4 planes of a word being neighbours (`words`): column = (unit * V + lane) * 4 + plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from ..quant import FORMAT, code_bytes

UNIT_BYTES = 16
Norm = tuple[Tensor, float]  # RMSNorm in front of an op: weight [hidden] fp32, eps
Residual = tuple[Tensor, float]  # what a result is added to, fp32 in its shape, and the factor of the result


@dataclass(frozen=True, eq=False)
class Matrices:
    """Matrices of one format and one number of columns, as a kernel takes them.

    Args:
        pointers: for each matrix its codes, its scales, and how far its rows lie apart: in units, or in elements where
            some row does not start on a unit.
        row: constants of a row for the kernel: HIDDEN, FORMAT, UNITS (a power of two), V, STEP (elements per step of
            the row distance), SCALES (where the scales start, in bf16).
    """

    pointers: tuple[tuple[Tensor, Tensor, int], ...]
    row: dict[str, Any]

    @property
    def format(self) -> str:
        """float, int8 or int4."""
        return self.row["FORMAT"]

    @property
    def planes(self) -> int:
        """Columns of an element."""
        return {"int4": 8, "int8": UNIT_BYTES // self.row["V"]}.get(self.format, 1)

    @property
    def unit_columns(self) -> int:
        return self.planes * self.row["V"]

    @property
    def words(self) -> Matrices:
        """The same with int8 in words of 4 codes, as `rows` and `down` read them."""
        if self.format != "int8":
            return self
        pointers = tuple((codes.view(torch.int32), scales, distance) for codes, scales, distance in self.pointers)
        return Matrices(pointers, self.row | {"V": 4, "STEP": 4})

    @property
    def dtype(self) -> torch.dtype:
        return self.pointers[0][0].dtype

    @property
    def rows(self) -> int:
        return self.pointers[0][0].shape[0]


def matrices(columns: int, *codes: Tensor) -> Matrices:
    """Describe matrices that share a format: [rows, columns], or packed as `kernels.quant` says."""
    fmt = FORMAT.get(codes[0].dtype, "float")
    if fmt != "float":
        codes = tuple(map(_on_units, codes))
    elements = [c.view(torch.int32) if fmt == "int4" else c for c in codes]
    size = elements[0].element_size()
    v = UNIT_BYTES // size
    aligned = all(e.stride(0) % v == 0 for e in elements)
    planes = 8 if fmt == "int4" else 1
    pointers = tuple(
        (e, c.view(torch.bfloat16) if fmt != "float" else e, e.stride(0) // v if aligned else e.stride(0))
        for e, c in zip(elements, codes, strict=True)
    )
    row = {
        "HIDDEN": columns,
        "FORMAT": fmt,
        "UNITS": triton.next_power_of_2(triton.cdiv(columns, planes * v)),
        "V": v,
        "STEP": v if aligned else 1,
        "SCALES": code_bytes(fmt, columns) // 2 if fmt != "float" else 0,
    }
    return Matrices(pointers, row)


def _on_units(codes: Tensor) -> Tensor:
    """A packed matrix whose rows start on units: no layout of ours needs the copy."""
    starts_on_units = codes.stride(0) % UNIT_BYTES == 0 and codes.storage_offset() % UNIT_BYTES == 0
    return codes if starts_on_units else codes.clone(memory_format=torch.contiguous_format)
