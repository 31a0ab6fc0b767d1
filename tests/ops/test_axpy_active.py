"""axpy_active on every backend: its float64 meaning, and its bits with any number of threads and neighbours."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, LAYERS, PACKED, label, make_case, make_infinite, poison_allocator
from closeness import Bounded, assert_within

from prosparse.kernels.axpy_active import axpy_active
from prosparse.kernels.tally import new_tally
from prosparse.kernels.weight import Weight

FORMATS = [torch.bfloat16, *PACKED]


def make(tokens, hidden, neurons, weights=torch.bfloat16, share=0.3, h=torch.float32, padding=0):
    """(h with a share of numbers that are not zero, down, bias)"""
    rng = torch.Generator().manual_seed(0)
    values = torch.randn(tokens, neurons, generator=rng) * (torch.rand(tokens, neurons, generator=rng) < share)
    down = make_case(tokens, hidden, neurons, weights, padding=padding).down
    return values.to(h), down, torch.randn(hidden, generator=rng)


def meaning(h, down, bias) -> Bounded:
    y = Bounded.exact(h) @ down.values()
    return y if bias is None else y.plus(bias)


@pytest.mark.parametrize(("weights", "shape"), LAYERS, ids=label)
def test_matches_float64(backend, weights, shape):
    case = make(*shape, weights, padding=3)
    poison_allocator()
    assert_within(axpy_active(*case, new_tally("cpu")), meaning(*case), f"axpy_active on {backend}")


@pytest.mark.parametrize("weights", [*DTYPES, *PACKED], ids=label)
@pytest.mark.parametrize("dtype", DTYPES, ids=label)
def test_dtypes_without_bias(backend, weights, dtype):
    h, down, _ = make(2, 100, 77, weights, h=dtype)
    y = axpy_active(h, down, None, new_tally("cpu"))
    assert y.dtype == dtype
    assert_within(y, meaning(h, down, None), f"{weights} {dtype}")


@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize("share", [0.0, 0.2, 1.0])
def test_reads_the_rows_of_what_is_not_zero(backend, weights, share):
    case = make(2, 70, 530, weights, share)
    h, down, bias = case
    used, tally = (h != 0).any(0), new_tally("cpu")
    for row in (~used).nonzero().flatten().tolist():
        make_infinite(down, row)
    y = axpy_active(*case, tally)
    assert tally.tolist() == [int(used.sum())] * 2 + [int((h != 0).sum()), 0]
    expected = h[:, used].double() @ down.values()[used].double() + bias.double()
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    assert share or torch.equal(y, bias.expand(2, -1))


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_threads_and_neighbours_do_not_change_a_bit(compiled, threads, weights):
    h, down, bias = make(5, 600, 700, weights)
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results.append(axpy_active(h, down, bias, new_tally("cpu")))
        results.append(torch.cat([axpy_active(h[t : t + 1], down, bias, new_tally("cpu")) for t in range(5)]))
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_nan_reaches_the_output_of_its_token_alone(backend, weights):
    h, down, bias = make(3, 40, 60, weights)
    clean = axpy_active(h, down, bias, new_tally("cpu"))
    h[1, 7] = float("nan")
    y = axpy_active(h, down, bias, new_tally("cpu"))
    assert bool(y[1].isnan().all()) and bool(y[[0, 2]].isfinite().all())
    torch.testing.assert_close(y[[0, 2]], clean[[0, 2]])


def test_says_what_is_wrong(backend):
    h, down, bias = make(2, 40, 60)
    with pytest.raises(ValueError, match="axpy_active: neurons is 60 in h but 59 in down"):
        axpy_active(h, Weight(down.codes[:59]), bias, new_tally("cpu"))
    with pytest.raises(ValueError, match="axpy_active: bias must be 40 float32 numbers, got .39,. of torch.float32"):
        axpy_active(h, down, bias[:39], new_tally("cpu"))
    with pytest.raises(ValueError, match="axpy_active: x has 17 tokens"):
        axpy_active(h[:1].expand(17, -1).contiguous(), down, bias, new_tally("cpu"))


def test_the_compiled_op_checks_what_it_is_given(compiled):
    h, down, bias = make(2, 40, 60)
    op, tally = torch.ops.prosparse.axpy_active, new_tally("cpu")
    with pytest.raises(RuntimeError, match="^axpy_active: h has 60 neurons but down has 59"):
        op(h, down.codes[:59], 40, bias, tally)
    with pytest.raises(RuntimeError, match="^axpy_active: down has 40 columns but x has 41"):
        op(h, down.codes, 41, None, tally)
    with pytest.raises(RuntimeError, match="^axpy_active: bias must be 40 contiguous float32"):
        op(h, down.codes, 40, bias[:39], tally)


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(backend, bias):
    h, down, vector = make(2, 40, 60)
    arguments = (h, down.codes, 40, vector if bias else None, new_tally("cpu"))
    torch.library.opcheck(torch.ops.prosparse.axpy_active, arguments)
