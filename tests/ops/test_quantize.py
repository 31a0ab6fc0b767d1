"""Rounding to the packed formats: its errors, its ends, and that every backend does the same. Bytes: test_quant."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, poisoned
from torch import Tensor

from prosparse.kernels import cpu
from prosparse.kernels.quant import (
    GROUP,
    code_bytes,
    dequantize,
    dequantize_reference,
    groups,
    quantize,
    quantize_reference,
    row_bytes,
)
from prosparse.kernels.weight import in_format

FMTS = ["int8", "int4"]
SHAPES = [(1, 1), (3, 31), (70, 33), (5, 127), (200, 128), (17, 129), (64, 160), (65, 288), (30, 1000)]
MATRICES = [(shape, DTYPES[i % 3]) for i, shape in enumerate(SHAPES)]


def normal(rows: int, columns: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)).to(dtype)


def reference(matrix: Tensor, fmt: str) -> Tensor:
    out = torch.empty_like(quantize(matrix, fmt))
    quantize_reference(matrix, out)
    return out


def scales_of(codes: Tensor, fmt: str, columns: int) -> Tensor:
    """[rows, columns] float32: the scale of every column's group."""
    end = code_bytes(fmt, columns)
    data = codes.view(torch.uint8)[:, end : end + 2 * groups(fmt, columns)].contiguous()
    return data.view(torch.bfloat16).float().repeat_interleave(GROUP[fmt], dim=1)[:, :columns]


def squared_error(matrix: Tensor, codes: Tensor) -> float:
    return float((dequantize_reference(codes, matrix.shape[1]).double() - matrix).square().sum())


@pytest.mark.parametrize(("shape", "dtype"), MATRICES, ids=str)
def test_int8_is_the_reference_bit_for_bit(compiled, shape, dtype):
    matrix = normal(*shape, dtype)
    assert torch.equal(quantize(matrix, "int8"), reference(matrix, "int8"))


@pytest.mark.parametrize(("shape", "dtype"), MATRICES, ids=str)
def test_int4_is_the_reference_or_as_good(compiled, shape, dtype):
    """Sums of the scale search are rounded in another order, so scales may differ in their last bit."""
    matrix = normal(*shape, dtype)
    codes, expected = quantize(matrix, "int4"), reference(matrix, "int4")
    assert float((codes != expected).float().mean()) < 0.002
    assert squared_error(matrix, codes) <= 1.0001 * squared_error(matrix, expected)


@pytest.mark.parametrize("fmt", FMTS)
def test_dtypes_of_the_same_values_give_the_same_bytes(backend, fmt):
    matrix = normal(20, 165, torch.bfloat16).clamp(-4, 4).half().bfloat16()
    matrix[matrix.abs() < 1e-3] = 0  # what is left is the same number in every dtype
    codes = [quantize(matrix.to(dtype), fmt) for dtype in DTYPES]
    assert torch.equal(codes[0], codes[1]) and torch.equal(codes[0], codes[2])


@pytest.mark.parametrize("spread", [1e-30, 1e-3, 1.0, 1e30])
def test_int8_is_within_half_a_step(backend, spread):
    matrix = spread * normal(50, 288)
    codes = quantize(matrix, "int8")
    scale = scales_of(codes, "int8", 288).double()
    off = (dequantize(codes, 288).double() - matrix).abs()
    # x / scale, to which a code is the nearest, goes through a rounded inverse and a product
    assert bool((off <= scale / 2 + torch.finfo(torch.float32).eps * matrix.abs()).all())
    largest = torch.nn.functional.pad(matrix.abs(), (0, 96)).unflatten(1, (3, 128)).amax(-1)
    steps = 127 * scale[:, [0, 128, 256]] / largest
    assert bool((steps >= 1 - 1e-7).all() and (steps <= 1 + 2**-7 + 1e-7).all())  # rounded up, by one bf16 at most


@pytest.mark.parametrize("spread", [1e-15, 1.0, 1e15])
def test_int4_beats_mapping_the_largest_weight_to_minus_8(backend, spread):
    matrix = spread * normal(300, 320)
    grouped = matrix.unflatten(1, (10, 32))
    largest = grouped.gather(-1, grouped.abs().argmax(-1, keepdim=True))
    scale = (largest / -8).bfloat16().float()
    simple = (grouped / scale).round().clamp(-8, 7) * scale
    assert squared_error(matrix, quantize(matrix, "int4")) < 0.9 * float((simple - grouped).double().square().sum())


@pytest.mark.parametrize("fmt", FMTS)
def test_a_group_of_zeros_is_zeros(backend, fmt):
    matrix = normal(4, 300)
    size = GROUP[fmt]
    matrix[1, :size], matrix[2, 2 * size :], matrix[3] = 0, 0, -0.0
    codes = quantize(matrix, fmt)
    scale, value = scales_of(codes, fmt, 300), dequantize(codes, 300)
    assert not scale[1, :size].any() and not scale[2, 2 * size :].any() and not scale[3].any()
    assert not value[1, :size].any() and not value[2, 2 * size :].any() and not value[3].any()
    assert bool(value[0].any()) and bool(value[1, size:].any())


