"""The Triton kernels on a CUDA device: in a graph, and many times over. With a GPU the op tests run there as well."""

from __future__ import annotations

import os

import pytest
import torch
from cases import make_case

from prosparse.kernels import triton
from prosparse.kernels.activation import Activation
from prosparse.kernels.attend import attend_reference
from prosparse.kernels.glu_exact import glu_exact
from prosparse.kernels.glu_predicted import glu_predicted
from prosparse.kernels.predict_select import predict_select
from prosparse.kernels.rotary_store import rotary_store_reference
from prosparse.kernels.tally import PREDICTED, UP_ROWS, new_tally
from prosparse.kernels.weight import Weight

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() and os.environ.get("PROSPARSE_TEST_GPU") != "1", reason="no CUDA device here"
    ),
]
FORMATS = [torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.uint8]


def on_gpu(case):
    return case.x.cuda(), *(Weight(weight.codes.cuda(), weight.packed_columns) for weight in case.weights)


def captured(function):
    """A graph of a call, compiled before it is captured; replaying it writes the returned tensor."""
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph, result


def test_the_kernels_are_in_use():
    assert triton.why_not() is None


@pytest.mark.parametrize("tokens", [1, 3, 8, 16])
@pytest.mark.parametrize("weights", FORMATS, ids=str)
def test_a_graph_replays_with_another_active_set(weights, tokens):
    x, gate, up, down = on_gpu(make_case(tokens, 512, 1500, weights))
    activation = Activation("fatrelu", 0.5)
    tally = new_tally("cuda")
    graph, y = captured(lambda: glu_exact(x, gate, up, down, activation, tally))
    for scale in (0.0, 0.3, 1.0, 30.0):
        x.copy_(scale * torch.randn(x.shape))
        expected_tally = new_tally("cuda")
        expected = glu_exact(x, gate, up, down, activation, expected_tally)
        tally.zero_()
        graph.replay()
        assert torch.equal(y, expected) and torch.equal(tally, expected_tally)
        assert (scale > 0) == bool(tally[UP_ROWS] > 0)


@pytest.mark.parametrize("tokens", [1, 8])
@pytest.mark.parametrize("weights", FORMATS, ids=str)
def test_a_graph_replays_with_another_guess(weights, tokens):
    x, gate, up, down = on_gpu(make_case(tokens, 512, 1500, weights))
    offset, tally = torch.full((1500,), -0.5, device="cuda"), new_tally("cuda")

    def step():
        return glu_predicted(x, gate, up, down, predict_select(x, gate, offset), Activation("relu"), tally)

    graph, y = captured(step)
    for scale in (0.0, 0.3, 1.0, 30.0):
        x.copy_(scale * torch.randn(x.shape))
        tally.zero_()
        expected, expected_tally = step(), tally.clone()
        tally.zero_()
        graph.replay()
        assert torch.equal(y, expected) and torch.equal(tally, expected_tally)
        assert (scale > 0) == bool(tally[PREDICTED] > 0)


@pytest.mark.parametrize("tokens", [1, 8])
def test_a_thousand_runs_give_the_same_bits(tokens):
    x, gate, up, down = on_gpu(make_case(tokens, 1536, 3840))
    activation = Activation("relu")
    graph, y = captured(lambda: glu_exact(x, gate, up, down, activation, new_tally("cuda")))
    graph.replay()
    first = y.clone()
    for _ in range(1000):
        graph.replay()
        assert torch.equal(y, first)


def test_a_graph_attends_to_a_growing_context():
    from prosparse.kernels.triton import attend_step

    rng = torch.Generator("cuda").manual_seed(0)
    qkv = torch.randn(1, 12 * 64, device="cuda", generator=rng)
    cos, sin = (torch.randn(600, 32, device="cuda", generator=rng) for _ in range(2))
    keys, values = (torch.randn(1, 2, 600, 64, device="cuda", generator=rng).bfloat16() for _ in range(2))
    slot, start, tickets = (torch.zeros(n, dtype=torch.int32, device="cuda") for n in (1, 1, 2))

    def attended():
        tickets.zero_()
        return attend_step.launch(qkv, None, cos, sin, keys, values, slot, start, 0, tickets)

    graph, out = captured(attended)
    for position in (0, 1, 63, 64, 500, 599):
        start.fill_(position)
        graph.replay()
        k, v = (part[0, :, : position + 1].clone() for part in (keys, values))
        own = slice(position, position + 1)
        q = rotary_store_reference(qkv, cos[own], sin[own], k, v, position)
        torch.testing.assert_close(out, attend_reference(q, k, v, position, 0), rtol=1e-4, atol=1e-5)
