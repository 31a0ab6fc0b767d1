"""linear on every backend of this machine against its float64 meaning."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, PACKED, PACKED_SHAPES, apart, label, poison_allocator, poisoned, product
from closeness import Bounded, assert_within

from prosparse.kernels import cpu
from prosparse.kernels.linear import gemm_transposed, linear
from prosparse.kernels.weight import FORMAT_OF_DTYPE, Weight, in_format

# tokens, columns, rows: one of each, multiples of nothing, around the 32-row task, many tokens
SHAPES = [(1, 1, 1), (1, 33, 31), (2, 100, 33), (5, 64, 64), (16, 31, 70), (3, 288, 515)]
# Packed rows see x in fixed point whatever it was, so its dtype changes from shape to shape.
MATRICES = [
    *((shape, x, weight) for shape in SHAPES for x in DTYPES for weight in DTYPES),
    *((shape, DTYPES[i % 3], weight) for weight in PACKED for i, shape in enumerate(PACKED_SHAPES)),
]
FORMATS = [torch.bfloat16, *PACKED]


def make(tokens, columns, rows, weight=torch.bfloat16, x=torch.float32):
    rng = torch.Generator().manual_seed(0)
    matrix = torch.randn(rows, columns, generator=rng)
    return torch.randn(tokens, columns, generator=rng).to(x), in_format(matrix, FORMAT_OF_DTYPE[weight])


@pytest.mark.parametrize(("shape", "x_dtype", "weight_dtype"), MATRICES, ids=label)
def test_matches_float64(backend, shape, x_dtype, weight_dtype):
    x, weight = make(*shape, weight_dtype, x_dtype)
    poison_allocator()
    y = linear(x, weight)
    assert y.dtype == x_dtype
    assert_within(y, product(x, weight), f"linear on {backend}")


def test_every_fp16_weight_is_read_exactly(compiled):
    every = torch.arange(2**16, dtype=torch.int32).to(torch.uint16).view(torch.float16).view(-1, 64)
    columns = torch.eye(64)
    y = torch.cat(
        [linear(columns[i : i + 16].contiguous(), Weight(every.nan_to_num(0, 0, 0))) for i in range(0, 64, 16)]
    )
    assert torch.equal(y.T, every.nan_to_num(0, 0, 0).float())
    special = every.reshape(-1, 1)[~every.isfinite().flatten()].contiguous()
    assert torch.allclose(linear(torch.ones(1, 1), Weight(special)).T, special.float(), equal_nan=True)


@pytest.mark.parametrize("weights", [*DTYPES, *PACKED], ids=label)
def test_reads_rows_further_apart_than_they_are_long(backend, weights):
    x, weight = make(2, 165, 37, weights)
    (wide,) = apart([weight], 19)
    assert torch.equal(linear(x, wide), linear(x, weight))


@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize("tokens", [2, 3, 5, 16])
def test_a_token_does_not_depend_on_its_neighbours(compiled, tokens, weights):
    x, weight = make(tokens, 300, 77, weights)
    together = linear(x, weight)
    for t in range(tokens):
        assert torch.equal(together[t : t + 1], linear(x[t : t + 1].contiguous(), weight))


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_threads_do_not_change_a_bit(compiled, threads, weights):
    x, weight = make(3, 100, 600, weights)  # 128 rows are a task
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(linear(x, weight))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])


@pytest.mark.parametrize("weights", PACKED, ids=label)
def test_packed_rows_have_the_same_bits_on_every_instruction_set_with_fma(compiled, weights):
    x, weight = make(5, 300, 77, weights)
    results = []
    for limit in cpu.ISAS[1:]:  # "generic" has none
        cpu.cap_isa(limit)
        results.append(linear(x, weight))
    cpu.cap_isa(compiled.removeprefix("cpu-"))
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_nan_and_inf_stay_in_their_token(backend, weights):
    x, weight = make(3, 140, 20, weights)
    clean = linear(x, weight)
    x[1, 7], x[2, 133] = float("nan"), float("inf")
    y = linear(x, weight)
    assert torch.isnan(y[1]).all() and not torch.isfinite(y[2]).any()
    assert weight.is_packed or torch.isinf(y[2]).all()
    torch.testing.assert_close(y[0], clean[0])


@pytest.mark.parametrize("weights", PACKED, ids=label)
def test_x_at_the_ends_of_the_float_range_meets_packed_rows(compiled, weights):
    x, weight = make(3, 140, 20, weights)
    x *= torch.tensor([[1e30], [1e-30], [0.0]])
    x[1, :64] *= 1e-7  # below what fixed point can hold: counts as zero
    assert_within(linear(x, weight), product(x, weight), "linear")


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_a_row_outside_the_weight_is_not_read(compiled, weights):
    x, weight = make(1, 64, 8, weights)
    around = poisoned(10, weight.codes.shape[1], dtype=weights)
    around[1:9] = weight.codes
    assert torch.equal(linear(x, Weight(around[1:9], weight.packed_columns)), linear(x, weight))


def test_more_tokens_than_a_step_are_a_gemm(backend):
    x, weight = make(17, 64, 40, torch.float32)
    assert_within(linear(x, weight), product(x, weight), "linear, 17 tokens")


def test_gemm_transposed_matches_float64():
    x, weight = make(20, 40, 64, torch.float32)
    x = x[:, :1].expand(20, 64).contiguous()
    assert_within(gemm_transposed(x, weight), Bounded.exact(x) @ weight.codes, "gemm_transposed")


@pytest.mark.parametrize("weights", PACKED, ids=label)
def test_a_gemm_rounds_packed_values_to_bf16(backend, weights):
    x, weight = make(17, 100, 40, weights)
    rounded = weight.values().bfloat16()
    assert torch.equal(linear(x, weight), linear(x, Weight(rounded)))
    assert torch.equal(gemm_transposed(x[:, :40], weight), gemm_transposed(x[:, :40], Weight(rounded)))


def test_says_what_is_wrong(backend):
    x, weight = make(2, 64, 40)
    with pytest.raises(ValueError, match=r"linear: columns is 63 in x but 64 in weight"):
        linear(x[:, :63].contiguous(), weight)
    with pytest.raises(ValueError, match=r"linear: x must be contiguous, got strides \(1, 2\)"):
        linear(x.T.contiguous().T, weight)
    with pytest.raises(ValueError, match=r"linear: x must be one of .* got torch.float64"):
        linear(x.double(), weight)


def test_the_compiled_op_checks_what_it_is_given(compiled):
    x, weight = make(2, 64, 40)
    op = torch.ops.prosparse.linear
    for bad_x, bad_weight, message in [
        (x[:, :63].contiguous(), weight.codes, "weight has 64 columns but x has 63"),
        (x, weight.codes.T, "weight has 40 columns but x has 64"),
        (x, torch.zeros(64, 40, dtype=torch.bfloat16).T, "rows of weight must be contiguous, got stride 40"),
        (x, weight.codes.to(torch.int8), "rows of weight have 64 bytes, but 64 columns of int8 make 144"),
        (x, torch.zeros(40, 64, dtype=torch.uint8), "rows of weight have 64 bytes, but 64 columns of int4 make 48"),
        (x, torch.zeros(40, 96, dtype=torch.uint8)[:, ::2], "rows of weight must be contiguous, got stride 2"),
        (x, weight.codes.to(torch.int32), "weight must be float32, float16 or bfloat16, got dtype code 3"),
        (x.T.contiguous().T, weight.codes, "x must be contiguous"),
        (x[:0], weight.codes, "x has 0 tokens, this op takes 1 to 16"),
        (x.new_zeros(17, 64), weight.codes, "x has 17 tokens, this op takes 1 to 16"),
        (x[0], weight.codes, r"x must be \[tokens, columns\], got 1 dimensions"),
    ]:
        with pytest.raises(RuntimeError, match=f"^linear: {message}"):
            op(bad_x, bad_weight)


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_opcheck(backend, weights):
    x, weight = make(2, 64, 40, weights)
    torch.library.opcheck(torch.ops.prosparse.linear, (x, weight.codes))
