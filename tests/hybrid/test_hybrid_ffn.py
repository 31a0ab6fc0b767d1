"""HybridFFN over two parts of the CPU's memory, against the float64 meaning of the undivided FFN."""

from __future__ import annotations

import math

import pytest
import torch
from cases import PACKED, SPARSE, assert_set_is_right, ffn_meaning, label, make_case, make_infinite, open_mask
from closeness import EPS, Bounded, assert_within
from divided_ffn import divide, normed, some_order
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from prosparse.kernels.activation import Activation
from prosparse.kernels.tally import (
    COLD_DOWN_ROWS,
    COLD_STEPS,
    COLD_UP_ROWS,
    DOWN_ROWS,
    NONZERO,
    PREDICTED,
    SCANNED_NAMED,
    SHARED_SIZE,
    SIZE,
    UP_ROWS,
    new_tally,
)
from prosparse.kernels.weight import in_format
from prosparse.sparsity import DenseFFN, ExactFFN, HybridFFN, PredictedFFN, Selector
from prosparse.sparsity.double_buffer import DoubleBuffer
from prosparse.weights.predictor import KINDS, LayerPredictor

RELU = Activation("relu")
FORMATS = [torch.float32, torch.float16, torch.bfloat16, *PACKED]
NEURONS = 77
CUTS = [(0, 0), (1, 0), (1, 1), (33, 12), (33, 33), (NEURONS, 0), (NEURONS, 40), (40, 0), (NEURONS, NEURONS)]
WHOLE = {"dense": DenseFFN, "exact": ExactFFN}


def whole(case, activation, mode, scale=1.0):
    ones = torch.ones(case.x.shape[1])
    return WHOLE[mode](ones, 1e-5, *case.weights, activation, scale)


def tally() -> Tensor:
    return new_tally("cpu", size=SHARED_SIZE)


def at_input(case, residual):
    """The case as the FFN's own gate sees it: behind the norm."""
    return type(case)(normed(residual), case.gate, case.up, case.down)


def meaning(case, activation, mask, residual, scale) -> Bounded:
    y = ffn_meaning(case, activation, mask)
    own = residual.double()
    value = own + scale * y.value
    rounding = EPS * (own.abs() + 2 * abs(scale) * (y.value.abs() + y.error))  # of the joining add, scale and residual
    return Bounded(value, abs(scale) * y.error + rounding)


@pytest.mark.parametrize("cuts", [(0, 0), (1, 0), (33, 12), (40, 40), (NEURONS, 0), (NEURONS, NEURONS)], ids=str)
@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_exact_is_the_undivided_ffn(backend, weights, cuts):
    for number, (tokens, activation) in enumerate(zip((1, 2, 3, 9, 16), SPARSE, strict=True)):
        case = make_case(tokens, 60, NEURONS, weights, seed=number)
        residual, scale = case.x.clone(), 0.7
        case = at_input(case, residual)
        mask = open_mask(case, activation)
        assert_set_is_right(case, activation, mask)
        done = tally()
        ffn = divide(case, activation, "exact", *cuts, some_order(NEURONS), scale=scale)
        assert_within(ffn.decode(residual, done), meaning(case, activation, mask, residual, scale), f"{backend} {cuts}")
        expected = new_tally("cpu")
        whole(case, activation, "exact").decode(residual, expected)
        assert done[:SIZE].tolist() == expected.tolist()
        assert torch.equal(residual, make_case(tokens, 60, NEURONS, weights, seed=number).x)


@settings(deadline=None, max_examples=40)
@given(
    data=st.data(),
    tokens=st.integers(1, 16),
    hidden=st.integers(1, 70),
    neurons=st.integers(1, 90),
    weights=st.sampled_from(FORMATS),
    activation=st.sampled_from(SPARSE),
    shift=st.sampled_from([-9.0, -1.0, 0.0, 1.0, 9.0]),
)
def test_any_order_any_cuts_and_any_sparsity(data, tokens, hidden, neurons, weights, activation, shift):
    """From nothing active (shift -9) to everything."""
    gate = data.draw(st.integers(0, neurons))
    hot = data.draw(st.integers(0, gate))
    order = torch.tensor(data.draw(st.permutations(range(neurons))))
    base = make_case(tokens, hidden, neurons, weights, shift=shift * math.sqrt(hidden))
    case = at_input(base, base.x)
    mask = open_mask(case, activation)
    expected = meaning(case, activation, mask, base.x, 1.0)
    ffn = divide(case, activation, "exact", gate, hot, order)
    done = tally()
    assert_within(ffn.decode(base.x, done), expected, f"gate {gate}, hot {hot} of {neurons}")
    assert done[UP_ROWS] == int(mask.any(0).sum())
    assert done[COLD_UP_ROWS] == int(mask.any(0)[order][hot:].sum())
    assert done[COLD_DOWN_ROWS] <= done[COLD_UP_ROWS] and done[COLD_DOWN_ROWS] <= done[DOWN_ROWS]
    between_or_none = gate == neurons and not bool(mask.any(0)[order][hot:].any())
    assert done[COLD_STEPS] == (0 if between_or_none else 1)


