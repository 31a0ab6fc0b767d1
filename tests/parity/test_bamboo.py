"""Bamboo (ReLU on gate and on up, sliding window) and squared ReLU against the float64 formulas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from float64_forward import forward
from tiny_engine import assert_logits_close, decoded_logits, make_model, some_tokens

import prosparse
from prosparse.engine.session import Session
from prosparse.engine.stats import activation_sparsity

ODD = {"hidden": 60, "neurons": 77, "heads": 6, "kv_heads": 3, "head_dim": 10}
CASES: dict[str, dict[str, Any]] = {
    "window-24": {"family": "bamboo"},
    "window-1": {"family": "bamboo", "sliding_window": 1},
    "odd-window-7": {**ODD, "family": "bamboo", "sliding_window": 7, "shards": 2},
    "window-longer-than-the-prompt": {**ODD, "family": "bamboo", "sliding_window": 4096, "tied": True},
    "relu2": {"hidden_act": "relu2"},
    "relu2-odd": {**ODD, "hidden_act": "relu2"},
}


@pytest.mark.parametrize("name", CASES)
def test_logits_equal_the_float64_formulas(name: str, tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", **CASES[name])
    ids = some_tokens(90, seed=2)
    expected = forward(folder, ids).logits
    for mode in ("dense", "exact"):
        engine = prosparse.load(folder, mode=mode, weights="fp32")
        for chunk in (512, 10):
            assert_logits_close(engine.logits(ids, chunk=chunk), expected, f"{name} {mode} prefill by {chunk}")
        assert_logits_close(decoded_logits(engine, ids), expected, f"{name} {mode} decode")
        assert_logits_close(decoded_logits(engine, ids, prefix=50), expected[50:], f"{name} {mode} decode after 50")


def test_the_window_matters(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "model", family="bamboo")
    ids = some_tokens(90, seed=2)
    whole, windowed = forward(folder, ids, sliding_window=None), forward(folder, ids)
    assert_logits_close(windowed.logits[:24], whole.logits[:24], "inside the window")
    assert float((windowed.logits[24:] - whole.logits[24:]).abs().amin(0).max()) > 1e-3


def test_counts_products_that_a_closed_up_makes_zero(tmp_path: Path) -> None:
    """Activation sparsity of dReLU counts act(gate) * relu(up), not the gate alone."""
    folder = make_model(tmp_path / "model", family="bamboo")
    ids = some_tokens(40, seed=2)
    trace = forward(folder, ids)
    for mode in ("dense", "exact"):
        engine = prosparse.load(folder, mode=mode, weights="fp32")
        session = Session(engine.decoder, engine.kv_dtype, 1, 64)
        for i, token in enumerate(ids):
            session.decode(torch.tensor([[token]]), (0,), (i,))
        expected = [float((product == 0).double().mean()) for product in trace.products]
        sparsity = activation_sparsity(session, engine.config.neurons)
        assert sparsity is not None and sparsity["layers"] == pytest.approx(expected, abs=1e-6)
        gates_alone = [float((gate <= 0).double().mean()) for gate in trace.gates]
        assert all(counted > alone + 0.1 for counted, alone in zip(sparsity["layers"], gates_alone, strict=True))
