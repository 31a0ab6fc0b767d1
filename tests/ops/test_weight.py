"""Weight: a matrix in any format, and what it says of itself."""

from __future__ import annotations

import pytest
import torch

from prosparse.kernels.weight import FORMATS, Weight, bytes_per_row, in_format

# bytes of a row of 100 columns: 2 or 4 a column; 128 codes and a scale; 4 groups of 16 bytes and their scales
ROW_BYTES = {"fp32": 400, "fp16": 200, "bf16": 200, "int8": 144, "int4": 80}


def matrix(rows: int = 7, columns: int = 100) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("fmt", FORMATS)
def test_says_what_it_holds(fmt):
    weight = in_format(matrix(), fmt)
    assert weight.format == fmt and weight.codes.dtype == FORMATS[fmt]
    assert weight.shape == (7, 100)
    assert weight.is_packed == (fmt in ("int8", "int4"))
    assert weight.row_bytes == bytes_per_row(fmt, 100) == ROW_BYTES[fmt]
    assert weight.nbytes == 7 * ROW_BYTES[fmt]


@pytest.mark.parametrize("fmt", FORMATS)
def test_nbytes_leaves_out_what_lies_between_rows(fmt):
    codes = in_format(matrix(), fmt).codes
    wide = torch.zeros(7, codes.shape[1] + 16, dtype=codes.dtype)
    packed_columns = 100 if fmt in ("int8", "int4") else None
    assert Weight(wide[:, : codes.shape[1]], packed_columns).nbytes == 7 * ROW_BYTES[fmt]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("fmt", "step"), [("fp32", 0), ("fp16", 2**-11), ("bf16", 2**-8), ("int8", 0.02), ("int4", 0.3)]
)
def test_values_are_near_the_matrix(backend, fmt, step, dtype):
    values = in_format(matrix(), fmt).values(dtype)
    assert values.dtype == dtype and values.shape == (7, 100)
    rounding = 2**-8 if dtype == torch.bfloat16 else 0
    assert float((values.float() - matrix()).abs().max()) <= (step + rounding) * float(matrix().abs().max())


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 128, 129, 288])
@pytest.mark.parametrize("fmt", ["int8", "int4"])
def test_packed_columns_are_what_it_was_made_of(fmt, columns):
    weight = in_format(matrix(3, columns), fmt)
    assert weight.packed_columns == columns and weight.shape == (3, columns) and weight.values().shape == (3, columns)
    assert weight.row_bytes == bytes_per_row(fmt, columns) and weight.row_bytes % 16 == 0


@pytest.mark.parametrize(
    ("codes", "packed_columns", "message"),
    [
        (torch.zeros(4), None, r"weight: must be \[rows, columns\] with contiguous rows, got shape \(4,\)"),
        (torch.zeros(4, 6).T, None, r"weight: must be .* strides \(1, 6\); call .contiguous\(\)"),
        (torch.zeros(4, 6, dtype=torch.float64), None, "weight: dtype torch.float64 is no format; supported are"),
        (torch.zeros(4, 6), 6, "weight: packed_columns is 6, but torch.float32 is not packed, which must not have it"),
        (torch.zeros(4, 144, dtype=torch.int8), None, "packed_columns is None, but torch.int8 is packed"),
        (torch.zeros(4, 144, dtype=torch.int8), 129, r"weight: codes must hold 129 columns as int8, \[rows, 272\]"),
        (torch.zeros(4, 144, dtype=torch.uint8), 100, r"weight: codes must hold 100 columns as int4, \[rows, 80\]"),
    ],
)  # fmt: skip
def test_names_what_does_not_fit(codes, packed_columns, message):
    with pytest.raises(ValueError, match=message):
        Weight(codes, packed_columns)


def test_names_a_format_that_is_none():
    with pytest.raises(ValueError, match="weight: format is 'int3'; supported are fp32, fp16, bf16, int8, int4"):
        in_format(matrix(), "int3")
