"""glu_active on every backend of this machine against its float64 meaning."""

from __future__ import annotations

import pytest
import torch
from cases import DTYPES, FFNS, PACKED, ffn_meaning, label, listed, make_case, open_mask, poison_allocator
from closeness import assert_within

from prosparse.kernels.activation import Activation
from prosparse.kernels.active import ActiveNeurons
from prosparse.kernels.gate_select import gate_select
from prosparse.kernels.glu_active import glu_active
from prosparse.kernels.tally import DOWN_ROWS, NONZERO, UP_ROWS, new_tally
from prosparse.kernels.weight import Weight

RELU = Activation("relu")
FORMATS = [torch.bfloat16, *PACKED]


def run(case, activation, active=None, tally=None):
    active = gate_select(case.x, case.gate, activation) if active is None else active
    return glu_active(case.x, case.up, case.down, active, activation, new_tally("cpu") if tally is None else tally)


@pytest.mark.parametrize(("weights", "shape", "activation"), FFNS, ids=label)
def test_matches_float64(backend, weights, shape, activation):
    case = make_case(*shape, weights, padding=3)
    poison_allocator()
    y = run(case, activation)
    assert_within(y, ffn_meaning(case, activation, open_mask(case, activation)), f"glu_active on {backend}")


@pytest.mark.parametrize("weights", [*DTYPES, *PACKED], ids=label)
@pytest.mark.parametrize("x", DTYPES, ids=label)
def test_dtypes(backend, weights, x):
    case = make_case(2, 100, 77, weights, x)
    y = run(case, RELU)
    assert y.dtype == x
    assert_within(y, ffn_meaning(case, RELU, open_mask(case, RELU)), f"{weights} {x}")


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_ignores_everything_past_count(backend, weights):
    case = make_case(3, 40, 60, weights)
    active = gate_select(case.x, case.gate, RELU)
    clean = run(case, RELU, active)
    count = int(active.count)
    active.index[count:] = 2**31 - 1  # left over from an earlier token: reading it would leave the matrix
    active.value[:, count:] = float("nan")
    assert torch.equal(run(case, RELU, active), clean)


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_an_empty_list_gives_zeros(backend, weights):
    case = make_case(2, 40, 60, weights)
    none = ActiveNeurons(torch.full((5,), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), torch.ones(2, 5))
    poison_allocator()
    tally = new_tally("cpu")
    assert torch.equal(run(case, RELU, none, tally), torch.zeros(2, 40)) and tally[NONZERO].item() == 0
    empty = ActiveNeurons(torch.zeros(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), torch.ones(2, 0))
    assert torch.equal(run(case, RELU, empty), torch.zeros(2, 40))


def test_closed_products_read_nothing_of_down(backend):
    x = torch.ones(1, 2)
    up = Weight(torch.tensor([[1.0, 1.0], [-3.0, 1.0]]))
    down = Weight(torch.tensor([[1.0, 2.0], [5.0, 7.0]]))
    active = ActiveNeurons(
        torch.tensor([0, 1], dtype=torch.int32), torch.tensor([2], dtype=torch.int32), torch.tensor([[2.0, 1.0]])
    )
    tally = new_tally("cpu")
    assert glu_active(x, up, down, active, Activation("relu", on_up=True), tally).tolist() == [[4.0, 8.0]]
    assert tally[NONZERO].item() == 1 and tally[DOWN_ROWS] < tally[UP_ROWS]  # up closed one: its down row is not read
    assert glu_active(x, up, down, active, RELU, tally).tolist() == [[-6.0, -6.0]]
    assert tally[NONZERO].item() == 3


