"""plain_predicted on every backend: its float64 meaning on the listed neurons, and nothing else read."""

from __future__ import annotations

import pytest
import torch
from cases import LAYERS, PACKED, label, make_infinite, poison_allocator
from closeness import assert_within
from plain_cases import RELU, clear_of_the_threshold, gates, make, meaning

from prosparse.kernels.activation import Activation
from prosparse.kernels.active import ActiveNeurons, compact
from prosparse.kernels.plain_exact import plain_exact
from prosparse.kernels.plain_predicted import plain_predicted
from prosparse.kernels.tally import new_tally

ACTIVATIONS = [RELU, Activation("fatrelu", 0.5), Activation("relu2")]
FORMATS = [torch.bfloat16, *PACKED]
FFNS = [(weights, shape, ACTIVATIONS[i % 3]) for i, (weights, shape) in enumerate(LAYERS)]


def some(neurons: int, share: float = 0.4) -> torch.Tensor:
    """[neurons] bool: a guess."""
    return torch.rand(neurons, generator=torch.Generator().manual_seed(0)) < share


def run(case, chosen, activation=RELU):
    """(output, tally), over a list whose entries past the count would read elsewhere."""
    index, count = compact(chosen)
    index[int(count) :] = 2**31 - 1
    tally = new_tally("cpu")
    return plain_predicted(*case.arguments, ActiveNeurons(index, count), activation, tally), tally


@pytest.mark.parametrize(("weights", "shape", "activation"), FFNS, ids=label)
def test_matches_float64(backend, weights, shape, activation):
    case, chosen = clear_of_the_threshold(make(*shape, weights, padding=3), activation), some(shape[2])
    poison_allocator()
    y, _ = run(case, chosen, activation)
    assert_within(y, meaning(case, activation, chosen), f"plain_predicted on {backend}")


@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize("shape", [(1, 130, 513), (5, 64, 128)], ids=str)
def test_over_all_neurons_it_has_the_bits_of_exact(compiled, threads, weights, shape):
    case, exact = make(*shape, weights), new_tally("cpu")
    expected = plain_exact(*case.arguments, RELU, exact)
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        y, tally = run(case, torch.ones(shape[2], dtype=torch.bool))
        assert torch.equal(y, expected) and tally.tolist() == [*exact.tolist()[:3], shape[2]]


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_what_is_not_listed_or_closed_is_not_read(backend, weights):
    case, chosen = make(2, 140, 60, weights), some(60)
    clean, tally = run(case, chosen)
    open_ = (gates(case).value > 0) & chosen
    assert tally.tolist() == [int(open_.any(0).sum())] * 2 + [int(open_.sum()), int(chosen.sum())]
    for row in (~chosen).nonzero().flatten().tolist():
        make_infinite(case.gate, row)
    for row in (~open_.any(0)).nonzero().flatten().tolist():
        make_infinite(case.down, row)
    assert torch.equal(run(case, chosen)[0], clean)


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_an_empty_list_gives_the_bias(backend, weights):
    case = make(2, 140, 60, weights)
    y, tally = run(case, torch.zeros(60, dtype=torch.bool))
    assert torch.equal(y, case.down_bias.expand(2, -1)) and tally.tolist() == [0] * 4


def test_a_nan_gate_that_is_listed_is_active(backend):
    case = make(2, 40, 60)
    case.x[1, 3] = float("nan")
    y, _ = run(case, some(60))
    assert bool(y[1].isnan().all()) and bool(y[0].isfinite().all())


def test_refuses_a_list_that_would_read_elsewhere(backend):
    case = make(1, 40, 60)
    for ids, count, message in [
        ([0, 60], 2, r"index holds 0\.\.60 but there are 60 neurons"),
        ([5, 5], 2, "index must ascend"),
        ([0, 1], 3, "count is 3 but the list has capacity 2"),
    ]:
        bad = ActiveNeurons(torch.tensor(ids, dtype=torch.int32), torch.tensor([count], dtype=torch.int32))
        with pytest.raises(RuntimeError, match=f"^plain_predicted: {message}"):
            plain_predicted(*case.arguments, bad, RELU, new_tally("cpu"))
    with pytest.raises(ValueError, match="plain_predicted: silu makes no exact zeros"):
        run(case, some(60), Activation("silu"))


@pytest.mark.parametrize("bias", [True, False])
def test_opcheck(backend, bias):
    case, (index, count) = make(2, 16, 40, bias=bias), compact(torch.ones(40, dtype=torch.bool))
    x, gate, gate_bias, down, down_bias = case.arguments
    args = (x, gate.codes, gate_bias, down.codes, down_bias, index, count, 0, 0.0, new_tally("cpu"))
    torch.library.opcheck(torch.ops.prosparse.plain_predicted, args)
