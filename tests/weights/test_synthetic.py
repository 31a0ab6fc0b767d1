"""Synthetic weights in memory: finite, distinct, the shape's bytes, active as often as asked at any sparsity."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prosparse.config.shapes import shape
from prosparse.engine.load import assemble
from prosparse.engine.session import Session
from prosparse.engine.stats import activation_sparsity
from prosparse.errors import MachineError, UserError
from prosparse.kernels.activation import Activation
from prosparse.placement import choose
from prosparse.weights.synthetic import Knobs, matrices, synthetic_weights, walk, weight_bytes

SMALL = dataclasses.replace(shape("tiny"), neurons=768)
FATRELU = dataclasses.replace(
    shape("minicpm-s-1b"), hidden=192, neurons=512, heads=6, kv_heads=2, head_dim=32, vocab=2048, layers=6
)
DRELU = dataclasses.replace(shape("bamboo-7b"), hidden=256, neurons=768, heads=2, kv_heads=1, vocab=512, layers=3)
SWEEP = [0.0, 0.25, 0.5, 0.7, 0.88, 0.95, 1.0]


def run(config, fmt, knobs, tokens=48):
    """Decode a walk; returns (activation sparsity, logits)."""
    weights, _ = synthetic_weights(config, fmt, knobs)
    session = Session(assemble(config, weights, choose(config, "exact"), tokens), torch.float32, 1, tokens)
    ids = walk(config.vocab, tokens, seed=5)
    logits = torch.cat([session.decode(ids[at].view(1, 1), (0,), (at,)) for at in range(tokens)])
    return activation_sparsity(session, config.neurons), logits


@pytest.mark.parametrize("sparsity", SWEEP)
@pytest.mark.parametrize("config", [FATRELU, DRELU], ids=["fatrelu", "drelu"])
def test_every_sparsity_can_be_had(config, sparsity):
    measured, logits = run(config, "bf16", sparsity)
    assert measured["mean"] == pytest.approx(sparsity, abs=0.02)
    if sparsity in (0.0, 1.0):
        assert measured["mean"] == pytest.approx(sparsity, abs=1e-4)
    assert logits.isfinite().all() and logits.std() > 0.1


@pytest.mark.parametrize("fmt", ["fp32", "fp16", "int8", "int4"])
def test_every_format_is_calibrated(fmt):
    measured, logits = run(FATRELU, fmt, 0.8)
    assert measured["mean"] == pytest.approx(0.8, abs=0.02)
    assert logits.isfinite().all()


def test_the_first_and_the_last_layer_are_busier():
    layers = run(FATRELU, "bf16", 0.8, 96)[0]["layers"]
    assert max(layers[0], layers[-1]) + 0.03 < min(layers[2:4])


def test_activations_do_not_grow_with_depth():
    shallow, deep = (run(dataclasses.replace(SMALL, layers=n), "bf16", 0.8, 4)[1].std() for n in (1, 52))
    assert 0.3 < float(deep / shallow) < 3


def test_a_squared_gate_is_calibrated():
    config = dataclasses.replace(FATRELU, activation=Activation("relu2"))
    assert run(config, "bf16", 0.8)[0]["mean"] == pytest.approx(0.8, abs=0.02)


def test_no_block_adds_to_the_constant_coordinate():
    weights, _ = synthetic_weights(FATRELU, "bf16", 0.8)
    assert len(weights.embed.codes[:, 0].unique()) == 1
    for layer in weights.layers:
        assert layer.o.codes[0].eq(0).all() and layer.down.codes[:, 0].eq(0).all()


@pytest.mark.parametrize("fmt", ["fp32", "fp16", "bf16", "int8"])
@pytest.mark.parametrize("config", [SMALL, DRELU], ids=["tied", "untied"])
def test_bytes_and_ties_are_the_shapes_own(config, fmt):
    weights, _ = synthetic_weights(config, fmt, 0.8)
    assert weights.nbytes == weight_bytes(config, fmt)
    assert (weights.lm_head is weights.embed) == config.tied_embeddings
    assert weights.layers[0].gate.format == fmt


def test_memory_is_distinct():
    weights, _ = synthetic_weights(SMALL, "bf16", 0.8)
    first, second = (layer.gate.codes for layer in weights.layers)
    assert first.data_ptr() != second.data_ptr() and not torch.equal(first, second)
    assert len(torch.unique(first.float(), dim=0)) == SMALL.neurons


def test_rows_differ_where_a_matrix_is_longer_than_the_block(monkeypatch):
    monkeypatch.setattr(matrices, "BLOCK", 997)
    weights, _ = synthetic_weights(SMALL, "fp32", Knobs(0.8, predictability=0.0))
    gate = torch.nn.functional.normalize(weights.layers[0].gate.codes[:, 1:])
    assert (gate @ gate.T).fill_diagonal_(0).max() < 0.9


def test_the_same_seed_gives_the_same_weights():
    (a, _), (b, _), (c, _) = (synthetic_weights(SMALL, "bf16", 0.8, seed) for seed in (1, 1, 2))
    assert torch.equal(a.layers[1].down.codes, b.layers[1].down.codes)
    assert not torch.equal(a.layers[1].down.codes, c.layers[1].down.codes)


def test_progress_ends_at_the_total():
    seen = []
    synthetic_weights(SMALL, "bf16", 0.8, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == weight_bytes(SMALL, "bf16")
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    ("fmt", "knobs", "says"),
    [("bf16", -0.1, "sparsity must be a number from 0 to 1"), ("bf16", float("nan"), "nan"), ("int3", 0.8, "int3"),
     ("bf16", Knobs(0.5, skew=0.9), "skew can be from 0.20 to 0.40 at activation sparsity 0.5, got 0.9"),
     ("bf16", Knobs(0.88, overlap=0.05), "overlap can be from 0.2"), ("bf16", Knobs(0.8, overlap=True), "True"),
     ("bf16", Knobs(0.8, predictability=1.5), "predictability must be a number from 0 to 1, got 1.5")],
)  # fmt: skip
def test_refuses_what_it_cannot_make(fmt, knobs, says):
    with pytest.raises(UserError, match=says):
        synthetic_weights(SMALL, fmt, knobs)


def test_refuses_an_activation_without_zeros():
    with pytest.raises(UserError, match="silu makes no exact zeros"):
        synthetic_weights(dataclasses.replace(SMALL, activation=Activation("silu")), "bf16", 0.8)


def test_says_when_memory_does_not_suffice(monkeypatch):
    monkeypatch.setattr(matrices, "available_memory", lambda: 1000)
    with pytest.raises(MachineError, match="GiB of cpu memory are free"):
        synthetic_weights(SMALL, "bf16", 0.8)