@pytest.mark.parametrize("largest", [1e-38, 1e-40, 1e-45, 1e30])
@pytest.mark.parametrize("fmt", FMTS)
def test_the_ends_of_the_float_range_stay_finite(backend, fmt, largest):
    matrix = normal(6, 288).clamp(-2, 2) / 2 * largest
    matrix[:, ::5] = 0
    value = dequantize(quantize(matrix, fmt), 288)
    assert bool(value.isfinite().all())
    # int4 may clip the largest, and what is tiny becomes 0
    assert float((value - matrix).abs().max()) <= max(0.2 * largest, 1e-36)


@pytest.mark.parametrize("fmt", FMTS)
def test_one_large_weight_spoils_its_group_alone(backend, fmt):
    matrix = normal(3, 288)
    clean = dequantize(quantize(matrix, fmt), 288)
    matrix[1, 130] = 1e6
    value = dequantize(quantize(matrix, fmt), 288)
    changed = (value != clean).any(dim=0).nonzero().flatten()
    assert torch.equal(value[[0, 2]], clean[[0, 2]])
    assert 128 <= int(changed.min()) and int(changed.max()) < 128 + GROUP[fmt]


@pytest.mark.parametrize("fmt", FMTS)
def test_writes_into_a_slice_and_nowhere_else(backend, fmt):
    matrix = normal(70, 165)
    expected = quantize(matrix, fmt)
    length = expected.shape[1]
    memory = poisoned(3, 75, length + 19, dtype=expected.dtype)
    out = memory[1, 2:72, 3 : 3 + length]
    assert quantize(matrix, fmt, out) is out
    assert torch.equal(out, expected)
    out.view(torch.uint8).fill_(255)
    assert bool((memory.view(torch.uint8) == 255).all())


@pytest.mark.parametrize("fmt", FMTS)
def test_fills_the_end_of_a_row_with_zeros(backend, fmt):
    length = row_bytes(fmt, 33)
    codes = quantize(normal(4, 33), fmt, poisoned(4, length, dtype=quantize(normal(1, 1), fmt).dtype))
    end = code_bytes(fmt, 33) + 2 * groups(fmt, 33)
    assert end < length and not codes[:, end:].any()
    assert not dequantize(codes, groups(fmt, 33) * GROUP[fmt])[:, 33:].any()


@pytest.mark.parametrize("fmt", FMTS)
def test_reads_a_matrix_that_is_a_view(backend, fmt):
    matrix = normal(288, 65)
    assert torch.equal(quantize(matrix.T, fmt), quantize(matrix.T.contiguous(), fmt))
    wide = poisoned(288, 80, dtype=torch.float32)
    wide[:, :65] = matrix
    assert torch.equal(quantize(wide[:, :65], fmt), quantize(matrix, fmt))


@pytest.mark.parametrize("fmt", FMTS)
def test_threads_and_instruction_sets_do_not_change_a_bit(compiled, threads, fmt):
    matrix = normal(300, 200)  # 64 rows are a task
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(quantize(matrix, fmt))
    cpu.cap_isa("generic")
    results.append(quantize(matrix, fmt))
    cpu.cap_isa(compiled.removeprefix("cpu-"))
    assert all(torch.equal(result, results[0]) for result in results[1:])


def test_names_what_does_not_fit(backend):
    with pytest.raises(ValueError, match="quantize: format is 'bf16'; supported are int8, int4"):
        quantize(normal(2, 40), "bf16")
    for out in (
        torch.empty(2, 143, dtype=torch.int8),
        torch.empty(3, 144, dtype=torch.int8),
        torch.empty(2, 144, dtype=torch.uint8),
        torch.empty(144, 2, dtype=torch.int8).T,
    ):
        with pytest.raises(ValueError, match=r"quantize: out must be \[2, 144\] torch.int8 with contiguous rows, got"):
            quantize(normal(2, 40), "int8", out)


def test_the_compiled_op_checks_what_it_is_given(compiled):
    op = torch.ops.prosparse.quantize
    matrix, out = normal(2, 40), torch.empty(2, 144, dtype=torch.int8)
    for bad_matrix, bad_out, message in [
        (matrix[0], out, r"matrix must be \[rows, columns\] on the CPU"),
        (normal(40, 2).T, out, r"matrix must be \[rows, columns\] on the CPU with contiguous rows"),
        (matrix.double(), out, "matrix must be float32, float16 or bfloat16"),
        (matrix, out[:, :143], "rows of out have 143 bytes, but 40 columns of int8 make 144"),
        (matrix, out[:1], "out must be 2 rows of int8 or int4"),
        (matrix, torch.empty(2, 40), "out must be 2 rows of int8 or int4"),
    ]:
        with pytest.raises(RuntimeError, match=f"^quantize: {message}"):
            op(bad_matrix, bad_out)


@pytest.mark.parametrize("fmt", FMTS)
def test_opcheck(backend, fmt):
    out = torch.zeros_like(in_format(normal(5, 40), fmt).codes)
    torch.library.opcheck(torch.ops.prosparse.quantize, (normal(5, 40), out))
