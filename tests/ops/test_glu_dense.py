"""glu_dense on every backend of this machine against its float64 meaning. Its bits are tested with glu_exact's."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, SHAPES, SPARSE, ffn_meaning, make_case, open_mask, poison_allocator
from closeness import assert_within

from prosparse.kernels.activation import Activation
from prosparse.kernels.glu_dense import glu_dense
from prosparse.kernels.tally import NONZERO, new_tally
from prosparse.kernels.weight import Weight

SILU = Activation("silu")


@pytest.mark.parametrize("activation", [*SPARSE, SILU], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_matches_float64(backend, shape, activation):
    case = make_case(*shape, padding=3)
    mask = open_mask(case, activation) if activation.makes_zeros else None
    poison_allocator()
    y = glu_dense(case.x, *case.weights, activation, new_tally("cpu"))
    assert_within(y, ffn_meaning(case, activation, mask), f"glu_dense on {backend}")


@pytest.mark.parametrize("weights", DTYPES, ids=str)
@pytest.mark.parametrize("x", DTYPES, ids=str)
def test_dtypes(backend, weights, x):
    case = make_case(2, 100, 77, weights, x)
    y = glu_dense(case.x, *case.weights, SILU, new_tally("cpu"))
    assert y.dtype == x
    assert_within(y, ffn_meaning(case, SILU, None), f"{weights} {x}")


def test_tally_counts_products_that_are_not_zero(backend):
    case = make_case(3, 40, 60)
    tally = torch.tensor([0, 0, 7])
    glu_dense(case.x, *case.weights, SILU, tally)
    assert tally[NONZERO].item() == 7 + 3 * 60
    relu = Activation("relu")
    glu_dense(case.x, *case.weights, relu, tally)
    assert tally[NONZERO].item() == 7 + 3 * 60 + int(open_mask(case, relu).sum())


def test_reads_closed_neurons_too(backend):
    """A dense baseline that skipped them would look too fast: an infinite weight of a closed neuron must show."""
    down = torch.ones(2, 1)
    down[1] = float("inf")
    gate = Weight(torch.tensor([[1.0], [-1.0]]))
    y = glu_dense(torch.ones(1, 1), gate, Weight(torch.ones(2, 1)), Weight(down), Activation("relu"), new_tally("cpu"))
    assert torch.isnan(y).all()


def test_nan_reaches_the_output_of_its_token_alone(backend):
    case = make_case(3, 40, 60)
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
    with pytest.raises(RuntimeError, match="^glu_dense: tally must be three int64"):
        torch.ops.prosparse.glu_dense(case.x, *codes, 0, 0.0, False, torch.zeros(1))


def test_opcheck(backend):
    case = make_case(2, 40, 60)
    codes = [weight.codes for weight in case.weights]
    torch.library.opcheck(torch.ops.prosparse.glu_dense, (case.x, *codes, SILU.code, 0.0, False, new_tally("cpu")))
