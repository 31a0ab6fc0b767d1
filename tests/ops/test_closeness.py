"""The bound that packed rows are held to: kernels reach it, and what it must see lies outside of it."""

from __future__ import annotations

import pytest
import torch
from cases import PACKED, as_read, ffn_meaning, label, make_case, open_mask, product
from closeness import assert_within

from prosparse.kernels.activation import Activation
from prosparse.kernels.glu_exact import glu_exact
from prosparse.kernels.linear import linear
from prosparse.kernels.quant import code_bytes
from prosparse.kernels.tally import new_tally
from prosparse.kernels.weight import FORMAT_OF_DTYPE, Weight, in_format

OUT = "elements are out of bounds"


@pytest.mark.parametrize("weights", PACKED, ids=label)
def test_kernels_come_close_to_the_bound_and_stay_within(compiled, weights):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(16, 32, generator=rng)  # one group, so one scale
    eye = in_format(torch.eye(32), FORMAT_OF_DTYPE[weights])
    off = (linear(x, eye).double() / eye.values().diagonal() - x).abs()
    share = off / as_read(x, eye).error
    assert 0.98 < float(share.max()) <= 1.02  # the quotient and the sum are rounded to fp32


def test_groups_have_scales_of_their_own():
    x = torch.ones(1, 40)
    x[0, 3], x[0, 39] = 1000.0, 1e-36
    error = as_read(x, Weight(torch.zeros(1, 48, dtype=torch.uint8), 40)).error
    assert error[0, 0] == pytest.approx(1000 / 65534, rel=1e-4) and error[0, 33] == pytest.approx(1 / 65534, rel=1e-2)
    assert as_read(1e-36 * x[:, 32:], Weight(torch.zeros(1, 32, dtype=torch.uint8), 8)).error[0, 0] == x.new_tensor(
        1e-36
    )


def byte_of(weight: Weight, column: int) -> int:
    """Where a column's code lies in its row."""
    return column if weight.format == "int8" else column // 32 * 16 + column % 4 * 4 + column % 32 // 8


@pytest.mark.parametrize("weights", PACKED, ids=label)
@pytest.mark.parametrize("hidden", [40, 160, 288])
def test_one_code_that_is_off_by_one_is_seen(compiled, weights, hidden):
    case = make_case(1, hidden, 8, weights)
    expected = product(case.x, case.gate)
    assert_within(linear(case.x, case.gate), expected, "as it is")
    column = int(case.x[0].abs().argmax())
    bit = 16 if weights == torch.uint8 and column // 4 % 2 else 1  # a byte of int4 holds columns that are 4 apart
    for row in range(8):
        codes = case.gate.codes.clone()
        codes.view(torch.uint8)[row, byte_of(case.gate, column)] ^= bit
        wrong = Weight(codes, hidden)
        assert int((wrong.values() != case.gate.values()).sum()) == 1
        with pytest.raises(AssertionError, match=f"1 of 8 {OUT}"):
            assert_within(linear(case.x, wrong), expected, "one code")


@pytest.mark.parametrize("weights", PACKED, ids=label)
def test_a_scale_that_is_off_by_its_last_bit_is_seen(compiled, weights):
    case = make_case(1, 288, 64, weights)
    expected = product(case.x, case.gate)
    codes = case.gate.codes.clone()
    codes.view(torch.uint8)[:, code_bytes(case.gate.format, 288)] ^= 1  # of the first group of every row
    seen = (linear(case.x, Weight(codes, 288)) - expected.value).abs() > expected.error
    assert float(seen.float().mean()) > 0.5  # where the group's share of the product is not small by chance


@pytest.mark.parametrize("weights", PACKED, ids=label)
def test_one_down_code_of_one_active_neuron_is_seen(compiled, weights):
    relu = Activation("relu")
    case = make_case(1, 160, 90, weights)
    mask = open_mask(case, relu)
    expected = ffn_meaning(case, relu, mask)
    assert_within(glu_exact(case.x, *case.weights, relu, new_tally("cpu")), expected, "as it is")
    h = (case.x @ case.gate.values().T) * (case.x @ case.up.values().T) * mask
    case.down.codes.view(torch.uint8)[int(h.abs().argmax()), byte_of(case.down, 129)] ^= 1
    with pytest.raises(AssertionError, match=f"1 of 160 {OUT}"):
        assert_within(glu_exact(case.x, *case.weights, relu, new_tally("cpu")), expected, "one code")
