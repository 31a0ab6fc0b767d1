"""linear_active on every backend: its float64 meaning on the listed rows, zeros and no reads elsewhere."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, LAYERS, PACKED, label, make_case, make_infinite, poison_allocator, product
from closeness import assert_within

from prosparse.kernels.active import ActiveNeurons, compact
from prosparse.kernels.linear import linear
from prosparse.kernels.linear_active import linear_active
from prosparse.kernels.tally import PREDICTED, new_tally
from prosparse.kernels.weight import Weight

FORMATS = [torch.bfloat16, *PACKED]
MATRICES = [(*layer, DTYPES[i % 3]) for i, layer in enumerate(LAYERS)]


def make(tokens, hidden, neurons, weights=torch.bfloat16, share=0.4, x=torch.float32, padding=0):
    """(x, weight, bias, chosen [neurons] bool)"""
    rng = torch.Generator().manual_seed(0)
    case = make_case(tokens, hidden, neurons, weights, x, padding=padding)
    return case.x, case.gate, torch.randn(neurons, generator=rng), torch.rand(neurons, generator=rng) < share


def run(x, weight, bias, chosen):
    """(output, tally), over a list whose entries past the count would read elsewhere."""
    index, count = compact(chosen)
    index[int(count) :] = 2**31 - 1
    tally = new_tally("cpu")
    return linear_active(x, weight, bias, ActiveNeurons(index, count), tally), tally


@pytest.mark.parametrize(("weights", "shape", "x"), MATRICES, ids=label)
def test_matches_float64(backend, weights, shape, x):
    x, weight, bias, chosen = make(*shape, weights, x=x, padding=3)
    poison_allocator()
    y, tally = run(x, weight, bias, chosen)
    assert y.dtype == x.dtype and bool((y[:, ~chosen] == 0).all())
    assert tally.tolist() == [0, 0, 0, int(chosen.sum())]
    assert_within(y, product(x, weight).plus(bias).where(chosen), f"linear_active on {backend}")


@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_listed_rows_have_the_bits_of_linear_and_no_others_are_read(compiled, threads, weights, share):
    x, weight, _, chosen = make(5, 140, 700, weights, share)
    expected = linear(x, weight) * chosen
    for row in (~chosen).nonzero().flatten().tolist():
        make_infinite(weight, row)
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        y, tally = run(x, weight, None, chosen)
        assert torch.equal(y, expected) and int(tally[PREDICTED]) == int(chosen.sum())


def test_says_what_is_wrong(backend):
    x, weight, bias, chosen = make(2, 40, 60)
    with pytest.raises(ValueError, match="linear_active: hidden is 40 in x but 39 in weight"):
        run(x, Weight(weight.codes[:, :39]), bias, chosen)
    with pytest.raises(ValueError, match="linear_active: bias must be 60 float32 numbers, got .59,. of torch.float32"):
        run(x, weight, bias[:59], chosen)
    for index, count, fault in (
        ([3, 60], 2, "index holds 3..60 but there are 60 neurons"),
        ([3, 3], 2, "index must ascend"),
        ([3, 4], 3, "count is 3 but the list has capacity 2"),
    ):
        listed = ActiveNeurons(torch.tensor(index, dtype=torch.int32), torch.tensor([count], dtype=torch.int32))
        with pytest.raises(RuntimeError, match=f"linear_active: {fault}"):
            linear_active(x, weight, bias, listed, new_tally("cpu"))


def test_the_compiled_op_checks_what_it_is_given(compiled):
    x, weight, bias, chosen = make(2, 40, 60)
    op, tally = torch.ops.prosparse.linear_active, new_tally("cpu")
    with pytest.raises(RuntimeError, match="^linear_active: bias must be 60 contiguous float32"):
        op(x, weight.codes, bias[:59], *compact(chosen), tally)
    with pytest.raises(RuntimeError, match="^linear_active: weight has 39 columns but x has 40"):
        op(x, weight.codes[:, :39], bias, *compact(chosen), tally)


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(backend, bias):
    x, weight, vector, chosen = make(2, 40, 60)
    arguments = (x, weight.codes, vector if bias else None, *compact(chosen), new_tally("cpu"))
    torch.library.opcheck(torch.ops.prosparse.linear_active, arguments)
