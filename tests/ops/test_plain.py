"""plain_exact and plain_dense on every backend: their float64 meaning, and their bits against one another."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import DTYPES, LAYERS, PACKED, label, make_infinite, poison_allocator
from closeness import assert_within
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_cases import RELU, Plain, clear_of_the_threshold, gates, make, meaning, run

from prosparse.kernels.activation import Activation
from prosparse.kernels.plain_dense import plain_dense
from prosparse.kernels.plain_exact import plain_exact
from prosparse.kernels.tally import DOWN_ROWS, NONZERO, UP_ROWS, new_tally
from prosparse.kernels.weight import FORMAT_OF_DTYPE, Weight, in_format

ACTIVATIONS = [RELU, Activation("fatrelu", 0.5), Activation("relu2")]
FORMATS = [torch.bfloat16, *PACKED]
OPS = [plain_exact, plain_dense]
FFNS = [(weights, shape, ACTIVATIONS[i % 3]) for i, (weights, shape) in enumerate(LAYERS)]


@pytest.mark.parametrize(("weights", "shape", "activation"), FFNS, ids=label)
def test_matches_float64(backend, weights, shape, activation):
    case = clear_of_the_threshold(make(*shape, weights, padding=3), activation)
    poison_allocator()
    assert_within(run(plain_exact, case, activation)[0], meaning(case, activation), f"plain_exact on {backend}")


@pytest.mark.parametrize("weights", [*DTYPES, *PACKED], ids=label)
@pytest.mark.parametrize("x", DTYPES, ids=label)
@pytest.mark.parametrize("op", OPS)
def test_dtypes_without_biases(backend, op, weights, x):
    case = make(2, 100, 77, weights, bias=False, x=x)
    y, _ = run(op, case)
    assert y.dtype == x
    assert_within(y, meaning(case, RELU), f"{weights} {x}")


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    tokens=st.integers(1, 16),
    hidden=st.integers(1, 200),
    neurons=st.integers(1, 700),
    shift=st.floats(-4, 4),
    activation=st.sampled_from([RELU, Activation("relu2")]),
    weights=st.sampled_from([*DTYPES, *PACKED]),
    seed=st.integers(0, 2**16),
)
def test_any_size_and_any_share_of_active_neurons(tokens, hidden, neurons, shift, activation, weights, seed):
    case = make(tokens, hidden, neurons, weights, shift=shift, seed=seed)
    exact, read = run(plain_exact, case, activation)
    dense, whole = run(plain_dense, case, activation)
    assert_within(exact, meaning(case, activation), "plain_exact")
    assert torch.equal(exact, dense) and read[NONZERO] == whole[NONZERO]
    assert read[DOWN_ROWS] <= read[UP_ROWS] <= neurons and whole.tolist()[:2] == [neurons] * 2


NEURONS = [1, 15, 16, 17, 511, 512, 513, 700]  # around the 16-neuron granule, and around a full set of 32 chunks


@pytest.mark.parametrize("neurons", NEURONS)
@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize("tokens", [1, 3])
def test_exact_has_the_bits_of_dense(compiled, weights, neurons, tokens):
    for activation in ACTIVATIONS:
        case = make(tokens, 170, neurons, weights)
        assert torch.equal(run(plain_exact, case, activation)[0], run(plain_dense, case, activation)[0])


@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize(("shift", "active"), [(-50.0, 0), (50.0, 530)])
def test_nothing_and_everything_active(backend, weights, shift, active):
    case = make(2, 170, 530, weights, shift=shift)
    poison_allocator()
    y, tally = run(plain_exact, case)
    assert tally.tolist() == [active, active, 2 * active, 0]
    assert_within(y, meaning(case, RELU), f"{active} active")
    assert active or torch.equal(y, case.down_bias.expand(2, -1))


@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize("op", OPS)
def test_a_token_does_not_depend_on_its_neighbours(compiled, op, weights):
    for shift in (-1.5, 0.5):  # few neurons, which tokens do not share, and most
        case = make(16, 100, 530, weights, shift=shift)
        together = run(op, case)[0]
        for t in range(16):
            alone = Plain(case.x[t : t + 1].contiguous(), *case.arguments[1:])
            assert torch.equal(together[t : t + 1], run(op, alone)[0])


@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize("op", OPS)
def test_threads_do_not_change_a_bit(compiled, threads, op, weights):
    case, results = make(3, 600, 700, weights), []
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        results += [run(op, case)[0] for _ in range(5)]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_callers_in_two_threads_do_not_share_memory(compiled, threads):
    torch.set_num_threads(2)
    cases = [make(2, 64, 300, seed=seed) for seed in range(4)]
    expected = [run(plain_exact, case)[0] for case in cases]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            results = pool.map(lambda case: run(plain_exact, case)[0], cases)
            assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_rows_of_closed_neurons_are_not_read(backend, weights):
    case = make(1, 40, 60, weights, shift=-1.0)
    clean, tally = run(plain_exact, case)
    closed = (gates(case).value <= 0)[0].nonzero().flatten().tolist()
    assert len(closed) > 20 and int(tally[DOWN_ROWS]) == 60 - len(closed)
    for row in closed:
        make_infinite(case.down, row)
    assert torch.equal(run(plain_exact, case)[0], clean)


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_a_neuron_of_another_token_adds_nothing_even_if_infinite(compiled, weights):
    eye = torch.eye(2)  # neuron 0 is open for token 0 alone, neuron 1 for token 1
    gate, down = (in_format(matrix, FORMAT_OF_DTYPE[weights]) for matrix in (2 * eye - 1, eye + 1))
    case = Plain(eye, gate, None, down, None)
    clean = run(plain_exact, case)[0]
    make_infinite(down, 1)
    y = run(plain_exact, case)[0]
    assert torch.equal(y[0], clean[0]) and bool(clean.isfinite().all()) and bool(y[1].isinf().all())


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_nan_reaches_the_output_of_its_token_alone(backend, weights):
    case = make(4, 40, 60, weights)
    x = case.x.clone()
    x[1, 5], x[2, 5] = float("nan"), float("inf")
    y, clean = run(plain_exact, Plain(x, *case.arguments[1:]))[0], run(plain_exact, case)[0]
    assert torch.isnan(y[1]).all() and not torch.isfinite(y[2]).any()
    torch.testing.assert_close(y[[0, 3]], clean[[0, 3]])
    bias = case.gate_bias.clone()
    bias[7] = float("nan")
    y, tally = run(plain_exact, Plain(case.x, case.gate, bias, case.down, case.down_bias))
    assert torch.isnan(y).all() and tally[NONZERO] >= 4, "a NaN gate is active"


@pytest.mark.parametrize("op", OPS)
def test_says_what_is_wrong(backend, op):
    x, gate, gate_bias, down, down_bias = make(2, 40, 60).arguments
    name, tally = op.__name__, new_tally("cpu")
    with pytest.raises(ValueError, match=f"{name}: hidden is 40 in x but 39 in down"):
        op(x, gate, gate_bias, Weight(down.codes[:, :39]), down_bias, RELU, tally)
    with pytest.raises(ValueError, match=f"{name}: gate_bias must be 60 contiguous float32 numbers, got .59,. of"):
        op(x, gate, gate_bias[:59], down, down_bias, RELU, tally)
    with pytest.raises(ValueError, match=f"{name}: down_bias must be 40 .* of torch.bfloat16"):
        op(x, gate, gate_bias, down, down_bias.bfloat16(), RELU, tally)
    with pytest.raises(ValueError, match=f"{name}: the weights of one FFN must share a format.*fp32"):
        op(x, gate, gate_bias, Weight(down.codes.float()), down_bias, RELU, tally)
    with pytest.raises(ValueError, match=f"{name}: drelu rectifies up, which this FFN has not; use relu"):
        op(x, gate, gate_bias, down, down_bias, Activation("relu", on_up=True), tally)
    with pytest.raises(ValueError, match="plain_exact: silu makes no exact zeros"):
        plain_exact(x, gate, gate_bias, down, down_bias, Activation("silu"), tally)


def test_the_compiled_op_checks_what_it_is_given(compiled):
    x, gate, gate_bias, down, down_bias = make(2, 40, 60).arguments
    op, rest = torch.ops.prosparse.plain_exact, (0, 0.0, new_tally("cpu"))
    with pytest.raises(RuntimeError, match="^plain_exact: gate and down have 60 and 59 neurons; they must agree"):
        op(x, gate.codes, gate_bias, down.codes[:59], down_bias, *rest)
    with pytest.raises(RuntimeError, match="^plain_exact: gate and down must share a dtype"):
        op(x, gate.codes, gate_bias, down.codes.float(), down_bias, *rest)
    with pytest.raises(RuntimeError, match="^plain_exact: gate_bias must be 60 contiguous float32 numbers"):
        op(x, gate.codes, gate_bias[:59], down.codes, down_bias, *rest)
    with pytest.raises(RuntimeError, match="^plain_exact: down_bias must be 40 contiguous float32 numbers"):
        op(x, gate.codes, gate_bias, down.codes, down_bias.half(), *rest)


@pytest.mark.parametrize(("name", "bias"), [("plain_exact", True), ("plain_exact", False), ("plain_dense", True)])
def test_opcheck(backend, name, bias):
    x, gate, gate_bias, down, down_bias = make(2, 40, 60, bias=bias).arguments
    arguments = (x, gate.codes, gate_bias, down.codes, down_bias, 1, 0.5, new_tally("cpu"))
    torch.library.opcheck(getattr(torch.ops.prosparse, name), arguments)
