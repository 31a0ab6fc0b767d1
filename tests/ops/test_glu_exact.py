"""glu_exact on every backend of this machine: its float64 meaning, and its bits against other ways to compute it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from cases import (
    DTYPES,
    FFNS,
    PACKED,
    SPARSE,
    assert_set_is_right,
    ffn_meaning,
    label,
    make_case,
    make_infinite,
    open_mask,
    poison_allocator,
)
from closeness import assert_within
from hypothesis import given, settings
from hypothesis import strategies as st

from prosparse.kernels.activation import Activation
from prosparse.kernels.gate_select import gate_select
from prosparse.kernels.glu_active import glu_active
from prosparse.kernels.glu_dense import glu_dense
from prosparse.kernels.glu_exact import glu_exact
from prosparse.kernels.tally import DOWN_ROWS, NONZERO, UP_ROWS, new_tally
from prosparse.kernels.weight import FORMAT_OF_DTYPE, Weight, in_format

RELU = Activation("relu")
FORMATS = [torch.bfloat16, *PACKED]


@pytest.mark.parametrize(("weights", "shape", "activation"), FFNS, ids=label)
def test_matches_float64(backend, weights, shape, activation):
    case = make_case(*shape, weights, padding=3)
    mask = open_mask(case, activation)
    assert_set_is_right(case, activation, mask)
    poison_allocator()
    y = glu_exact(case.x, *case.weights, activation, new_tally("cpu"))
    assert_within(y, ffn_meaning(case, activation, mask), f"glu_exact on {backend}")


@pytest.mark.parametrize("weights", [*DTYPES, *PACKED], ids=label)
@pytest.mark.parametrize("x", DTYPES, ids=label)
def test_dtypes(backend, weights, x):
    case = make_case(2, 100, 77, weights, x)
    y = glu_exact(case.x, *case.weights, RELU, new_tally("cpu"))
    assert y.dtype == x
    assert_within(y, ffn_meaning(case, RELU, open_mask(case, RELU)), f"{weights} {x}")


@settings(derandomize=True, deadline=None, max_examples=100)
@given(
    tokens=st.integers(1, 16),
    hidden=st.integers(1, 200),
    neurons=st.integers(1, 200),
    shift=st.floats(-3, 3),
    activation=st.sampled_from(SPARSE),
    weights=st.sampled_from([*DTYPES, *PACKED]),
    seed=st.integers(0, 2**16),
)
def test_exact_is_dense_on_the_active_set(tokens, hidden, neurons, shift, activation, weights, seed):
    """From nothing active to everything."""
    case = make_case(tokens, hidden, neurons, weights, seed=seed, shift=shift)
    mask = open_mask(case, activation)
    assert_set_is_right(case, activation, mask)
    tally = new_tally("cpu")
    y = glu_exact(case.x, *case.weights, activation, tally)
    assert_within(y, ffn_meaning(case, activation, mask), "glu_exact")
    assert tally[NONZERO].item() <= int(mask.sum())


# One, around the 16-neuron granule, around a full set of 32 chunks (512), and with a last chunk that is not full.
NEURONS = [1, 15, 16, 17, 511, 512, 513, 700]
SIZES = [
    *((torch.bfloat16, activation, 37, neurons) for activation in SPARSE for neurons in NEURONS),
    *((weights, SPARSE[i % 5], 170, neurons) for weights in PACKED for i, neurons in enumerate(NEURONS)),
]


@pytest.mark.parametrize(("weights", "activation", "hidden", "neurons"), SIZES, ids=label)
@pytest.mark.parametrize("tokens", [1, 3])
def test_equals_dense_and_two_steps_bit_for_bit(compiled, weights, activation, hidden, neurons, tokens):
    case = make_case(tokens, hidden, neurons, weights)
    tallies = [new_tally("cpu") for _ in range(3)]
    exact = glu_exact(case.x, *case.weights, activation, tallies[0])
    dense = glu_dense(case.x, *case.weights, activation, tallies[1])
    active = gate_select(case.x, case.gate, activation)
    steps = glu_active(case.x, case.up, case.down, active, activation, tallies[2])
    assert torch.equal(exact, dense) and torch.equal(exact, steps)
    assert torch.equal(tallies[0], tallies[2]) and tallies[0][NONZERO] == tallies[1][NONZERO]
    assert tallies[1][UP_ROWS] == tallies[1][DOWN_ROWS] == neurons


@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize(("shift", "active"), [(-20.0, 0), (20.0, 530)])
def test_nothing_and_everything_active_equal_dense(compiled, weights, shift, active):
    case = make_case(1, 170, 530, weights, shift=shift)
    tally = new_tally("cpu")
    exact = glu_exact(case.x, *case.weights, RELU, tally)
    assert tally.tolist() == [active] * 3 + [0]
    assert torch.equal(exact, glu_dense(case.x, *case.weights, RELU, tally))
    assert_within(exact, ffn_meaning(case, RELU, torch.full((1, 530), active > 0)), f"{active} active")


@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize("tokens", [2, 5, 16])
@pytest.mark.parametrize("op", [glu_exact, glu_dense])
@pytest.mark.parametrize("threshold", [0.2, 1.5])  # most neurons shared by tokens, and few
def test_a_token_does_not_depend_on_its_neighbours(compiled, op, tokens, threshold, weights):
    case = make_case(tokens, 100, 530, weights)
    activation = Activation("fatrelu", threshold)
    together = op(case.x, *case.weights, activation, new_tally("cpu"))
    for t in range(tokens):
        alone = op(case.x[t : t + 1].contiguous(), *case.weights, activation, new_tally("cpu"))
        assert torch.equal(together[t : t + 1], alone)


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_a_neuron_of_another_token_adds_nothing_even_if_infinite(compiled, weights):
    eye = torch.eye(2)  # neuron 0 is open for token 0 alone, neuron 1 for token 1
    gate, up, down = (in_format(matrix, FORMAT_OF_DTYPE[weights]) for matrix in (2 * eye - 1, eye + 1, eye + 1))
    clean = glu_exact(eye, gate, up, down, RELU, new_tally("cpu"))
    make_infinite(down, 1)
    y = glu_exact(eye, gate, up, down, RELU, new_tally("cpu"))
    assert torch.equal(y[0], clean[0]) and bool(clean.isfinite().all()) and bool(y[1].isinf().all())


@pytest.mark.parametrize("weights", [*DTYPES, *PACKED], ids=label)
def test_up_and_down_side_by_side_change_nothing(backend, weights):
    case = make_case(3, 165, 70, weights)
    bundled = make_case(3, 165, 70, weights, padding=7, bundled=True)
    distance = bundled.down.codes.data_ptr() - bundled.up.codes.data_ptr()
    assert 2 * distance == bundled.up.codes.stride(0) * weights.itemsize
    for op in (glu_exact, glu_dense):
        expected = op(case.x, *case.weights, RELU, new_tally("cpu"))
        assert torch.equal(op(case.x, *bundled.weights, RELU, new_tally("cpu")), expected)


@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize("op", [glu_exact, glu_dense])
def test_threads_do_not_change_a_bit(compiled, threads, op, weights):
    case = make_case(3, 600, 700, weights)  # 22 chunks, and 2 blocks of 512 columns when they are summed
    results = []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results += [op(case.x, *case.weights, RELU, new_tally("cpu")) for _ in range(5)]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_callers_in_two_threads_do_not_share_memory(compiled, threads):
    torch.set_num_threads(2)
    cases = [make_case(2, 64, 300, seed=seed) for seed in range(4)]
    expected = [glu_exact(case.x, *case.weights, RELU, new_tally("cpu")) for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            results = pool.map(lambda case: glu_exact(case.x, *case.weights, RELU, new_tally("cpu")), cases)
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_none_all_and_one(backend, weights):
    positive = in_format(torch.arange(1.0, 121.0).view(40, 3), FORMAT_OF_DTYPE[weights])
    case = replace(make_case(1, 3, 40, weights), x=torch.ones(1, 3), up=positive)
    closed = torch.full((40, 3), -1.0)
    one = closed.clone()
    one[17] = 1.0
    for gate, active in [(closed, 0), (-closed, 40), (one, 1)]:
        ffn = replace(case, gate=in_format(gate, FORMAT_OF_DTYPE[weights]))
        tally = new_tally("cpu")
        poison_allocator()
        y = glu_exact(ffn.x, *ffn.weights, RELU, tally)
        assert tally.tolist() == [active] * 3 + [0]
        assert_within(y, ffn_meaning(ffn, RELU, (gate > 0).all(dim=1)), f"{active} active")
        assert active or torch.equal(y, torch.zeros(1, 3))


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_nan_reaches_the_output_of_its_token_alone(backend, weights):
    case = make_case(4, 40, 60, weights)
    x = case.x.clone()
    x[1, 5], x[2, 5] = float("nan"), float("inf")
    y = glu_exact(x, *case.weights, RELU, new_tally("cpu"))
    clean = glu_exact(case.x, *case.weights, RELU, new_tally("cpu"))
    assert torch.isnan(y[1]).all() and not torch.isfinite(y[2]).any()
    torch.testing.assert_close(y[[0, 3]], clean[[0, 3]])


def test_says_what_is_wrong(backend):
    case = make_case(2, 40, 60)
    gate, up, down = case.weights
    with pytest.raises(ValueError, match=r"glu_exact: silu makes no exact zeros"):
        glu_exact(case.x, gate, up, down, Activation("silu"), new_tally("cpu"))
    with pytest.raises(ValueError, match=r"glu_exact: hidden is 40 in x but 39 in up"):
        glu_exact(case.x, gate, Weight(up.codes[:, :39]), down, RELU, new_tally("cpu"))
    with pytest.raises(ValueError, match=r"glu_exact: hidden is 40 in x but 33 in up"):
        glu_exact(case.x, gate, in_format(up.values()[:, :33], "int4"), down, RELU, new_tally("cpu"))
    with pytest.raises(ValueError, match=r"glu_exact: the weights of one FFN must share a format.*fp32"):
        glu_exact(case.x, gate, up, Weight(down.codes.float()), RELU, new_tally("cpu"))


def test_the_compiled_op_checks_what_it_is_given(compiled):
    case = make_case(2, 40, 60)
    gate, up, down = (weight.codes for weight in case.weights)
    op = torch.ops.prosparse.glu_exact
    with pytest.raises(RuntimeError, match="^glu_exact: gate, up and down have 60, 59 and 60 neurons; they must agree"):
        op(case.x, gate, up[:59], down, 0, 0.0, False, new_tally("cpu"))
    with pytest.raises(RuntimeError, match="^glu_exact: gate, up and down must share a dtype"):
        op(case.x, gate, up, down.float(), 0, 0.0, False, new_tally("cpu"))
    with pytest.raises(RuntimeError, match="^glu_exact: down has 39 columns but x has 40"):
        op(case.x, gate, up, down[:, :39], 0, 0.0, False, new_tally("cpu"))
    with pytest.raises(RuntimeError, match="^glu_exact: rows of down have 39 bytes, but 40 columns of int8 make 144"):
        op(case.x, gate, up, torch.zeros(60, 39, dtype=torch.int8), 0, 0.0, False, new_tally("cpu"))


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_opcheck(backend, weights):
    case = make_case(2, 40, 60, weights)
    codes = [weight.codes for weight in case.weights]
    torch.library.opcheck(torch.ops.prosparse.glu_exact, (case.x, *codes, 1, 0.5, True, new_tally("cpu")))
