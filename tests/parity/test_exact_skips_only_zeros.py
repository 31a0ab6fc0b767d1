"""Exact reads no weight of a neuron that is zero, and every weight of one that is not: poison tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from float64_forward import Trace, forward
from tiny_engine import decoded_logits, make_model, some_tokens
from torch import Tensor

import prosparse
from prosparse.engine import Engine
from prosparse.engine.session import Session
from prosparse.kernels import cpu
from prosparse.kernels.tally import DOWN_ROWS, NONZERO, UP_ROWS

NAN = float("nan")
CASES = {
    "relu": {"family": "llama"},
    "relu-odd": {"family": "llama", "hidden": 60, "neurons": 77, "heads": 6, "kv_heads": 3, "head_dim": 10},
    "relu2": {"family": "llama", "hidden_act": "relu2"},
    "fatrelu": {"family": "sparsellama", "hidden_act_param": 0.5},
    "minicpm": {"family": "minicpm", "tied": True},
    "bamboo": {"family": "bamboo"},
}


@pytest.fixture(params=CASES)
def loaded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Engine, Callable[[list[int]], Trace]]:
    """An exact engine, and the float64 pass over the same weights as they were before any poison."""
    folder = make_model(tmp_path / "model", **CASES[request.param])
    return prosparse.load(folder, mode="exact", weights="fp32"), lambda ids: forward(folder, ids)


def test_inactive_neurons_are_not_read(loaded: tuple[Engine, Callable[[list[int]], Trace]]) -> None:
    engine, trace_of = loaded
    ids = some_tokens(12, seed=3)
    expected, trace = decoded_logits(engine, ids), trace_of(ids)
    for layer, (_, ffn) in enumerate(engine.decoder.blocks):
        closed = (act(trace, engine, layer) == 0).all(0)
        dead = (trace.products[layer] == 0).all(0)
        assert int(closed.sum()) > 0
        ffn.up.codes[closed] = NAN
        # With dReLU, up may close what the gate opened; the reference multiplies such a row by zero.
        ffn.down.codes[dead if cpu.available() else closed] = NAN
    assert torch.equal(decoded_logits(engine, ids), expected)


def test_every_active_neuron_is_read(loaded: tuple[Engine, Callable[[list[int]], Trace]]) -> None:
    engine, trace_of = loaded
    ids = some_tokens(1)
    trace = trace_of(ids)
    for layer, (_, ffn) in enumerate(engine.decoder.blocks):
        for neuron in (trace.products[layer][0] != 0).nonzero().flatten().tolist():
            for weight in (ffn.gate.codes, ffn.up.codes, ffn.down.codes):
                kept = weight[neuron].clone()
                weight[neuron] = NAN
                assert bool(decoded_logits(engine, ids).isnan().any()), f"layer {layer}, neuron {neuron}"
                weight[neuron] = kept
    assert bool(decoded_logits(engine, ids).isfinite().all())


def test_counts_are_the_true_numbers_of_rows_and_products(
    loaded: tuple[Engine, Callable[[list[int]], Trace]],
) -> None:
    """Rows of up for the union of a step's open gates, rows of down for its nonzero products."""
    engine, trace_of = loaded
    ids = some_tokens(48, seed=5)
    steps = [slice(0, 16), slice(16, 19), *(slice(i, i + 1) for i in range(19, 48))]
    session = Session(engine.decoder, engine.kv_dtype, 1, 64)
    for step in steps:
        session.decode(torch.tensor([ids[step]]), (0,), (step.start,))
    trace = trace_of(ids)
    for layer, product in enumerate(trace.products):
        factor = act(trace, engine, layer)
        up_rows = sum(int((factor[step] != 0).any(0).sum()) for step in steps)
        down_rows = sum(int((product[step] != 0).any(0).sum()) for step in steps)
        found = session.tally[layer]
        assert (int(found[UP_ROWS]), int(found[DOWN_ROWS])) == (up_rows, down_rows)
        assert int(found[NONZERO]) == int((product != 0).sum())


@pytest.mark.skipif(not cpu.available(), reason="the PyTorch reference multiplies the union of a step's neurons")
def test_a_neuron_of_one_token_is_not_multiplied_for_another(tmp_path: Path) -> None:
    """Two sequences in one step: poison where only the first is active reaches the first alone."""
    folder = make_model(tmp_path / "model", layers=1)
    engine = prosparse.load(folder, mode="exact", weights="fp32")
    tokens = torch.tensor([[17], [200]])
    expected = one_step(engine, tokens)
    first, second = (forward(folder, [int(token)]).products[0][0] for token in tokens)
    only_first = ((first != 0) & (second == 0)).nonzero().flatten()
    assert 0 < len(only_first)
    ffn = engine.decoder.blocks[0][1]
    ffn.up.codes[only_first[0]] = NAN
    ffn.down.codes[only_first[1]] = NAN
    found = one_step(engine, tokens)
    assert bool(found[0].isnan().any())
    assert torch.equal(found[1], expected[1])


def test_all_neurons_closed_is_zero_and_no_error(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", family="sparsellama", hidden_act_param=100.0)
    ids = some_tokens(20)
    for mode in ("dense", "exact"):
        engine = prosparse.load(folder, mode=mode, weights="fp32")
        result = engine.generate(ids, max_new_tokens=4, ignore_eos=True)
        assert result.stats["activation_sparsity"] == {"mean": 1.0, "layers": [1.0, 1.0]}
        without_ffn = forward(folder, ids).logits
        assert float((decoded_logits(engine, ids) - without_ffn).abs().max()) < 1e-5


def act(trace: Trace, engine: Engine, layer: int) -> Tensor:
    """The gate's factor: zero where the gate alone closes the neuron."""
    gate = trace.gates[layer]
    return gate * (gate >= engine.config.activation.threshold) * (gate > 0)


def one_step(engine: Engine, tokens: Tensor) -> Tensor:
    session = Session(engine.decoder, engine.kv_dtype, 2, 8)
    return session.decode(tokens, (0, 1), (0, 0))
