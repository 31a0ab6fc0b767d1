"""The packed formats on every backend: what their bytes mean, and that rounding to them writes those bytes."""

from __future__ import annotations

import pytest
import torch
from cases import poisoned
from torch import Tensor

from prosparse.kernels.quant import DTYPE, GROUP, code_bytes, dequantize, groups, quantize, row_bytes

FMTS = ["int8", "int4"]


def pack(fmt: str, codes: list[int], scales: list[float]) -> Tensor:
    """One row [1, row_bytes], written bit by bit as the format says; a code of int4 is 0 to 15."""
    row = bytearray(row_bytes(fmt, len(codes)))
    end = code_bytes(fmt, len(codes))
    row[end : end + 2 * len(scales)] = bytes(torch.tensor(scales).bfloat16().view(torch.uint8).tolist())
    if fmt == "int8":
        row[: len(codes)] = bytes(code % 256 for code in codes)
    else:
        for group in range(len(scales)):
            words = [0] * 4
            for column in range(32):
                at = 32 * group + column
                words[column % 4] |= (codes[at] if at < len(codes) else 8) << column // 4 * 4
            row[16 * group : 16 * group + 16] = b"".join(word.to_bytes(4, "little") for word in words)
    return torch.tensor(list(row), dtype=torch.uint8).view(DTYPE[fmt])[None]


def every_code_everywhere(fmt: str) -> tuple[list[list[int]], list[float]]:
    """Rows of one group, and the scale of each: each code at each place, beside one that makes the scale what it is."""
    least, most, size = (0, 15, 32) if fmt == "int4" else (-127, 127, 128)
    end = 0 if fmt == "int4" else 127  # the code of the largest magnitude
    rows, scales = [], []
    for place in range(0, size, 1 if fmt == "int4" else 17):
        for code in range(least, most + 1):
            row = [(7 * i + 3 * place + code) % (most - least + 1) + least for i in range(size)]
            row[place], row[(place + 1) % size] = code, end
            rows.append(row)
            scales.append((-1) ** code * 2.0 ** (code % 9 - 4) * (1 + place % 4 / 4) if fmt == "int4" else 1.5)
    return rows, scales


def test_an_int8_row_byte_by_byte(backend):
    row = [1, 0xFF, 127, 0x81, 0, *[0] * 123, 0x00, 0x40, *[0] * 14]  # 5 codes of 128, the scale 2.0, zeros
    codes = torch.tensor([row], dtype=torch.uint8).view(torch.int8)
    assert dequantize(codes, 5).tolist() == [[2.0, -2.0, 254.0, -254.0, 0.0]]
    assert torch.equal(quantize(torch.tensor([[2.0, -2.0, 254.0, -254.0, 0.0]]), "int8"), codes)


def test_an_int4_row_byte_by_byte(backend):
    values = torch.tensor([[(column % 16 - 8) / 2 for column in range(32)]])
    words = "40c840c8 51d951d9 62ea62ea 73fb73fb"  # 0xc840c840 holds columns 0, 4, 8, .. from its low end
    row = [*bytes.fromhex(words), 0x00, 0x3F, *[0] * 14]  # the scale is 0.5
    codes = torch.tensor([row], dtype=torch.uint8)
    assert torch.equal(dequantize(codes, 32), values)
    assert torch.equal(quantize(values, "int4"), codes)


def test_a_second_group_of_int4_has_codes_and_a_scale_of_its_own(backend):
    values = torch.zeros(1, 33)
    values[0, 1], values[0, 32] = -8.0, -16.0
    first = [0x88, 0x88, 0x88, 0x88, 0x80, *[0x88] * 11]  # column 1 is the low half of the first byte of word 1
    second = [0x80, *[0x88] * 15]
    codes = torch.tensor([[*first, *second, 0x80, 0x3F, 0x00, 0x40, *[0] * 12]], dtype=torch.uint8)
    assert torch.equal(dequantize(codes, 33), values)


@pytest.mark.parametrize("fmt", FMTS)
def test_every_code_at_every_place_there_and_back(backend, fmt):
    rows, scales = every_code_everywhere(fmt)
    packed = torch.cat([pack(fmt, row, [scale]) for row, scale in zip(rows, scales, strict=True)])
    zero = 8 if fmt == "int4" else 0
    meaning = (torch.tensor(rows) - zero).float() * torch.tensor(scales)[:, None]
    assert torch.equal(dequantize(packed, GROUP[fmt]), meaning)
    assert torch.equal(quantize(meaning, fmt), packed)