def test_a_closed_gate_wins_over_an_overflowed_up(backend):
    big = Weight(torch.full((1, 2), 3e38))
    ones = Weight(torch.ones(1, 2))
    active = ActiveNeurons(*(torch.tensor(v, dtype=torch.int32) for v in ([0], [1])), torch.tensor([[0.0], [1.0]]))
    y = glu_active(torch.ones(2, 2), big, ones, active, RELU, new_tally("cpu"))
    assert y.tolist() == [[0.0, 0.0], [float("inf")] * 2]


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_tally_counts_nonzero_products_and_adds(backend, weights):
    case = make_case(5, 40, 60, weights)
    active = gate_select(case.x, case.gate, RELU)
    tally = torch.tensor([10, 100, 1000, 7])
    run(case, RELU, active, tally)
    ids, value = listed(active)
    assert tally[UP_ROWS] == 10 + ids.numel()
    assert tally[DOWN_ROWS] == 100 + ids.numel()  # every listed neuron has a token that opens it
    assert tally[NONZERO] == 1000 + int((value != 0).sum())


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.uint8], ids=label)
@pytest.mark.parametrize(
    ("index", "count", "message"),
    [
        ([0, 60, 1], 2, r"glu_active: index holds 0\.\.60 but there are 60 neurons"),
        ([-1, 3, 4], 3, r"glu_active: index holds -1\.\.4 but there are 60 neurons"),
        ([2**31 - 1, 3, 4], 1, r"glu_active: index holds 2147483647\.\.2147483647 but there are 60 neurons"),
        ([0, 1, 2], 4, "glu_active: count is 4 but the list has capacity 3; select again"),
        ([0, 1, 2], -1, "glu_active: count is -1 but the list has capacity 3; select again"),
        ([5, 3, 8], 3, "glu_active: index must ascend"),
        ([3, 3, 8], 3, "glu_active: index must ascend"),
    ],
)
def test_refuses_a_list_that_would_read_elsewhere(backend, index, count, message, weights):
    case = make_case(1, 40, 60, weights)
    active = ActiveNeurons(
        torch.tensor(index, dtype=torch.int32), torch.tensor([count], dtype=torch.int32), torch.ones(1, 3)
    )
    with pytest.raises(RuntimeError, match=message):
        run(case, RELU, active)


def test_says_what_is_wrong(backend):
    case = make_case(2, 40, 60)
    active = gate_select(case.x, case.gate, RELU)
    with pytest.raises(ValueError, match=r"glu_active: active.value is None"):
        run(case, RELU, ActiveNeurons(active.index, active.count))
    with pytest.raises(ValueError, match=r"glu_active: neurons is 60 in up but 59 in down"):
        glu_active(case.x, case.up, Weight(case.down.codes[:59]), active, RELU, new_tally("cpu"))
    with pytest.raises(ValueError, match=r"glu_active: the weights of one FFN must share a format"):
        glu_active(case.x, case.up, Weight(case.down.codes.float()), active, RELU, new_tally("cpu"))


def test_the_compiled_op_checks_what_it_is_given(compiled):
    case = make_case(2, 40, 60)
    active = gate_select(case.x, case.gate, RELU)
    good = {
        "x": case.x, "up": case.up.codes, "down": case.down.codes, "index": active.index, "count": active.count,
        "value": active.value, "on_up": False, "tally": new_tally("cpu"),
    }  # fmt: skip
    for argument, bad, message in [
        ("index", active.index.long(), "index must be a contiguous vector of int32"),
        ("index", active.index[::2], "index must be a contiguous vector of int32"),
        ("count", active.count.long(), "count must be a contiguous vector of int32"),
        ("count", active.index, "count must be one int32, got 60 elements"),
        ("value", active.value.double(), "value must be a contiguous matrix of float32"),
        ("value", active.value[:, :30], "value must be a contiguous matrix of float32"),
        ("value", active.value[:1], r"value must be \[2, 60\], got \[1, 60\]"),
        ("tally", torch.zeros(1), "tally must be four int64"),
        ("tally", torch.zeros(2, dtype=torch.int64), "tally must be four int64, got 2 elements"),
        ("tally", torch.zeros(8, dtype=torch.int64)[::2], "tally must be contiguous, got stride 2"),
        ("down", case.down.codes[:59], "up has 60 neurons but down has 59"),
        ("down", case.down.codes.float(), "up and down must share a dtype"),
        ("down", torch.zeros(60, 144, dtype=torch.int8), "up and down must share a dtype"),
        ("up", torch.zeros(60, 40, dtype=torch.int8), "rows of up have 40 bytes, but 40 columns of int8 make 144"),
    ]:
        with pytest.raises(RuntimeError, match=f"^glu_active: {message}"):
            torch.ops.prosparse.glu_active(*(good | {argument: bad}).values())


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_opcheck(backend, weights):
    case = make_case(2, 40, 60, weights)
    active = gate_select(case.x, case.gate, RELU)
    args = (case.x, case.up.codes, case.down.codes, active.index, active.count, active.value, True, new_tally("cpu"))
    torch.library.opcheck(torch.ops.prosparse.glu_active, args)
