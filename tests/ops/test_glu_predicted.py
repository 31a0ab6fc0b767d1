"""glu_predicted on every backend of this machine against its float64 meaning on the listed neurons."""

from __future__ import annotations

import pytest
import torch
from cases import FFNS, PACKED, ffn_meaning, label, make_case, make_infinite, open_mask, poison_allocator
from closeness import assert_within

from prosparse.kernels.activation import Activation
from prosparse.kernels.active import ActiveNeurons, compact
from prosparse.kernels.glu_exact import glu_exact
from prosparse.kernels.glu_predicted import glu_predicted
from prosparse.kernels.tally import DOWN_ROWS, NONZERO, PREDICTED, UP_ROWS, new_tally
from prosparse.kernels.weight import Weight

RELU = Activation("relu")
FORMATS = [torch.bfloat16, *PACKED]


def some(neurons: int, share: float = 0.4, seed: int = 0) -> torch.Tensor:
    """[neurons] bool: a guess."""
    return torch.rand(neurons, generator=torch.Generator().manual_seed(seed)) < share


def listing(chosen: torch.Tensor) -> ActiveNeurons:
    """A list whose entries past the count would read elsewhere."""
    index, count = compact(chosen)
    index[int(count) :] = 2**31 - 1
    return ActiveNeurons(index, count)


@pytest.mark.parametrize(("weights", "shape", "activation"), FFNS, ids=label)
def test_matches_float64(backend, weights, shape, activation):
    case = make_case(*shape, weights, padding=3)
    chosen = some(shape[2])
    mask = open_mask(case, activation) & chosen
    poison_allocator()
    y = glu_predicted(case.x, *case.weights, listing(chosen), activation, new_tally("cpu"))
    assert_within(y, ffn_meaning(case, activation, mask), f"glu_predicted on {backend}")


@pytest.mark.parametrize("weights", FORMATS, ids=label)
@pytest.mark.parametrize("shape", [(1, 130, 513), (5, 64, 128)], ids=str)
def test_over_all_neurons_it_has_the_bits_of_exact(compiled, threads, weights, shape):
    case = make_case(*shape, weights)
    everything = listing(torch.ones(shape[2], dtype=torch.bool))
    exact, tally = new_tally("cpu"), new_tally("cpu")
    expected = glu_exact(case.x, *case.weights, RELU, exact)
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        tally.zero_()
        assert torch.equal(glu_predicted(case.x, *case.weights, everything, RELU, tally), expected)
    assert tally.tolist() == [*exact.tolist()[:3], shape[2]] and exact[PREDICTED] == 0


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_what_is_not_listed_is_not_read(backend, weights):
    case = make_case(2, 140, 60, weights)
    chosen = some(60)
    clean = glu_predicted(case.x, *case.weights, listing(chosen), RELU, new_tally("cpu"))
    for weight in case.weights:
        for row in (~chosen).nonzero().flatten().tolist():
            make_infinite(weight, row)
    assert torch.equal(glu_predicted(case.x, *case.weights, listing(chosen), RELU, new_tally("cpu")), clean)


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_up_and_down_of_closed_neurons_are_not_used(backend, weights):
    case = make_case(2, 140, 60, weights)
    chosen, mask = some(60), open_mask(case, RELU)
    clean = glu_predicted(case.x, *case.weights, listing(chosen), RELU, new_tally("cpu"))
    for row in (~mask.any(0)).nonzero().flatten().tolist():
        make_infinite(case.up, row)
        make_infinite(case.down, row)
    assert torch.equal(glu_predicted(case.x, *case.weights, listing(chosen), RELU, new_tally("cpu")), clean)


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_tally(backend, weights):
    case = make_case(3, 140, 60, weights)
    chosen, mask = some(60), open_mask(case, RELU)
    tally = torch.tensor([10, 100, 1000, 10000])
    glu_predicted(case.x, *case.weights, listing(chosen), RELU, tally)
    found = mask & chosen
    assert tally[UP_ROWS] == 10 + int(found.any(0).sum()) and tally[DOWN_ROWS] == 100 + int(found.any(0).sum())
    assert tally[NONZERO] == 1000 + int(found.sum()) and tally[PREDICTED] == 10000 + int(chosen.sum())


@pytest.mark.parametrize("weights", FORMATS, ids=label)
def test_an_empty_list_gives_zeros(backend, weights):
    case, tally = make_case(2, 140, 60, weights), new_tally("cpu")
    y = glu_predicted(case.x, *case.weights, listing(torch.zeros(60, dtype=torch.bool)), RELU, tally)
    assert torch.equal(y, torch.zeros(2, 140)) and tally.tolist() == [0] * 4


def test_a_nan_gate_that_is_listed_is_active(backend):
    case = make_case(2, 40, 60)
    case.x[1, 3] = float("nan")
    y = glu_predicted(case.x, *case.weights, listing(some(60)), RELU, new_tally("cpu"))
    assert bool(y[1].isnan().all()) and bool(y[0].isfinite().all())


def test_refuses_a_list_that_would_read_elsewhere(backend):
    case = make_case(1, 40, 60)
    for ids, count, message in [
        ([0, 60], 2, r"index holds 0\.\.60 but there are 60 neurons"),
        ([-1, 5], 2, r"index holds -1\.\.5 but there are 60 neurons"),
        ([5, 5], 2, "index must ascend"),
        ([0, 1], 3, "count is 3 but the list has capacity 2"),
    ]:
        bad = ActiveNeurons(torch.tensor(ids, dtype=torch.int32), torch.tensor([count], dtype=torch.int32))
        with pytest.raises(RuntimeError, match=f"^glu_predicted: {message}"):
            glu_predicted(case.x, *case.weights, bad, RELU, new_tally("cpu"))


def test_says_what_is_wrong(backend):
    case, everything = make_case(2, 64, 40), listing(torch.ones(40, dtype=torch.bool))
    with pytest.raises(ValueError, match="glu_predicted: silu makes no exact zeros"):
        glu_predicted(case.x, *case.weights, everything, Activation("silu"), new_tally("cpu"))
    with pytest.raises(ValueError, match="glu_predicted: neurons is 40 in gate but 39 in up"):
        up = Weight(case.up.codes[:39])
        glu_predicted(case.x, case.gate, up, case.down, everything, RELU, new_tally("cpu"))


def test_opcheck(backend):
    case, everything = make_case(2, 16, 40), listing(torch.ones(40, dtype=torch.bool))
    codes = [weight.codes for weight in case.weights]
    args = (case.x, *codes, everything.index, everything.count, 0, 0.0, False, new_tally("cpu"))
    torch.library.opcheck(torch.ops.prosparse.glu_predicted, args)