@pytest.mark.parametrize("columns", [1, 31, 33, 96, 127, 129, 160, 224, 288])
@pytest.mark.parametrize("fmt", FMTS)
def test_groups_of_a_row_follow_each_other(backend, fmt, columns):
    least, most = (0, 15) if fmt == "int4" else (-127, 127)
    rng = torch.Generator().manual_seed(columns)
    codes = torch.randint(least, most + 1, (columns,), generator=rng)
    scales = [0.5 + i for i in range(groups(fmt, columns))]
    packed = pack(fmt, codes.tolist(), scales)
    per_column = torch.tensor(scales).repeat_interleave(GROUP[fmt])[:columns]
    assert torch.equal(dequantize(packed, columns)[0], (codes - (8 if fmt == "int4" else 0)) * per_column)


@pytest.mark.parametrize(
    ("fmt", "columns", "length"),
    [
        ("int8", 1, 144),
        ("int8", 129, 272),
        ("int8", 1024, 1040),
        ("int4", 1, 32),
        ("int4", 33, 48),
        ("int4", 4096, 2304),
    ],
)
def test_length_of_a_row(fmt, columns, length):
    assert row_bytes(fmt, columns) == length
    assert quantize(torch.zeros(2, columns), fmt).shape == (2, length)


@pytest.mark.parametrize("fmt", FMTS)
def test_dequantize_to_bf16_rounds_what_fp32_holds(backend, fmt):
    matrix = torch.randn(40, 165, generator=torch.Generator().manual_seed(0))
    codes = quantize(matrix, fmt)
    assert torch.equal(dequantize(codes, 165, torch.bfloat16), dequantize(codes, 165).bfloat16())


@pytest.mark.parametrize("fmt", FMTS)
def test_rows_further_apart(backend, fmt):
    matrix = torch.randn(70, 165, generator=torch.Generator().manual_seed(0))
    codes = quantize(matrix, fmt)
    wide = poisoned(70, codes.shape[1] + 21, dtype=codes.dtype)
    wide[:, : codes.shape[1]] = codes
    apart = wide[:, : codes.shape[1]]
    assert torch.equal(dequantize(apart, 165), dequantize(codes, 165))
    assert torch.equal(dequantize(apart[3:4], 165), dequantize(codes, 165)[3:4])  # one row, at an odd address
    assert dequantize(apart[:0], 165).shape == (0, 165)


def test_the_compiled_op_checks_what_it_is_given(compiled):
    codes = quantize(torch.ones(3, 40), "int8")
    op = torch.ops.prosparse.dequantize
    for bad_codes, out, message in [
        (codes[:, :143], torch.empty(3, 40), "rows of codes have 143 bytes, but 40 columns of int8 make 144"),
        (codes, torch.empty(3, 129), "rows of codes have 144 bytes, but 129 columns of int8 make 272"),
        (codes, torch.empty(2, 40), "codes must be 2 rows of int8 or int4"),
        (torch.zeros(3, 40), torch.empty(3, 40), "codes must be 3 rows of int8 or int4"),
        (codes, torch.empty(40, 3).T, "out must be contiguous on the CPU"),
        (codes, torch.empty(3, 40, dtype=torch.float16), "out must be float32 or bfloat16"),
    ]:
        with pytest.raises(RuntimeError, match=f"^dequantize: {message}"):
            op(bad_codes, out)


def test_names_what_does_not_fit():
    with pytest.raises(ValueError, match="dequantize: codes has dtype torch.float32, which is no packed format"):
        dequantize(torch.zeros(2, 144), 100)
    with pytest.raises(ValueError, match=r"dequantize: codes must hold 129 columns as int8, \[rows, 272\].*\(2, 144\)"):
        dequantize(torch.zeros(2, 144, dtype=torch.int8), 129)
    with pytest.raises(ValueError, match=r"dequantize: codes must hold 40 columns as int4.*strides \(96, 2\)"):
        dequantize(torch.zeros(2, 96, dtype=torch.uint8)[:, ::2], 40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fmt", FMTS)
def test_opcheck(backend, fmt, dtype):
    codes = quantize(torch.randn(5, 40, generator=torch.Generator().manual_seed(0)), fmt)
    torch.library.opcheck(torch.ops.prosparse.dequantize, (codes, torch.empty(5, 40, dtype=dtype)))


def test_says_which_dtypes_and_shapes_it_takes():
    with pytest.raises(ValueError, match="dtype must be float32 or bfloat16, got torch.float16"):
        dequantize(quantize(torch.ones(2, 40), "int8"), 40, torch.float16)
    with pytest.raises(ValueError, match=r"matrix must be \[rows, columns\], got shape \(40,\)"):
        quantize(torch.ones(40), "int4")