@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize(("shift", "active"), [(-9.0, 0), (9.0, NEURONS)])
def test_nothing_and_everything_active(weights, shift, active):
    """Both ends of activation sparsity, at every kind of cut."""
    base = make_case(2, 60, NEURONS, weights, shift=shift * math.sqrt(60))
    case = at_input(base, base.x)
    mask = open_mask(case, RELU)
    assert int(mask.sum()) == 2 * active
    for cuts in CUTS:
        done = tally()
        out = divide(case, RELU, "exact", *cuts, some_order(NEURONS)).decode(base.x, done)
        assert_within(out, meaning(case, RELU, mask, base.x, 1.0), f"{active} active, {cuts}")
        assert (int(done[UP_ROWS]), int(done[COLD_UP_ROWS])) == (active, active * (NEURONS - cuts[1]) // NEURONS)


@pytest.mark.parametrize("cuts", [(0, 0), (33, 12), (NEURONS, 0), (NEURONS, NEURONS)], ids=str)
@pytest.mark.parametrize("activation", [RELU, Activation("fatrelu", 0.5), Activation("silu")], ids=str)
def test_dense_is_the_undivided_ffn(backend, activation, cuts):
    case = make_case(3, 60, NEURONS, torch.bfloat16)
    residual = case.x
    case = at_input(case, residual)
    mask = None if activation.kind == "silu" else open_mask(case, activation)
    done = tally()
    ffn = divide(case, activation, "dense", *cuts, some_order(NEURONS))
    assert_within(ffn.decode(residual, done), meaning(case, activation, mask, residual, 1.0), f"{backend} {cuts}")
    assert done[UP_ROWS] == NEURONS and done[COLD_UP_ROWS] == NEURONS - cuts[1]


def predictor_of(kind: str, offset: float, hidden: int) -> LayerPredictor:
    rng = torch.Generator().manual_seed(2)
    offsets = offset + torch.zeros(NEURONS)
    if kind != "low_rank":
        return LayerPredictor(kind, offsets)
    first, second = (torch.randn(*size, generator=rng) for size in ((6, hidden), (NEURONS, 6)))
    return LayerPredictor(kind, offsets, in_format(first, "bf16"), in_format(second, "bf16"), True, True)


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [-math.inf, 0.0, math.inf])
def test_predicted_computes_what_the_undivided_ffn_does(kind, cuts, offset):
    for tokens, activation, weights in [(1, RELU, torch.bfloat16), (5, SPARSE[4], torch.uint8)]:
        case = make_case(tokens, 64, NEURONS, weights)
        residual = case.x
        case = at_input(case, residual)
        predictor = predictor_of(kind, offset, 64)
        selector = Selector(predictor, case.gate)
        expected = new_tally("cpu")
        undivided = PredictedFFN(torch.ones(64), 1e-5, *case.weights, activation, 1.0, selector=selector)
        undivided.decode(residual, expected)
        listed = selector.select(residual, case.x)
        named = torch.zeros(NEURONS, dtype=torch.bool)
        named[listed.index[: int(listed.count)].long()] = True
        mask = open_mask(case, activation) & named
        order = some_order(NEURONS)
        ffn = divide(case, activation, "predicted", *cuts, order, predictor)
        done = tally()
        actual = ffn.decode(residual, done)
        assert_within(actual, meaning(case, activation, mask, residual, 1.0), f"{kind} {cuts}")
        assert done[:SIZE].tolist() == expected.tolist()
        gate, hot = cuts
        assert done[SCANNED_NAMED] == int(named[order][hot:gate].sum())
        assert done[COLD_UP_ROWS] == int(mask.any(0)[order][hot:].sum())
        assert ffn.audit(residual) == undivided.audit(residual)
        assert done[PREDICTED] == int(named.sum())
        more = gate - hot - int(done[SCANNED_NAMED])  # gates between the cuts that nobody named are read all the same
        read = undivided.bytes_read(1, expected.tolist()) + more * case.gate.row_bytes
        assert ffn.bytes_read(1, done.tolist()) == read


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("weights", [torch.bfloat16, torch.uint8], ids=label)
def test_bytes_read_are_those_of_the_undivided_ffn(weights, cuts):
    case = make_case(2, 60, NEURONS, weights)
    done, expected = tally(), new_tally("cpu")
    ffn, undivided = divide(case, RELU, "exact", *cuts, some_order(NEURONS)), whole(case, RELU, "exact")
    ffn.decode(case.x, done), undivided.decode(case.x, expected)
    assert ffn.bytes_read(1, done.tolist()) == undivided.bytes_read(1, expected.tolist())
    assert ffn.glu() is None


