"""glu_dense on every backend of this machine against its float64 meaning. Its bits are tested with glu_exact's."""

from __future__ import annotations

import pytest
import torch
from cases import (
    DTYPES,
    FFNS,
    LAYERS,
    PACKED,
    ffn_meaning,
    label,
    make_case,
    make_infinite,
    open_mask,
    poison_allocator,
)
from closeness import assert_within

from prosparse.kernels.activation import Activation
from prosparse.kernels.glu_dense import glu_dense
from prosparse.kernels.tally import NONZERO, new_tally
from prosparse.kernels.weight import FORMAT_OF_DTYPE, Weight, in_format

SILU = Activation("silu")
FORMATS = [torch.bfloat16, *PACKED]
ALL_FFNS = [*FFNS, *((weights, shape, SILU) for weights, shape in LAYERS)]


@pytest.mark.parametrize(("weights", "shape", "activation"), ALL_FFNS, ids=label)
def test_matches_float64(backend, weights, shape, activation):
    case = make_case(*shape, weights, padding=3)
    mask = open_mask(case, activation) if activation.makes_zeros else None
    poison_allocator()
    y = glu_dense(case.x, *case.weights, activation, new_tally("cpu"))
    assert_within(y, ffn_meaning(case, activation, mask), f"glu_dense on {backend}")


@pytest.mark.parametrize("weights", [*DTYPES, *PACKED], ids=label)
@pytest.mark.parametrize("x", DTYPES, ids=label)
def test_dtypes(backend, weights, x):
    case = make_case(2, 100, 77, weights, x)
    y = glu_dense(case.x, *case.weights, SILU, new_tally("cpu"))
    assert y.dtype == x
    assert_within(y, ffn_meaning(case, SILU, None), f"{weights} {x}")


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_tally_counts_products_that_are_not_zero(backend, weights):
    case = make_case(3, 40, 60, weights)
    tally = torch.tensor([0, 0, 7, 0])
    glu_dense(case.x, *case.weights, SILU, tally)
    assert tally[NONZERO].item() == 7 + 3 * 60
    relu = Activation("relu")
    glu_dense(case.x, *case.weights, relu, tally)
    assert tally[NONZERO].item() == 7 + 3 * 60 + int(open_mask(case, relu).sum())


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_reads_closed_neurons_too(backend, weights):
    """A dense baseline that skipped them would look too fast: an infinite weight of a closed neuron must show."""
    ones = torch.ones(2, 1)
    gate, up, down = (
        in_format(matrix, FORMAT_OF_DTYPE[weights]) for matrix in (torch.tensor([[1.0], [-1]]), ones, ones)
    )
    assert torch.isfinite(glu_dense(torch.ones(1, 1), gate, up, down, Activation("relu"), new_tally("cpu"))).all()
    make_infinite(down, 1)
    assert torch.isnan(glu_dense(torch.ones(1, 1), gate, up, down, Activation("relu"), new_tally("cpu"))).all()


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_nan_reaches_the_output_of_its_token_alone(backend, weights):
    case = make_case(3, 40, 60, weights)
    clean = glu_dense(case.x, *case.weights, SILU, new_tally("cpu"))
    case.x[1, 5] = float("nan")
    y = glu_dense(case.x, *case.weights, SILU, new_tally("cpu"))
    assert torch.isnan(y[1]).all()
    torch.testing.assert_close(y[[0, 2]], clean[[0, 2]])


def test_says_what_is_wrong(backend):
    case = make_case(2, 40, 60)
    gate, up, down = case.weights
    with pytest.raises(ValueError, match=r"glu_dense: x has 17 tokens, this op takes 1 to 16"):
        glu_dense(case.x.new_zeros(17, 40), gate, up, down, SILU, new_tally("cpu"))
    with pytest.raises(ValueError, match=r"glu_dense: neurons is 60 in gate but 59 in down"):
        glu_dense(case.x, gate, up, Weight(down.codes[:59]), SILU, new_tally("cpu"))


def test_the_compiled_op_checks_what_it_is_given(compiled):
    case = make_case(2, 40, 60)
    codes = [weight.codes for weight in case.weights]
    with pytest.raises(RuntimeError, match=r"^glu_dense: activation code -1 is not known"):
        torch.ops.prosparse.glu_dense(case.x, *codes, -1, 0.0, False, new_tally("cpu"))
    with pytest.raises(RuntimeError, match="^glu_dense: tally must be four int64"):
        torch.ops.prosparse.glu_dense(case.x, *codes, 0, 0.0, False, torch.zeros(1))
    codes[1] = torch.zeros(60, 31, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="^glu_dense: rows of up have 31 bytes, but 40 columns of int4 make 48"):
        torch.ops.prosparse.glu_dense(case.x, *codes, 0, 0.0, False, new_tally("cpu"))


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_opcheck(backend, weights):
    case = make_case(2, 40, 60, weights)
    codes = [weight.codes for weight in case.weights]
    torch.library.opcheck(torch.ops.prosparse.glu_dense, (case.x, *codes, SILU.code, 0.0, False, new_tally("cpu")))
