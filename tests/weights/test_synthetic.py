"""Synthetic weights: the asked activation sparsity, the shape's bytes, finite activations, tied where the shape is."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from prosparse.config.shapes import shape
from prosparse.engine.load import assemble
from prosparse.engine.session import Session
from prosparse.engine.stats import activation_sparsity
from prosparse.errors import MachineError, UserError
from prosparse.kernels.gate_select import gate_select
from prosparse.kernels.glu_exact import glu_exact
from prosparse.placement import choose
from prosparse.sparsity import ffn
from prosparse.weights import synthetic
from prosparse.weights.synthetic import synthetic_weights, weight_bytes

SMALL = dataclasses.replace(shape("tiny"), neurons=768)
MIDDLE = dataclasses.replace(shape("minicpm-s-1b"), vocab=512, layers=6)
DRELU = dataclasses.replace(shape("bamboo-7b"), hidden=256, neurons=768, heads=2, kv_heads=1, vocab=512, layers=3)


def run(config, fmt, sparsity, tokens):
    """Decode random tokens; returns (activation sparsity, logits)."""
    weights, config = synthetic_weights(config, fmt, sparsity)
    session = Session(assemble(config, weights, choose(config, "exact"), tokens), torch.float32, 1, tokens)
    ids = torch.randint(config.vocab, (tokens,), generator=torch.Generator().manual_seed(0))
    logits = torch.cat([session.decode(ids[at].view(1, 1), (0,), (at,)) for at in range(tokens)])
    return activation_sparsity(session, config.neurons), logits


@pytest.mark.parametrize("sparsity", [0.5, 0.7, 0.88, 0.98])
def test_sparsity_is_what_was_asked(sparsity):
    measured, logits = run(SMALL, "bf16", sparsity, 24)
    assert measured["mean"] == pytest.approx(sparsity, abs=0.02)
    assert logits.isfinite().all() and logits.std() > 0.01


@pytest.mark.parametrize("sparsity", [0.75, 0.9])
def test_sparsity_counts_what_drelu_closes(sparsity):
    assert run(DRELU, "fp32", sparsity, 8)[0]["mean"] == pytest.approx(sparsity, abs=0.02)


def test_every_layer_of_a_real_width_has_it():
    measured, logits = run(MIDDLE, "bf16", 0.88, 6)
    assert measured["layers"] == pytest.approx([0.88] * MIDDLE.layers, abs=0.02)
    assert logits.isfinite().all()


def test_activations_do_not_grow_with_depth():
    shallow, deep = (run(dataclasses.replace(SMALL, layers=n), "bf16", 0.8, 4)[1].std() for n in (1, 52))
    assert 0.3 < float(deep / shallow) < 3


def test_tokens_share_active_neurons_only_by_chance(monkeypatch):
    chosen = []

    def spy(x, gate, up, down, activation, tally):
        active = gate_select(x, gate, activation)
        chosen.append(set(active.index[: int(active.count)].tolist()))
        return glu_exact(x, gate, up, down, activation, tally)

    monkeypatch.setattr(ffn, "glu_exact", spy)
    run(MIDDLE, "bf16", 0.88, 6)
    later = range(MIDDLE.layers, len(chosen))
    shared = [len(chosen[i] & chosen[i - MIDDLE.layers]) / len(chosen[i]) for i in later]
    assert sum(shared) / len(shared) == pytest.approx(0.12, abs=0.03)


@pytest.mark.parametrize("fmt", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("config", [SMALL, DRELU], ids=["tied", "untied"])
def test_bytes_and_ties_are_the_shapes_own(config, fmt):
    weights, _ = synthetic_weights(config, fmt, 0.8)
    assert weights.nbytes == weight_bytes(config, fmt)
    assert (weights.lm_head is weights.embed) == config.tied_embeddings
    assert weights.layers[0].gate.format == fmt


def test_memory_is_distinct():
    weights, config = synthetic_weights(SMALL, "bf16", 0.8)
    first, second = (layer.gate.codes for layer in weights.layers)
    assert first.data_ptr() != second.data_ptr() and not torch.equal(first, second)
    assert len(torch.unique(first.float(), dim=0)) == config.neurons


def test_rows_differ_where_a_matrix_is_longer_than_the_block(monkeypatch):
    monkeypatch.setattr(synthetic, "BLOCK", 997)
    weights, config = synthetic_weights(SMALL, "fp32", 0.8)
    gate = torch.nn.functional.normalize(weights.layers[0].gate.codes)
    alike = (gate @ gate.T).fill_diagonal_(0)
    assert alike.max() < 0.9


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
    ("config", "fmt", "sparsity", "says"),
    [(SMALL, "bf16", 0.49, "from 0.5"), (SMALL, "bf16", 1.0, "below 1"), (DRELU, "bf16", 0.7, "from 0.75"),
     (SMALL, "int3", 0.8, "int3"), (SMALL, "bf16", float("nan"), "nan")],
)  # fmt: skip
def test_refuses_what_it_cannot_make(config, fmt, sparsity, says):
    with pytest.raises(UserError, match=says):
        synthetic_weights(config, fmt, sparsity)


def test_says_when_memory_does_not_suffice(monkeypatch):
    monkeypatch.setattr(synthetic, "available_memory", lambda: 1000)
    with pytest.raises(MachineError, match="GiB of memory are free"):
        synthetic_weights(SMALL, "bf16", 0.8)