@pytest.mark.parametrize("cuts", CUTS, ids=str)
def test_a_nan_reaches_its_token_alone(cuts):
    case = make_case(3, 60, NEURONS, torch.bfloat16)
    residual = case.x.clone()
    residual[1, 4] = float("nan")
    out = divide(case, RELU, "exact", *cuts, some_order(NEURONS)).decode(residual, tally())
    assert out[1].isnan().all() and out[[0, 2]].isfinite().all()


@pytest.mark.parametrize("cuts", [(33, 12), (NEURONS, 40), (0, 0)], ids=str)
@pytest.mark.parametrize("which", ["up", "down"])
def test_closed_neurons_are_not_read_on_either_side(cuts, which):
    """Poison in the rows of closed neurons changes nothing."""
    case = make_case(1, 60, NEURONS, torch.bfloat16)
    clean = divide(case, RELU, "exact", *cuts, some_order(NEURONS)).decode(case.x, tally())
    closed = ~open_mask(at_input(case, case.x), RELU).any(0)
    for neuron in closed.nonzero().flatten().tolist():
        make_infinite(getattr(case, which), neuron)
    assert torch.equal(divide(case, RELU, "exact", *cuts, some_order(NEURONS)).decode(case.x, tally()), clean)


@pytest.mark.parametrize("cuts", CUTS, ids=str)
@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_prefill_is_that_of_the_undivided_ffn(weights, cuts):
    tokens = 40 if cuts[0] % 2 else 5  # a GEMM, or what a step uses
    case = make_case(tokens, 64, NEURONS, weights)
    ffn = divide(case, RELU, "exact", *cuts, some_order(NEURONS), scale=0.5, block_bytes=1024)
    seen = []

    def view(residual, x, value, h):
        seen.append((residual, x, value, h))
        return h

    actual, undivided = ffn.prefill(case.x), whole(case, RELU, "exact", 0.5)
    expected = undivided.prefill(case.x, view)
    # Another order of sums: fp32 rounds to 6e-8, and a GEMM in 16 bits rounds every partial result to 2^-9 or 2^-12.
    bound = 1e-5 if weights == torch.float32 else 3e-2
    assert float((actual - expected).abs().max() / expected.abs().max()) < bound
    assert torch.equal(ffn.prefill(case.x, view), actual)
    for theirs, ours, what in zip(*seen, ("residual", "x", "value", "h"), strict=True):
        error = float((theirs - ours).abs().max() / theirs.abs().max())
        assert error < bound, f"{what} is in another order"


def test_a_view_may_replace_what_goes_into_down():
    case = make_case(20, 64, NEURONS, torch.float32)
    order = some_order(NEURONS)
    keep = torch.arange(NEURONS) % 3 == 0

    def view(residual, x, value, h):
        return h * keep

    ffn = divide(case, RELU, "exact", 33, 12, order)
    expected = whole(case, RELU, "exact").prefill(case.x, view)
    assert float((ffn.prefill(case.x, view) - expected).abs().max()) < 1e-5


def test_more_tokens_than_a_step_are_refused():
    case = make_case(17, 64, NEURONS, torch.bfloat16)
    ffn: HybridFFN = divide(case, RELU, "exact", 33, 12, some_order(NEURONS))
    with pytest.raises(ValueError, match="a decode step takes at most 16 tokens, got 17; prefill them"):
        ffn.decode(case.x, tally())


def test_nothing_open_on_the_other_side_leaves_it_out():
    """All gates on the fast device, every open neuron hot: the other one has nothing to do."""
    case = make_case(1, 60, NEURONS, torch.bfloat16)
    opened = open_mask(at_input(case, case.x), RELU)[0]
    order = (~opened).int().argsort(stable=True)
    hot = int(opened.sum())
    done = tally()
    divide(case, RELU, "exact", NEURONS, hot, order).decode(case.x, done)
    assert (int(done[COLD_STEPS]), int(done[COLD_UP_ROWS])) == (0, 0) and done[NONZERO] > 0
    divide(case, RELU, "exact", NEURONS, hot - 1, order).decode(case.x, done)
    assert (int(done[COLD_STEPS]), int(done[COLD_UP_ROWS])) == (1, 1)


@pytest.mark.parametrize("weights", [torch.bfloat16, torch.int8], ids=label)
def test_the_buffer_gives_all_rows_in_order_and_takes_no_more_memory(weights):
    case = make_case(1, 200, 50, weights)
    for block_bytes in (case.gate.row_bytes * 2, 1000, 10**6):
        buffer = DoubleBuffer(torch.device("cpu"), block_bytes)
        blocks = [(block.codes.clone(), block.nbytes) for block in buffer.blocks(case.gate)]
        assert torch.equal(torch.cat([codes for codes, _ in blocks]), case.gate.codes)
        assert all(nbytes <= block_bytes for _, nbytes in blocks) and buffer.nbytes == 2 * block_bytes
    with pytest.raises(ValueError, match="a row has .* bytes, a buffer 8"):
        list(DoubleBuffer(torch.device("cpu"), 8).blocks(case.gate))
