"""gate_select on every backend of this machine against its float64 meaning."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import (
    DTYPES,
    FFNS,
    PACKED,
    assert_set_is_right,
    gate_meaning,
    label,
    listed,
    make_case,
    open_mask,
    poison_allocator,
    product,
)
from closeness import Bounded, assert_within

from prosparse.kernels.activation import Activation
from prosparse.kernels.gate_select import gate_select
from prosparse.kernels.weight import FORMAT_OF_DTYPE, Weight, in_format

RELU = Activation("relu")
FORMATS = [torch.bfloat16, *PACKED]


@pytest.mark.parametrize(("weights", "shape", "activation"), FFNS, ids=label)
def test_matches_float64(backend, weights, shape, activation):
    case = make_case(*shape, weights, padding=5)
    poison_allocator()
    ids, value = listed(gate_select(case.x, case.gate, activation))
    assert (ids.diff() > 0).all()
    mask = open_mask(case, activation)
    assert_set_is_right(case, activation, mask)
    expected = gate_meaning(case, activation, mask)
    assert_within(value, Bounded(expected.value[:, ids], expected.error[:, ids]), f"gate_select on {backend}")


@pytest.mark.parametrize("weights", [*DTYPES, *PACKED], ids=label)
@pytest.mark.parametrize("x", DTYPES, ids=label)
def test_dtypes(backend, weights, x):
    case = make_case(2, 100, 77, weights, x)
    active = gate_select(case.x, case.gate, RELU)
    assert (active.index.dtype, active.count.dtype, active.value.dtype) == (torch.int32, torch.int32, torch.float32)
    mask = open_mask(case, RELU)
    assert_set_is_right(case, RELU, mask)
    ids, value = listed(active)
    expected = gate_meaning(case, RELU, mask)
    assert_within(value, Bounded(expected.value[:, ids], expected.error[:, ids]), f"{weights} {x}")


def constant_gate(*gates: float) -> tuple[torch.Tensor, Weight]:
    """One token whose pre-activations are exactly the given numbers."""
    return torch.ones(1, 1), Weight(torch.tensor(gates).view(-1, 1))


def test_zero_is_closed_and_nan_is_open(backend):
    nan, inf = float("nan"), float("inf")
    x, gate = constant_gate(0.0, -0.0, 1.0, nan, -1.0, inf, -inf, 1e-45)
    ids, value = listed(gate_select(x, gate, RELU))
    assert ids.tolist() == [2, 3, 5, 7]
    assert torch.equal(value.nan_to_num(-7.0, inf), torch.tensor([[1.0, -7.0, inf, 1e-45]]))


def test_the_threshold_itself_is_open(backend):
    below = torch.tensor(0.3).nextafter(torch.tensor(0.0)).item()
    x, gate = constant_gate(0.3, below, 0.4, 0.0, float("nan"), -0.5)
    ids, value = listed(gate_select(x, gate, Activation("fatrelu", 0.3)))
    assert ids.tolist() == [0, 2, 4]
    assert value[0, :2].tolist() == torch.tensor([0.3, 0.4]).tolist()


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_a_nan_gate_is_open_for_its_token_alone(backend, weights):
    case = make_case(4, 140, 40, weights)
    clean = open_mask(case, RELU)
    case.x[1, 3], case.x[3, 135] = float("nan"), float("inf")
    ids, value = listed(gate_select(case.x, case.gate, RELU))
    assert ids.tolist() == list(range(40)) and bool(value[1].isnan().all())
    assert torch.equal(value[[0, 2]] != 0, clean[[0, 2]])
    assert not bool(value[3].isfinite().logical_and(value[3] != 0).any())


@pytest.mark.parametrize("weights", PACKED, ids=label)
def test_a_packed_row_of_zeros_and_an_x_of_zeros_are_closed(backend, weights):
    case = make_case(2, 140, 40, weights)
    case.x[1] = 0
    gate = case.gate.values()
    gate[7] = 0
    mask = open_mask(replace(case, gate=in_format(gate, FORMAT_OF_DTYPE[weights])), RELU)
    assert not bool(mask[1].any()) and not bool(mask[0, 7]) and bool(mask[0].any())


@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize("neurons", [1, 16, 40, 600])
def test_none_all_and_one(backend, neurons, weights):
    x = torch.ones(1, 3)
    closed = torch.full((neurons, 3), -1.0)

    def select(gate: torch.Tensor) -> list[int]:
        weight = in_format(gate, FORMAT_OF_DTYPE[weights])
        ids, value = listed(gate_select(x, weight, RELU))
        meaning = product(x, weight)
        assert_within(value, Bounded(meaning.value[:, ids], meaning.error[:, ids]), "gate_select")
        return ids.tolist()

    assert select(closed) == []
    assert select(-closed) == list(range(neurons))
    for one in {0, neurons // 2, neurons - 1}:
        gate = closed.clone()
        gate[one] = 2.0
        assert select(gate) == [one]


def test_lists_the_union_of_tokens(backend):
    gate = Weight(torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]]))
    ids, value = listed(gate_select(torch.tensor([[1.0, -1.0], [-1.0, 2.0]]), gate, RELU))
    assert ids.tolist() == [0, 1] and value.tolist() == [[1.0, 0.0], [0.0, 2.0]]


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_threads_and_neighbours_do_not_change_a_bit(compiled, threads, weights):
    case = make_case(5, 170, 530, weights)
    torch.set_num_threads(1)
    ids, value = listed(gate_select(case.x, case.gate, RELU))
    for n in (2, 3):
        torch.set_num_threads(n)
        again = listed(gate_select(case.x, case.gate, RELU))
        assert torch.equal(ids, again[0]) and torch.equal(value, again[1])
    for t in range(5):
        alone_ids, alone = listed(gate_select(case.x[t : t + 1].contiguous(), case.gate, RELU))
        assert torch.equal(alone_ids, ids[value[t] != 0]) and torch.equal(alone[0], value[t][value[t] != 0])


def test_says_what_is_wrong(backend):
    case = make_case(2, 64, 40)
    with pytest.raises(ValueError, match=r"gate_select: silu makes no exact zeros.*use glu_dense"):
        gate_select(case.x, case.gate, Activation("silu"))
    with pytest.raises(ValueError, match=r"gate_select: hidden is 63 in x but 64 in gate"):
        gate_select(case.x[:, :63].contiguous(), case.gate, RELU)
    with pytest.raises(ValueError, match=r"gate_select: x has 17 tokens, this op takes 1 to 16"):
        gate_select(case.x.new_zeros(17, 64), case.gate, RELU)


def test_the_compiled_op_checks_what_it_is_given(compiled):
    case = make_case(2, 64, 40)
    with pytest.raises(RuntimeError, match=r"^gate_select: activation code 4 is not known \(0 to 3\)"):
        torch.ops.prosparse.gate_select(case.x, case.gate.codes, 4, 0.0)
    with pytest.raises(RuntimeError, match=r"^gate_select: gate must be \[rows, columns\], got 1 dimensions"):
        torch.ops.prosparse.gate_select(case.x, case.gate.codes[0], 0, 0.0)
    with pytest.raises(RuntimeError, match="^gate_select: rows of gate have 47 bytes, but 64 columns of int4 make 48"):
        torch.ops.prosparse.gate_select(case.x, torch.zeros(40, 47, dtype=torch.uint8), 0, 0.0)


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_opcheck(backend, weights):
    # every neuron open: entries past count are undefined, and opcheck compares them
    gate = in_format(torch.rand(40, 8) + 1, FORMAT_OF_DTYPE[weights])
    torch.library.opcheck(torch.ops.prosparse.gate_select, (torch.ones(2, 8), gate.codes, RELU.code, 0.0))
